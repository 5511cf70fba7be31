"""Show a task to its end: its text or its progress as they come, or its record once it has ended."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import click

from bitinglip.cli.output import say, write_json, write_text
from bitinglip.cli.pictures import locate_pictures
from bitinglip.cli.preview import DrawingView
from bitinglip.cli.progress import ProgressLine
from bitinglip.client import Client, Handle
from bitinglip.client.pictures import makes_pictures
from bitinglip.domain.task import Status, Task
from bitinglip.errors import TaskEndedError
from bitinglip.store.queries import list_workers
from bitinglip.streams.events import Event, EventName


def follow_task(
    handle: Handle,
    *,
    after: str | None = None,
    as_json: bool = False,
    preview: bool | None = None,
    finish: Callable[[Task], None] | None = None,
) -> None:
    """Write a task's text, or each of its events as a line of JSON, as they come.

    While it waits for the download of its model, that one's progress is told: in JSON as events named `download`.

    Args:
        handle: The task.
        after: The id of the last event seen, to resume.
        as_json: Events in place of text.
        preview: Whether a picture is shown as it comes; None: where the terminal shows pictures.
        finish: Writes what a task has made that does not stream; None: `write_result`.

    Raises:
        TaskEndedError: If the task failed or was cancelled.
    """
    while (download := handle.find_download()) is not None:
        _follow_download(handle, download, as_json=as_json)
    with _TextWriter(preview=preview) as writer:
        for event in handle.stream(after):
            if as_json:
                write_json({"id": event.id, "event": event.name, **event.data})
            else:
                writer.write(event)
            if event.name is EventName.FINISHED and event.data["status"] != Status.COMPLETED:
                raise _describe_end(handle, event.data["status"], event.data.get("error"))
    if not as_json and writer.wrote_nothing:
        # Not every engine streams: the record has what it made.
        task = handle.task()
        if after is None or makes_pictures(task):
            (finish or write_result)(task)


def _follow_download(handle: Handle, download: Handle, *, as_json: bool) -> None:
    """Tell how far the download is that a task waits for, until it ends."""
    if not as_json:
        say(f"task {handle.id} waits for task {download.id}, the download of its model")
    with _TextWriter() as writer:
        for event in download.stream():
            if not as_json:
                writer.write(event)
            elif event.name is EventName.PROGRESS:
                write_json({"event": "download", "task_id": download.id, **event.data})


def wait_for_task(handle: Handle, *, as_json: bool = False, finish: Callable[[Task], None] | None = None) -> None:
    """Wait for a task's end and write its text, or its record as JSON.

    Args:
        handle: The task.
        as_json: The record.
        finish: Writes what it has made; None: `write_result`.

    Raises:
        TaskEndedError: If the task failed or was cancelled.
    """
    task = handle.wait()
    if as_json:
        write_json(dump_task(task))
    elif task.status is Status.COMPLETED:
        (finish or write_result)(task)
    if task.status is not Status.COMPLETED:
        raise _describe_end(handle, task.status, task.error.model_dump() if task.error else None)


def write_result(task: Task) -> None:
    """What a completed task made: its text where it has one, where its pictures are, or all of it as JSON."""
    result = task.result or {}
    if isinstance(result.get("text"), str):
        write_text(result["text"])
    elif makes_pictures(task):
        for place in locate_pictures(task):
            click.echo(place)
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
    """Writes the text of a stream. It is written as it is, whatever attempts it took; all else is talk.

    Args:
        preview: Whether a picture is shown as it comes; None: where the terminal shows pictures.
    """

    def __init__(self, *, preview: bool | None = None) -> None:
        self.wrote_nothing = True
        self._in_line = False
        self._progress = ProgressLine()
        self._drawing = DrawingView(preview=preview)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drawing.end()

    def write(self, event: Event) -> None:
        """Write what there is of text in one event, and say what happened in others."""
        if event.name is EventName.PROGRESS and "done_bytes" in event.data:
            self._progress.show(event.data)
            return
        if event.name is EventName.PROGRESS and "steps" in event.data:
            self._drawing.show(event.data)
            return
        self._progress.end()
        self._drawing.end()
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
