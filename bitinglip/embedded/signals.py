"""Ctrl-C and its relatives, for the parent: the first one asks for an orderly stop, the second for a fast one.

    with StopSignals() as signals:
        servers.start()
        signals.wait()
        servers.stop(signals.is_hurried)

The handler only counts and writes one byte: it runs between any two instructions of the main thread, so it may take no
lock.
"""

import os
import select
import signal
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Catches the signals that ask this process to stop, from entry to exit. In the main thread only."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Under nohup a closed terminal is no reason to stop. An ignored SIGINT is: shells ignore it for every `&`.
        heard = [number for number in STOP_SIGNALS if number != signal.SIGHUP or not _is_ignored(number)]
        self._previous = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    @property
    def first(self) -> signal.Signals | None:
        """The signal that asked for the stop, or None if none did."""
        return signal.Signals(self._received[0]) if self._received else None

    def is_hurried(self) -> bool:
        """Whether a second one came: stop fast."""
        return len(self._received) > 1

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Whether a signal came, at the latest after so many seconds. Meant for one thread, many calls."""
        if not self._received:
            select.select([self._reader], [], [], timeout_seconds)
        return bool(self._received)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received.append(number)
        os.write(self._writer, b"!")


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN
