"""A task's events to their end: from Redis, and what Redis lacks from the record.

Invariant: the texts of the last attempt, put together, are the result's text, whatever became of Redis meanwhile.
"""

from collections.abc import Callable, Iterator, Sequence

from bitinglip.domain.task import Task
from bitinglip.streams.events import Event, EventName

POLL_SECONDS = 0.5
"""Between two looks at the record, where events do not tell."""


def follow_events(
    read_task: Callable[[], Task], read_events: Callable[[str, float], Sequence[Event]], after: str | None
) -> Iterator[Event]:
    """The events as they come; ends with `finished`.

    Args:
        read_task: The record as it is now.
        read_events: The events after an id, waiting so many seconds for the first; none if Redis is away.
        after: The id of the last event seen, to resume; None: from the beginning.
    """
    if after is None:
        task = read_task()
        yield Event("0-1", EventName.QUEUED, {"agent": task.agent_id, "priority": task.priority})
    position = after or "0-1"
    shown = 0
    lacks_text = False
    while True:
        events = read_events(position, POLL_SECONDS)
        for event in events:
            if _attempt_of(event.id) != _attempt_of(position):
                shown, lacks_text = 0, False
            lacks_text = lacks_text or (after is None and not _follows(position, event.id))
            if event.name is EventName.FINISHED:
                if lacks_text:
                    yield from _replay_text(read_task(), position, shown)
                yield event
                return
            position = event.id
            if lacks_text and event.name is EventName.TEXT:
                # Redis was wiped or the stream trimmed: text with a hole is worse than text at the end.
                continue
            shown += len(event.data.get("text", ""))
            yield event
        if not events:
            task = read_task()
            if task.status.is_final and not read_events(position, 0.0):
                yield from _replay_end(task, position, shown if after is None else None)
                return


def _replay_end(task: Task, position: str, shown: int | None) -> Iterator[Event]:
    """The rest of a task's events, from its record.

    Args:
        task: Ended.
        position: The last event's id.
        shown: Characters of text that were seen; None if unknown, and no text is repeated.
    """
    if shown is not None:
        for event in _replay_text(task, position, shown):
            position = event.id
            yield event
    error = task.error.model_dump() if task.error else None
    yield Event(_next_id(position), EventName.FINISHED, {"status": task.status, "error": error})


def _replay_text(task: Task, position: str, shown: int) -> Iterator[Event]:
    rest = str((task.result or {}).get("text", ""))[shown:]
    if rest:
        yield Event(_next_id(position), EventName.TEXT, {"text": rest})


def _attempt_of(event_id: str) -> int:
    return int(event_id.partition("-")[0])


def _next_id(event_id: str) -> str:
    attempt, _, sequence = event_id.partition("-")
    return f"{attempt}-{int(sequence) + 1}"


def _follows(event_id: str, later_id: str) -> bool:
    """Whether no event lies between the two, as far as their numbers tell."""
    return later_id == _next_id(event_id) or later_id.endswith("-1")
