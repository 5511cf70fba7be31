"""Write events and transitions from many threads with few round trips, and never wait for Redis.

Invariant: events of one attempt reach Redis in the order they were given, or not at all.
"""

import queue
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, assert_never

import redis
from redis.exceptions import RedisError, ResponseError

from bitinglip.domain.task import Status
from bitinglip.store.tasks import Change
from bitinglip.streams.events import RUNNING_SECONDS, EventName, encode_event, stream_key
from bitinglip.streams.takeover import take_over
from bitinglip.streams.transitions import CHANNEL, Transition, TransitionName, encode_queued, encode_transition
from bitinglip.telemetry import get_logger

MAX_EVENTS = 20_000
"""Entries kept in one stream; older ones are trimmed."""

MAX_BACKLOG = 50_000
"""Events that wait in memory for Redis before new ones are dropped."""

_BATCH = 500
_LINGER_SECONDS = 0.005

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Entry:
    task_id: uuid.UUID
    event_id: str
    name: EventName
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Announcement:
    message: str


class AttemptEvents:
    """The events of one attempt, numbered from 1; those that are transitions of the task are announced too.

    Args:
        writer: Where they go.
        task_id: The task.
        attempt: Its number.
        agent_id: Whose task it is.
        sent: How many of the attempt's events are in the stream.
    """

    def __init__(
        self, writer: "EventWriter", task_id: uuid.UUID, attempt: int, agent_id: str, *, sent: int = 0
    ) -> None:
        self._writer = writer
        self._task_id = task_id
        self._attempt = attempt
        self._agent_id = agent_id
        self._sequence = sent

    def publish(self, name: EventName, **data: Any) -> None:
        """Send one event; returns at once."""
        self._sequence += 1
        self._writer.put(_Entry(self._task_id, f"{self._attempt}-{self._sequence}", name, data))
        match name:
            case EventName.STARTED:
                self.announce(TransitionName.STARTED, Status.IN_PROGRESS)
            case EventName.RETRIED | EventName.RELEASED:
                self.announce(TransitionName(name), Status.PENDING, data.get("error"))
            case EventName.FINISHED:
                self.announce(TransitionName.FINISHED, Status(data["status"]), data.get("error"))

    def announce(self, name: TransitionName, status: Status, error: Mapping[str, Any] | None = None) -> None:
        """Tell listeners of a transition; returns at once."""
        code = error["code"] if error else None
        self._writer.announce(Transition(name, self._task_id, self._agent_id, status, self._attempt, code))


class EventWriter:
    """One process's way to the streams: a thread that pipelines what has gathered.

    Args:
        client: A Redis client with a socket timeout of its own.
        keep_seconds: How long a stream stays after its last event.
        prompt_client: One that gives up sooner, for the one thing that is waited for: what earlier attempts have sent.
            None: the same.
    """

    def __init__(
        self, client: "redis.Redis", *, keep_seconds: int = 3_600, prompt_client: "redis.Redis | None" = None
    ) -> None:
        self._client = client
        self._prompt_client = prompt_client or client
        self._keep_seconds = keep_seconds
        self._backlog: queue.Queue[_Entry | _Announcement | None] = queue.Queue(MAX_BACKLOG)
        self._reachable = True
        self._thread = threading.Thread(target=self._write_all, name="event-writer", daemon=True)
        self._thread.start()

    def open_attempt(self, task_id: uuid.UUID, attempt: int, agent_id: str) -> AttemptEvents:
        """The events of one attempt at one task, from its first on."""
        return AttemptEvents(self, task_id, attempt, agent_id)

    def begin_attempt(
        self, task_id: uuid.UUID, attempt: int, agent_id: str, *, continues: bool
    ) -> tuple[AttemptEvents, list[int]]:
        """Say that an attempt has begun, and what becomes of the text that earlier ones have sent.

        A first attempt waits for nothing; a later one for one answer of Redis, as long as `prompt_client` does.

        Args:
            task_id: The task.
            attempt: Its number.
            agent_id: Whose task it is.
            continues: Whether the engine can continue a text from its tokens.

        Returns:
            Where the attempt's events go from now on, and the tokens that its text continues after.
        """
        if attempt == 1:
            events = self.open_attempt(task_id, attempt, agent_id)
            events.publish(EventName.STARTED, attempt=attempt)
            return events, []
        made = take_over(self._prompt_client, task_id, attempt, started={"attempt": attempt})
        # `started` is in the stream, or Redis is away and does without it.
        events = AttemptEvents(self, task_id, attempt, agent_id, sent=1)
        events.announce(TransitionName.STARTED, Status.IN_PROGRESS)
        if made is None or (made.token_ids and not continues):
            events.publish(EventName.RESTART, attempt=attempt)
            return events, []
        events.publish(EventName.RESUMED, attempt=attempt, chars=made.chars)
        return events, made.token_ids

    def announce(self, transition: Transition) -> None:
        """Tell listeners of a transition; returns at once."""
        self.put(_Announcement(encode_transition(transition)))

    def announce_changes(self, changes: Iterable[Change], event: TransitionName | None = None) -> None:
        """Tell listeners what a statement made of tasks; returns at once.

        Args:
            changes: From `store`.
            event: What happened; None: what their status tells, after a cancel or a sweep.
        """
        for change in changes:
            status = Status(change.status)
            name = event or _name_change(status, change.attempt)
            self.announce(Transition(name, change.task_id, change.agent_id, status, change.attempt, change.error_code))

    def announce_queued(self, agent_id: str, task_ids: Sequence[uuid.UUID]) -> None:
        """Tell listeners that tasks of an agent are queued; returns at once."""
        for message in encode_queued(agent_id, task_ids):
            self.put(_Announcement(message))

    def put(self, entry: _Entry | _Announcement) -> None:
        """Queue one entry; drop it if Redis has been away for so long that the backlog is full."""
        try:
            self._backlog.put_nowait(entry)
        except queue.Full:
            if isinstance(entry, _Entry):
                self._report(reachable=False, reason="backlog full")

    def close(self, *, within_seconds: float = 5.0) -> None:
        """Write what has gathered and stop; what Redis has not taken by then is dropped."""
        with suppress(queue.Full):
            self._backlog.put(None, timeout=within_seconds)
            self._thread.join(within_seconds)

    def _write_all(self) -> None:
        open_ = True
        while open_:
            batch = [self._backlog.get()]
            while len(batch) < _BATCH and not self._backlog.empty():
                batch.append(self._backlog.get())
            open_ = None not in batch
            try:
                self._write_batch([entry for entry in batch if entry is not None])
            except Exception:
                # Whatever it was: the events after it must still be written.
                log.exception("events_dropped", count=len(batch))
            # A busy worker writes fewer, larger batches; a reader sees no difference.
            time.sleep(_LINGER_SECONDS)

    def _write_batch(self, entries: list[_Entry | _Announcement]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        # Every batch, not only at the start: a stream that was wiped half way is a new one without an end.
        lifetimes: dict[str, int] = {}
        for entry in entries:
            if isinstance(entry, _Announcement):
                pipeline.publish(CHANNEL, entry.message)
                continue
            key = stream_key(entry.task_id)
            pipeline.xadd(
                key, encode_event(entry.name, entry.data), id=entry.event_id, maxlen=MAX_EVENTS, approximate=True
            )
            lifetimes[key] = self._keep_seconds if entry.name is EventName.FINISHED else RUNNING_SECONDS
        for key, seconds in lifetimes.items():
            pipeline.expire(key, seconds)
        try:
            replies = pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as exc:
            # Announcements are for whoever happens to listen: a client without Redis has nothing to report.
            if lifetimes:
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


def _name_change(status: Status, attempt: int) -> TransitionName:
    match status:
        case Status.PENDING:
            # A first attempt can only have waited: for a time or for another task.
            return TransitionName.READY if attempt == 1 else TransitionName.RELEASED
        case Status.IN_PROGRESS:
            return TransitionName.CANCELLING
        case Status.COMPLETED | Status.FAILED | Status.CANCELLED:
            return TransitionName.FINISHED
        case _:
            assert_never(status)
