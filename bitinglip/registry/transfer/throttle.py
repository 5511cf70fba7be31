"""How fast all downloads of a process may be together."""

import threading
import time
from functools import cache

BURST_SECONDS = 0.25
"""What was not used goes over to the next bytes, up to so much."""


class Throttle:
    """A token bucket: bytes are let through at a steady rate, first come first served.

    Args:
        bytes_per_second: None: no limit.
    """

    def __init__(self, bytes_per_second: float | None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._paid_until = time.monotonic()

    def take(self, count: int, stop: threading.Event) -> None:
        """Return when so many bytes may pass, or when told to stop."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._paid_until = max(self._paid_until, now - BURST_SECONDS) + count / self._rate
            seconds = self._paid_until - now
        if seconds > 0:
            stop.wait(seconds)


@cache
def find_throttle(bytes_per_second: int | None) -> Throttle:
    """The one that all downloads of this process share."""
    return Throttle(bytes_per_second)
