"""Stop strings: end a text before them, and never show a part of one.

Invariant: what `push` has returned in all, joined, never contains a stop string and never ends with the beginning of
one that the next text could complete.
"""

from collections.abc import Sequence


class StopFilter:
    """Holds text back while it could become a stop string.

    Args:
        stops: Strings that end the text; none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown now, and whether a stop string has come."""
        if not self._stops:
            return text, False
        self._held += text
        found = [index for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max(_count_overlap(self._held, stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, False

    def flush(self) -> str:
        """Return what was held back; the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held


def _count_overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
