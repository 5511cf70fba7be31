"""Show a task to its end: its text or its progress as they come, or its record once it has ended."""

import sys
from typing import Any

from bitinglip.cli.output import say, write_json, write_text
from bitinglip.cli.progress import ProgressLine
from bitinglip.client import Client, Handle
from bitinglip.domain.task import Status, Task
from bitinglip.errors import TaskEndedError
from bitinglip.store.queries import list_workers
from bitinglip.streams.events import Event, EventName


def follow_task(handle: Handle, *, after: str | None = None, as_json: bool = False) -> None:
    """Write a task's text, or each of its events as a line of JSON, as they come.

    While it waits for the download of its model, that one's progress is told: in JSON as events named `download`.

    Args:
        handle: The task.
        after: The id of the last event seen, to resume.
        as_json: Events in place of text.

    Raises:
        TaskEndedError: If the task failed or was cancelled.
    """
    while (download := handle.find_download()) is not None:
        _follow_download(handle, download, as_json=as_json)
    writer = _TextWriter()
    for event in handle.stream(after):
        if as_json:
            write_json({"id": event.id, "event": event.name, **event.data})
        else:
            writer.write(event)
        if event.name is EventName.FINISHED and event.data["status"] != Status.COMPLETED:
            raise _describe_end(handle, event.data["status"], event.data.get("error"))
    if not as_json and writer.wrote_nothing and after is None:
        # Not every engine streams: the record has what it made.
        write_result(handle.task())


def _follow_download(handle: Handle, download: Handle, *, as_json: bool) -> None:
    """Tell how far the download is that a task waits for, until it ends."""
    if not as_json:
        say(f"task {handle.id} waits for task {download.id}, the download of its model")
    writer = _TextWriter()
    for event in download.stream():
        if not as_json:
            writer.write(event)
        elif event.name is EventName.PROGRESS:
            write_json({"event": "download", "task_id": download.id, **event.data})


def wait_for_task(handle: Handle, *, as_json: bool = False) -> None:
    """Wait for a task's end and write its text, or its record as JSON.

    Raises:
        TaskEndedError: If the task failed or was cancelled.
    """
    task = handle.wait()
    if as_json:
        write_json(dump_task(task))
    elif task.status is Status.COMPLETED:
        write_result(task)
    if task.status is not Status.COMPLETED:
        raise _describe_end(handle, task.status, task.error.model_dump() if task.error else None)


def write_result(task: Task) -> None:
    """What a completed task made: its text where it has one."""
    result = task.result or {}
    if isinstance(result.get("text"), str):
        write_text(result["text"])
    else:
        write_json(result)


def dump_task(task: Task) -> dict[str, Any]:
    """The record as JSON."""
    return task.model_dump(mode="json")


def warn_if_nobody_works(client: Client, kind: str) -> None:
    """Say so if no live worker does tasks of this kind: whoever waits now waits for a worker."""
    with client.database.transaction() as connection:
        workers = list_workers(connection)
    if not any(worker.alive and kind in worker.kinds for worker in workers):
        say(f"no worker does {kind!r} tasks now; start one with 'bitinglip worker start'")


def say_that_it_goes_on(handle: Handle) -> None:
    """What to know after Ctrl-C."""
    say(f"task {handle.id} goes on; 'bitinglip task follow {handle.id}' or 'bitinglip task cancel {handle.id}'")


class _TextWriter:
    """Writes the text of a stream. It is written as it is, whatever attempts it took; all else is talk."""

    def __init__(self) -> None:
        self.wrote_nothing = True
        self._in_line = False
        self._progress = ProgressLine()

    def write(self, event: Event) -> None:
        """Write what there is of text in one event, and say what happened in others."""
        if event.name is EventName.PROGRESS and "done_bytes" in event.data:
            self._progress.show(event.data)
            return
        self._progress.end()
        match event.name:
            case EventName.TEXT:
                text = event.data["text"]
                write_text(text, newline=False)
                self.wrote_nothing = self.wrote_nothing and not text
                self._in_line = not text.endswith("\n") if text else self._in_line
            case EventName.RESTART:
                if not self.wrote_nothing:
                    self._end_line()
                    say("the text above is void; it begins again")
                self.wrote_nothing = True
            case EventName.RETRIED:
                self._say(f"attempt {event.data['attempt']} failed: {_message_of(event)}; it is tried again")
            case EventName.RELEASED:
                self._say(f"attempt {event.data['attempt']} was lost: {_message_of(event)}; another one follows")
            case EventName.FINISHED:
                self._end_line()

    def _say(self, message: str) -> None:
        """Talk in the middle of a text, which may go on: a terminal shows both, stdout holds only the text."""
        if self._in_line and sys.stdout.isatty():
            say("")
        say(message)

    def _end_line(self) -> None:
        if self._in_line:
            write_text("")
            self._in_line = False


def _message_of(event: Event) -> str:
    return (event.data.get("error") or {}).get("message") or "nobody knows why"


def _describe_end(handle: Handle, status: str, error: dict[str, Any] | None) -> TaskEndedError:
    code, message = (error["code"], error["message"]) if error else (status, status)
    return TaskEndedError(handle.id, status, code, message)
