"""Write events from many threads with few round trips, and never wait for Redis.

Invariant: events of one attempt reach Redis in the order they were given, or not at all.
"""

import queue
import threading
import time
import uuid
from dataclasses import dataclass

import redis
from redis.exceptions import RedisError, ResponseError

from bitinglip.streams.events import EventName, encode_event, stream_key
from bitinglip.telemetry import get_logger

MAX_EVENTS = 20_000
"""Entries kept in one stream; older ones are trimmed."""

MAX_BACKLOG = 50_000
"""Events that wait in memory for Redis before new ones are dropped."""

_BATCH = 500
_LINGER_SECONDS = 0.005
_RUNNING_SECONDS = 86_400

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Entry:
    task_id: uuid.UUID
    event_id: str
    name: EventName
    data: dict[str, object]


class AttemptEvents:
    """The events of one attempt, numbered from 1."""

    def __init__(self, writer: "EventWriter", task_id: uuid.UUID, attempt: int) -> None:
        self._writer = writer
        self._task_id = task_id
        self._attempt = attempt
        self._sequence = 0

    def publish(self, name: EventName, **data: object) -> None:
        """Send one event; returns at once."""
        self._sequence += 1
        self._writer.put(_Entry(self._task_id, f"{self._attempt}-{self._sequence}", name, data))


class EventWriter:
    """One process's way to the streams: a thread that pipelines what has gathered.

    Args:
        client: A Redis client with a socket timeout of its own.
        keep_seconds: How long a stream stays after its last event.
    """

    def __init__(self, client: "redis.Redis", *, keep_seconds: int) -> None:
        self._client = client
        self._keep_seconds = keep_seconds
        self._backlog: queue.Queue[_Entry | None] = queue.Queue(MAX_BACKLOG)
        self._reachable = True
        self._thread = threading.Thread(target=self._write_all, name="event-writer", daemon=True)
        self._thread.start()

    def open_attempt(self, task_id: uuid.UUID, attempt: int) -> AttemptEvents:
        """The events of one attempt at one task."""
        return AttemptEvents(self, task_id, attempt)

    def put(self, entry: _Entry) -> None:
        """Queue one entry; drop it if Redis has been away for so long that the backlog is full."""
        try:
            self._backlog.put_nowait(entry)
        except queue.Full:
            self._report(reachable=False, reason="backlog full")

    def close(self) -> None:
        """Write what has gathered and stop."""
        self._backlog.put(None)
        self._thread.join(timeout=5)

    def _write_all(self) -> None:
        open_ = True
        while open_:
            batch = [self._backlog.get()]
            while len(batch) < _BATCH and not self._backlog.empty():
                batch.append(self._backlog.get())
            open_ = None not in batch
            self._write_batch([entry for entry in batch if entry is not None])
            # A busy worker writes fewer, larger batches; a reader sees no difference.
            time.sleep(_LINGER_SECONDS)

    def _write_batch(self, entries: list[_Entry]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        # Every batch, not only at the start: a stream that was wiped half way is a new one without an end.
        lifetimes: dict[str, int] = {}
        for entry in entries:
            key = stream_key(entry.task_id)
            pipeline.xadd(
                key, encode_event(entry.name, entry.data), id=entry.event_id, maxlen=MAX_EVENTS, approximate=True
            )
            lifetimes[key] = self._keep_seconds if entry.name is EventName.FINISHED else _RUNNING_SECONDS
        for key, seconds in lifetimes.items():
            pipeline.expire(key, seconds)
        try:
            replies = pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as exc:
            self._report(reachable=False, reason=type(exc).__name__)
            return
        self._report(reachable=True)
        refused = sum(isinstance(reply, ResponseError) for reply in replies)
        if refused:
            log.info("events_refused", count=refused)

    def _report(self, *, reachable: bool, reason: str = "") -> None:
        if reachable != self._reachable:
            self._reachable = reachable
            log.warning("streams_reachable" if reachable else "streams_unreachable", reason=reason)
