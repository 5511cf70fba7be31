"""A doorbell for workers: beat now, in place of at the next heartbeat, because PostgreSQL has news for you.

It may be lost, and nothing is lost with it: the heartbeat comes within seconds anyway.
"""

import threading
import uuid
from collections.abc import Callable

import redis
from redis.exceptions import RedisError

from bitinglip.streams.channel import listen
from bitinglip.telemetry import get_logger

log = get_logger()


def wake_worker(client: "redis.Redis", worker_id: uuid.UUID) -> bool:
    """Ring, and return whether a worker has heard it. Never raises for Redis' sake.

    Args:
        client: From `connect`; its timeout is how long this may take.
        worker_id: The worker.
    """
    try:
        return int(client.publish(_channel(worker_id), "")) > 0
    except (RedisError, OSError):
        return False


class WakeListener:
    """Calls back in a thread of its own whenever somebody rings for this worker; outlives Redis' absences.

    Args:
        client: From `connect`; it may be used for other things meanwhile.
        worker_id: The worker.
        on_wake: What to do; must not block for long. What it raises is logged.
    """

    def __init__(self, client: "redis.Redis", worker_id: uuid.UUID, on_wake: Callable[[], None]) -> None:
        self._client = client
        self._on_wake = on_wake
        self._channel = _channel(worker_id)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="wake-listener", daemon=True)
        self._thread.start()

    def watch(self, worker_id: uuid.UUID) -> None:
        """Hear the rings for this id, and no longer those for the one before it."""
        self._channel = _channel(worker_id)

    def close(self) -> None:
        """Hear no more. Close the client after this, not before."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _listen(self) -> None:
        for _ in listen(self._client, lambda: self._channel, self._stop, _report):
            try:
                self._on_wake()
            except Exception:
                log.exception("wake_failed")


def _channel(worker_id: uuid.UUID) -> str:
    return f"bitinglip:wake:{worker_id}"


def _report(connected: bool) -> None:
    log.info("wake_channel_reachable" if connected else "wake_channel_unreachable")
