"""Tasks whose doorbells do not ring: the heartbeat runs them, and a consumer that stays deaf is started again."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bitinglip.lifecycle.lease import HeldTask
from bitinglip.store.tasks import Doorbell
from bitinglip.telemetry import get_logger

MISSED_SECONDS = 1.0
"""A reservation this old is run by the heartbeat if a slot is free and no doorbell has rung for as long."""

LOST_SECONDS = 5.0
"""A reservation this old is run by the heartbeat if a slot is free, even while other doorbells ring."""

DEAF_SECONDS = 5.0
"""A consumer that lets the heartbeat do its work for as long is started again."""

log = get_logger()


class MissedDoorbells:
    """Runs what should have come by a doorbell.

    Args:
        run: Runs what a doorbell stands for; blocks.
        slots: Tasks that the worker runs at once.
        on_deaf: Called when doorbells ought to ring and do not.
    """

    def __init__(self, run: Callable[[Doorbell], object], *, slots: int, on_deaf: Callable[[], None]) -> None:
        self._run = run
        self._slots = slots
        self._on_deaf = on_deaf
        self._rung_at = time.monotonic()
        self._deaf_since: float | None = None
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="missed")

    def note_ring(self) -> None:
        """A doorbell has rung."""
        self._rung_at = time.monotonic()

    def run(self, waiting: Sequence[HeldTask], running: int) -> None:
        """Run those of the tasks that have waited too long, where a slot is free; returns at once.

        Args:
            waiting: Given to this worker, and not begun.
            running: How many tasks it runs.
        """
        now = time.monotonic()
        if self._deaf_since is not None and self._rung_at > self._deaf_since:
            self._deaf_since = None
        is_quiet = now - self._rung_at > MISSED_SECONDS
        patience = MISSED_SECONDS if is_quiet else LOST_SECONDS
        missed = [task for task in waiting if task.running or task.reserved_seconds > patience]
        room = max(0, self._slots - running)
        for task in missed[:room]:
            log.info("doorbell_missed", task_id=str(task.doorbell.task_id))
            self._threads.submit(self._run, task.doorbell)
        if not (missed and room and is_quiet):
            return
        self._deaf_since = self._deaf_since or now
        if now - self._deaf_since > DEAF_SECONDS:
            self._deaf_since = None
            self._on_deaf()

    def close(self) -> None:
        """Begin nothing more, and wait for what runs."""
        self._threads.shutdown(wait=True, cancel_futures=True)
