"""Which texts share a forward pass: neighbours in length, as many as memory and time allow.

Invariant: a batch holds the text that has waited longest, so that none waits for ever, and at least half of what it
computes are real tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

from bitinglip.engine.embedding.request import EmbeddingRequest

STEP_SECONDS = 0.25
"""Other engines of the process wait so long for their turn."""

MIN_STEP_TOKENS = 16
CALM_STEPS = 64


@dataclass(slots=True, eq=False)
class WaitingText:
    """A tokenised text that has no vector yet.

    Attributes:
        index: Of the text in its request.
        arrival: Its place in the order of arrival, over all requests.
        alone: It runs by itself, because a batch with it has failed.
    """

    request: EmbeddingRequest
    index: int
    ids: list[int]
    arrival: int
    alone: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands among the others: by length, then by arrival."""
        return len(self.ids), self.arrival


class TextQueue:
    """Tokenised texts, sorted by length."""

    def __init__(self) -> None:
        self._texts: list[WaitingText] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: WaitingText) -> None:
        """Let a text wait, for the first time or again."""
        insort(self._texts, text, key=_place)

    def drop_ended(self) -> None:
        """Forget the texts of requests that have ended."""
        self._texts = [text for text in self._texts if not text.request.ended]

    def take_batch(self, fits: Callable[[int, int], bool], *, pads: bool) -> list[WaitingText]:
        """Remove and return the oldest text and its neighbours.

        Args:
            fits: Whether so many rows of such a width may be computed at once; the oldest text is, in any case.
            pads: Whether texts of several lengths may be read together.
        """
        oldest = min(self._texts, key=lambda text: text.arrival)
        low = bisect_left(self._texts, oldest.place, key=_place)
        high = low + 1
        real, length = len(oldest.ids), len(oldest.ids)
        is_open = not oldest.alone
        while is_open:
            below = self._texts[low - 1] if low > 0 else None
            above = self._texts[high] if high < len(self._texts) else None
            text = _nearer(below, above, length)
            if text is None or text.alone or not (pads or len(text.ids) == length):
                break
            rows, width = high - low + 1, max(len(self._texts[high - 1].ids), len(text.ids))
            is_open = fits(rows, width) and 2 * (real + len(text.ids)) >= rows * width
            if is_open:
                real += len(text.ids)
                low, high = (low - 1, high) if text is below else (low, high + 1)
        batch = self._texts[low:high]
        del self._texts[low:high]
        return batch


class StepSize:
    """How many tokens one step may compute, padding included: what takes `STEP_SECONDS`, and fits into memory.

    Args:
        first: Before anything is measured.
        most: Whatever the clock says.
    """

    def __init__(self, first: int, most: int) -> None:
        self._most = self._ceiling = most
        self._calm = 0
        self.tokens = min(first, most)

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took this long."""
        fair = max(MIN_STEP_TOKENS, int(tokens * STEP_SECONDS / max(seconds, 1e-6)))
        if seconds > STEP_SECONDS:
            self.tokens = min(fair, self._ceiling)
        elif 2 * tokens > self.tokens:
            self.tokens = min(2 * self.tokens, fair, self._ceiling)
        self._calm += 1
        if self._calm >= CALM_STEPS and self._ceiling < self._most:
            self._ceiling, self._calm = min(2 * self._ceiling, self._most), 0

    def halve(self, tokens: int) -> None:
        """Memory ran out at so many tokens: no more than half of them until it has gone well for a while."""
        self.tokens = self._ceiling = max(1, tokens // 2)
        self._calm = 0


def _place(text: WaitingText) -> tuple[int, int]:
    return text.place


def _nearer(below: WaitingText | None, above: WaitingText | None, length: int) -> WaitingText | None:
    if below is None or above is None:
        return above or below
    return below if length - len(below.ids) <= len(above.ids) - length else above
