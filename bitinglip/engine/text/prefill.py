"""Reading prompts: short ones together, long ones in chunks between the others' tokens.

A chunk is sized by the clock, not by a constant: while rows decode it may take a little less than two of their steps,
so that a 4,000-token prompt never holds their tokens up by more. The same rule fits two cores and a large GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers.cache_utils import Cache

from bitinglip.engine.text.batch import find_tensors
from bitinglip.engine.text.forward import CausalModel
from bitinglip.engine.text.row import Row

MIN_CHUNK = 16
# A prompt this short is read whole: each chunk costs at least a pass over the weights, and its reader waits.
WHOLE_TOKENS = 64
STEPS_PER_CHUNK = 1.75
IDLE_CHUNK_SECONDS = 0.25
FORGET = 1.01
SHORTEST_SECONDS = 1e-6


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
    """How many tokens may be read at once, from what steps and chunks have cost: a floor, and something per token.

    Args:
        first_chunk: Tokens to begin with, before anything is measured.
        largest_chunk: Bounds the working memory of one chunk.
    """

    def __init__(self, first_chunk: int, largest_chunk: int) -> None:
        self._first = first_chunk
        self._largest = largest_chunk
        self._floor_seconds: float | None = None
        self._step_seconds: float | None = None
        self._token_seconds: float | None = None

    def chunk(self, *, decoding: int, reading: int = 1) -> int:
        """Return how many tokens the next chunk may have.

        Args:
            decoding: Rows whose tokens it holds up.
            reading: Rows that wait to be read. Where they are more than the others, holding those up pays.
        """
        if self._token_seconds is None:
            return self._first
        seconds = IDLE_CHUNK_SECONDS
        if decoding and self._step_seconds is not None:
            seconds = STEPS_PER_CHUNK * self._step_seconds * max(1.0, reading / decoding)
        tokens = (seconds - (self._floor_seconds or 0.0)) / self._token_seconds
        return max(MIN_CHUNK, min(self._largest, int(tokens)))

    def note_step(self, seconds: float) -> None:
        """A decode step took this long."""
        self._step_seconds = _smooth(self._step_seconds, seconds)
        self._note_floor(seconds)

    def note_chunk(self, seconds: float, tokens: int) -> None:
        """A chunk of so many tokens took this long."""
        self._note_floor(seconds)
        if tokens >= MIN_CHUNK:
            above = max(seconds - (self._floor_seconds or 0.0), SHORTEST_SECONDS)
            self._token_seconds = _smooth(self._token_seconds, above / tokens)

    def _note_floor(self, seconds: float) -> None:
        """Whatever is run costs at least this: the fastest seen, slowly forgotten."""
        self._floor_seconds = min(seconds, (self._floor_seconds or seconds) * FORGET)


def take_group(waiting: Sequence[Row], chunk: int, *, pads: bool) -> list[Row]:
    """Return rows to read together: the first, and those nearest to it in length.

    Args:
        waiting: In order of arrival; not empty.
        chunk: Tokens to read at most, padding included; the first row is read in any case.
        pads: Whether rows of several lengths may be read together.
    """
    first = waiting[0]
    if first.alone:
        return [first]
    length = len(first.context)
    others = [row for row in waiting[1:] if not row.alone and (pads or len(row.context) == length)]
    group, longest = [first], length
    for row in sorted(others, key=lambda row: abs(len(row.context) - length)):
        longest = max(longest, len(row.context))
        if longest * (len(group) + 1) > chunk:
            break
        group.append(row)
    return group


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else 0.7 * before + 0.3 * now
