"""A task's events to their end: from Redis, and what Redis lacks from the record.

Invariant: the texts since the last `restart`, put together, are the result's text, whatever became of Redis meanwhile.
So a text is shown only while it follows what was shown before it without a hole; what is held back, and what never
came, is read from the record at the end. Where what was shown is not how the result begins, a `restart` precedes it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bitinglip.domain.task import Task
from bitinglip.streams.events import Event, EventName, follows, order_of

POLL_SECONDS = 0.5
"""Between two looks at the record, where events do not tell."""

_QUEUED_ID = "0-1"


def follow_events(
    read_task: Callable[[], Task], read_events: Callable[[str, float], Sequence[Event]], after: str | None
) -> Iterator[Event]:
    """The events as they come; ends with `finished`.

    Args:
        read_task: The record as it is now.
        read_events: The events after an id, waiting so many seconds for the first; none if Redis is away.
        after: The id of the last event seen, to resume; None: from the beginning.
    """
    view = _View(after)
    if after is None:
        task = read_task()
        yield Event(_QUEUED_ID, EventName.QUEUED, {"agent": task.agent_id, "priority": task.priority})
    while True:
        events = read_events(view.position, POLL_SECONDS)
        for event in events:
            shown = view.take(event)
            # A task that ended and was brought back has a `finished` that is not its last.
            if event.name is EventName.FINISHED and (task := read_task()).status.is_final:
                yield from view.end(task, event.id)
                return
            if shown is not None:
                yield shown
        if not events and (task := read_task()).status.is_final and not read_events(view.position, 0.0):
            yield from view.end(task, None)
            return


class _View:
    """What one reader has been shown.

    A reader that resumes is one that reads from the beginning again and is shown nothing until `after`: only so is it
    known which text it has. Therefore an event is shown under the id of the last one up to which the text was whole.
    """

    def __init__(self, after: str | None) -> None:
        self.position = _QUEUED_ID
        self._after = order_of(after or _QUEUED_ID)
        self._resume_id = after or _QUEUED_ID
        self._shown: list[str] = []
        self._chars = 0
        # Whether every event up to `position` was there.
        self._whole = True
        # Whether what the reader has is what is in `_shown`.
        self._known = self._after <= order_of(_QUEUED_ID)

    def take(self, event: Event) -> Event | None:
        """Read one event, and return what to show of it."""
        is_new = order_of(event.id) > self._after
        if event.name is EventName.RESTART:
            self._shown, self._chars, self._whole = [], 0, True
            self._known = self._known or is_new
        elif not follows(self.position, event.id) or (is_new and not self._known):
            self._whole = False
        elif event.name is EventName.RESUMED:
            # The attempt goes on after what is in the stream now; Redis may have lost what was shown from it before.
            self._whole = self._whole and event.data["chars"] == self._chars
        self.position = event.id
        if event.name is EventName.TEXT and self._whole:
            self._shown.append(event.data["text"])
            self._chars += len(event.data["text"])
        if is_new and self._whole and not _is_later_start(event):
            self._resume_id = event.id
        if order_of(event.id) == self._after:
            self._known = self._whole
        # Text with a hole is worse than text at the end.
        hidden = not is_new or event.name is EventName.FINISHED or (event.name is EventName.TEXT and not self._whole)
        return None if hidden else replace(event, id=self._resume_id)

    def end(self, task: Task, event_id: str | None) -> Iterator[Event]:
        """The rest of the text, and `finished`.

        Args:
            task: Ended.
            event_id: Of its `finished`, if there is one.
        """
        # No worker's event has it: whoever resumes after an event from the record is given the whole text.
        record_id = f"{task.attempt + 1}-0"
        text = (task.result or {}).get("text")
        if isinstance(text, str):
            shown = "".join(self._shown)
            if not self._known or not text.startswith(shown):
                event_id, shown = None, ""
                yield Event(record_id, EventName.RESTART, {"attempt": task.attempt})
            if text != shown:
                event_id = None
                yield Event(record_id, EventName.TEXT, {"text": text[len(shown) :]})
        error = task.error.model_dump() if task.error else None
        yield Event(event_id or record_id, EventName.FINISHED, {"status": task.status, "error": error})


def _is_later_start(event: Event) -> bool:
    """Whether what follows may still say that Redis had lost some text before it."""
    return event.name is EventName.STARTED and order_of(event.id) > (1, 1)
