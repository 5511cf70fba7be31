"""Show a task to its end: its text as it comes, or its record once it has ended."""

from typing import Any

import click

from bitinglip.cli.output import say, write_json, write_text
from bitinglip.client import Client, Handle
from bitinglip.domain.task import Status, Task
from bitinglip.errors import TaskEndedError
from bitinglip.store.queries import list_workers
from bitinglip.streams.events import Event, EventName


def follow_task(handle: Handle, *, after: str | None = None, as_json: bool = False) -> None:
    """Write a task's text, or each of its events as a line of JSON, as they come.

    Args:
        handle: The task.
        after: The id of the last event seen, to resume.
        as_json: Events in place of text.

    Raises:
        TaskEndedError: If the task failed or was cancelled.
    """
    in_line = False
    for event in handle.stream(after):
        if as_json:
            write_json({"id": event.id, "event": event.name, **event.data})
        elif event.name is EventName.TEXT:
            text = event.data["text"]
            write_text(text, newline=False)
            in_line = not text.endswith("\n") if text else in_line
        elif in_line and event.name in {EventName.RETRIED, EventName.STARTED, EventName.FINISHED}:
            write_text("")
            in_line = False
        _tell(event)
        if event.name is EventName.FINISHED and event.data["status"] != Status.COMPLETED:
            raise _describe_end(handle, event.data["status"], event.data.get("error"))


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


def _tell(event: Event) -> None:
    if event.name is EventName.RETRIED:
        error = event.data.get("error") or {}
        say(f"attempt {event.data.get('attempt')} failed ({error.get('message')}); it is tried again")
    elif event.name is EventName.STARTED and event.data.get("attempt", 1) > 1:
        say(f"attempt {event.data['attempt']} starts the text again")


def _describe_end(handle: Handle, status: str, error: dict[str, Any] | None) -> TaskEndedError:
    code, message = (error["code"], error["message"]) if error else (status, click.style(status))
    return TaskEndedError(handle.id, status, code, message)
