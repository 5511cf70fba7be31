"""Reading prompts: short ones together, long ones in chunks between the others' tokens.

A chunk is sized by the clock, not by a constant: while rows decode it may take about as long as they need for a step and
a half, so that a 4,000-token prompt never holds their tokens up by more than two steps. The same rule fits two cores and
a large GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers.cache_utils import Cache

from bitinglip.engine.text.forward import CausalModel
from bitinglip.engine.text.row import Row

MIN_CHUNK = 16
STEPS_PER_CHUNK = 1.5
IDLE_CHUNK_SECONDS = 0.25


@dataclass(slots=True, eq=False)
class Prefill:
    """Prompts being read into a cache of their own.

    Attributes:
        rows: One, if it takes several chunks.
        contexts: What each row reads.
        done: Tokens read so far.
    """

    rows: list[Row]
    cache: Cache
    contexts: list[list[int]] = field(init=False)
    done: int = 0

    def __post_init__(self) -> None:
        self.contexts = [row.context for row in self.rows]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(context) for context in self.contexts]

    def tensors(self) -> list[Tensor]:
        """Everything the cache holds."""
        return find_tensors(self.cache)

    def read(self, model: CausalModel, limit: int | None) -> tuple[Tensor | None, int]:
        """Read up to `limit` tokens more of each row; None reads everything.

        Returns:
            The logits after the last token, [rows, vocabulary], or None if there is more to read; and how many tokens
            the model was given, padding included.
        """
        length = max(self.lengths)
        until = length if limit is None else min(length, self.done + limit)
        chunks = [context[self.done : until] for context in self.contexts]
        logits = model.read(chunks, self.cache, before=self.done)
        read, self.done = until - self.done, until
        return (logits if until == length else None), read * len(chunks)


class Pace:
    """How many tokens a chunk may have.

    Args:
        first_chunk: Tokens to begin with, before anything is measured.
        largest_chunk: Bounds the working memory of one chunk.
    """

    def __init__(self, first_chunk: int, largest_chunk: int) -> None:
        self._largest = largest_chunk
        self._idle_chunk = first_chunk
        self._busy_chunk = max(MIN_CHUNK, first_chunk // 4)
        self._step_seconds: float | None = None

    def chunk(self, *, decoding: bool) -> int:
        """Tokens that the next chunk may have."""
        return self._busy_chunk if decoding else self._idle_chunk

    def note_step(self, seconds: float) -> None:
        """A decode step took this long."""
        before = self._step_seconds
        self._step_seconds = seconds if before is None else 0.8 * before + 0.2 * seconds

    def note_chunk(self, seconds: float, tokens: int, *, decoding: bool) -> None:
        """A chunk of so many tokens took this long; size the next ones by it."""
        if tokens < self.chunk(decoding=decoding):
            return
        if not decoding:
            self._idle_chunk = self._resize(self._idle_chunk, IDLE_CHUNK_SECONDS / seconds)
        elif self._step_seconds is not None:
            self._busy_chunk = self._resize(self._busy_chunk, STEPS_PER_CHUNK * self._step_seconds / seconds)

    def _resize(self, chunk: int, factor: float) -> int:
        return max(MIN_CHUNK, min(self._largest, int(chunk * max(0.5, min(2.0, factor)))))


def find_tensors(cache: Cache) -> list[Tensor]:
    """Return the keys, values and states that transformers' cache holds."""
    found = []
    for layer in cache.layers:
        states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
        found += [getattr(layer, "keys", None), getattr(layer, "values", None), *states]
    return [tensor for tensor in found if tensor is not None]


def take_group(waiting: Sequence[Row], chunk: int, *, pads: bool) -> list[Row]:
    """Return the first rows that may be read together: at most `chunk` tokens with padding, or else one row."""
    group = list(waiting[:1])
    longest = len(group[0].context)
    for row in waiting[1:]:
        longest_with_row = max(longest, len(row.context))
        same = pads or len(row.context) == longest
        if not same or row.alone or group[0].alone or longest_with_row * (len(group) + 1) > chunk:
            break
        group.append(row)
        longest = longest_with_row
    return group
