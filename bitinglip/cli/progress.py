"""How far a download is, for people: one line that is written anew on a terminal, a line now and then elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import click

LINE_SECONDS = 5.0
"""From one line to the next where nothing can be written anew."""

RATE_SECONDS = 5.0
"""What the rate is the mean of."""

_SAMPLE_SECONDS = 0.1
_MEGA, _GIGA = 10**6, 10**9


class ProgressLine:
    """Writes progress to stderr: stdout is for data."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._is_open = False
        self._stage = ""
        self._next_line_at = 0.0

    def show(self, progress: Mapping[str, Any]) -> None:
        """Tell of one `progress` event of a download.

        Args:
            progress: stage, done_bytes, total_bytes.
        """
        now = time.monotonic()
        self._sample(now, progress["done_bytes"])
        line = self._describe(progress)
        if sys.stderr.isatty():
            # Back to the line's beginning, and what was longer before is erased.
            click.echo(f"\r{line}\x1b[K", err=True, nl=False)
            self._is_open = True
        elif progress["stage"] != self._stage or now >= self._next_line_at:
            click.echo(line, err=True)
            self._next_line_at = now + LINE_SECONDS
        self._stage = progress["stage"]

    def end(self) -> None:
        """Leave the line as it is: something else is written next."""
        if self._is_open:
            click.echo("", err=True)
            self._is_open = False

    def _sample(self, now: float, done_bytes: int) -> None:
        # What has been read all at once, from an earlier time, says nothing of the rate: the last of it counts.
        if self._samples and now - self._samples[-1][0] < _SAMPLE_SECONDS:
            self._samples[-1] = (self._samples[-1][0], done_bytes)
        else:
            self._samples.append((now, done_bytes))
        while now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()

    def _describe(self, progress: Mapping[str, Any]) -> str:
        stage, done, total = progress["stage"], progress["done_bytes"], progress["total_bytes"]
        if not total:
            return str(stage)
        rate = f", {format_bytes(self._find_rate())}/s" if stage == "downloading" and len(self._samples) > 1 else ""
        return f"{stage}: {done / total:.0%} of {format_bytes(total)}{rate}"

    def _find_rate(self) -> float:
        (first, before), (last, now) = self._samples[0], self._samples[-1]
        return max(0.0, (now - before) / (last - first))


def format_bytes(size: float) -> str:
    """The size as people read it."""
    return f"{size / _GIGA:.2f} GB" if size >= _GIGA else f"{size / _MEGA:.1f} MB"
