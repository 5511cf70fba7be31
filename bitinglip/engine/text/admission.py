"""Who may join: rows and key-value memory, reserved before anything computes.

A request reserves its whole length, prompt and max_tokens, because a row that runs out of memory half way costs more
than one that waits. The batch is a rectangle, so a long row widens all: `rows x columns_for(longest)`.

Invariant: reserved bytes never exceed the budget, so that running out of memory is the exception (other processes,
fragmentation), not the way to find the limit.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.text.batch import columns_for
from bitinglip.engine.text.forward import Traits
from bitinglip.engine.text.memory import count_others_bytes, plan_kv_bytes

CALM_STEPS = 64


@dataclass(frozen=True, slots=True)
class KvBudget:
    """Memory for keys, values and states.

    Attributes:
        total_bytes: On the device that holds most.
        bytes_per_token: Of one token of one row.
        bytes_per_row: States of one row.
        others_bytes: What other engines held when this one was loaded.
    """

    total_bytes: int
    bytes_per_token: int
    bytes_per_row: int
    others_bytes: int = 0

    def fits(self, totals: Sequence[int], prefilling: Sequence[int] = ()) -> bool:
        """Whether rows of these whole lengths fit together, some of them with a prefill's own copy.

        Args:
            totals: The whole length of every row, prompt and text.
            prefilling: Context lengths of those that prefill, whose cache is not yet in the batch.
        """
        return self.allows(len(totals), columns_for(max(totals)), prefilling)

    def allows(self, rows: int, columns: int, prefilling: Sequence[int]) -> bool:
        """Whether a rectangle of this size and prefills of these lengths fit together."""
        prefills = sum(self._bytes_for(1, length) for length in prefilling)
        return self._bytes_for(rows, columns) + prefills <= self.total_bytes

    @property
    def longest(self) -> int:
        """The longest request that fits alone, prefill included; without the other engines, which may leave."""
        whole = replace(self, total_bytes=self.total_bytes + self.others_bytes)
        low, high = 0, whole.total_bytes
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if whole.fits([middle], [middle]) else (low, middle - 1)
        return low

    def _bytes_for(self, rows: int, columns: int) -> int:
        return rows * (columns * self.bytes_per_token + self.bytes_per_row)


def plan_budget(config: EngineConfig, weights: Counter[torch.device], traits: Traits) -> KvBudget:
    """What an engine may hold besides its weights.

    Raises:
        ModelTooLargeError: If nothing is left.
    """
    kv_bytes = plan_kv_bytes(config, weights, traits.vocabulary)
    return KvBudget(kv_bytes, traits.bytes_per_token, traits.bytes_per_row, count_others_bytes(config))


class RowLimit:
    """How many rows may compute at once: fewer after an out-of-memory error, slowly more again.

    Args:
        most: What the configuration allows.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._calm = 0
        self.now = most

    def lower(self, rows: int) -> None:
        """Memory ran out; allow this many."""
        self.now, self._calm = max(1, min(rows, self._most)), 0

    def raise_after_calm(self) -> None:
        """A step went well; after enough of them allow one more."""
        self._calm += 1
        if self._calm >= CALM_STEPS and self.now < self._most:
            self.now, self._calm = self.now + 1, 0
