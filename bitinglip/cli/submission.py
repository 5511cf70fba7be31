"""What the submission of every kind of task shares: options, the recording, the wait for the end."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from bitinglip.cli.arguments import parse_due, parse_json_object
from bitinglip.cli.explain import write_quote
from bitinglip.cli.fields import name_options
from bitinglip.cli.follow import follow_task, say_that_it_goes_on, wait_for_task, warn_if_nobody_works
from bitinglip.cli.output import json_option, say, write_json
from bitinglip.client import Client, Handle
from bitinglip.domain.catalogue import get_kind
from bitinglip.domain.task import Priority
from bitinglip.errors import InvalidRequestError, TaskNotFoundError
from bitinglip.registry.locate import BUNDLED

C = TypeVar("C", bound=Callable[..., Any])

_SHARED_OPTIONS = [
    click.option("--agent", metavar="A", help="Who asks: at most 100 characters.  [default: default]"),
    click.option("--user", metavar="U", help="On whose behalf."),
    click.option("--priority", type=click.Choice([priority.value for priority in Priority]), help="[default: medium]"),
    click.option("--channel", metavar="C", help="A chat channel's id: 17 to 19 digits."),
    click.option("--description", metavar="D", help="For people, at most 2,000 characters."),
    click.option("--metadata", metavar="JSON", callback=parse_json_object, help="A JSON object of your own."),
    click.option("--ttl", type=int, metavar="SECONDS", help="Fail if it waits longer: 300 to 86,400.  [default: 3600]"),
    click.option("--at", "not_before", metavar="TIME", callback=parse_due, help="Not before +10m, 2026-01-31T18:00."),
    click.option(
        "--after", "depends_on", multiple=True, metavar="TASK", help="Not before this one has completed; repeatable."
    ),
    click.option("--idempotency-key", metavar="K", help="Submitting again with it gives the same task."),
    click.option(
        "--quote", is_flag=True, help="Only say when it would run and what it would cost; nothing is recorded."
    ),
    click.option("--wait", is_flag=True, help="Wait for the end and write the result (with --json: the record)."),
    click.option(
        "--follow", is_flag=True, help="Write the text or the progress as it comes (with --json: each event)."
    ),
    json_option,
]


title_option = click.option("--title", metavar="T", help="For people.  [default: made from the prompt]")


def shared_options(command: C) -> C:
    """The options of every kind of task."""
    for option in reversed(_SHARED_OPTIONS):
        command = option(command)
    return command


def submit_task(kind: str, *, quote: bool, wait: bool, follow: bool, as_json: bool, **fields: Any) -> None:
    """Record a task, or quote it, and do as the shared options say.

    Args:
        kind: Of task.
        quote: Nothing is recorded.
        wait: For the end.
        follow: To the end.
        as_json: In place of text.
        **fields: As `Client.submit` takes them; None: not given.

    Raises:
        UsageError: If the options exclude each other.
        BitingLipError: As for `Client.submit`, in the options' words; or if the task that is awaited does not complete.
    """
    refuse_contradiction(quote=quote, wait=wait, follow=follow)
    given = keep_given(fields)
    with Client() as client:
        if quote:
            write_quote(client, kind, given, as_json=as_json)
            return
        handle = record_task(client, kind, given)
        if wait or follow:
            show = follow_task if follow else wait_for_task
            await_end(client, handle, kind, lambda: show(handle, as_json=as_json))
        else:
            write_receipt(handle, as_json=as_json)


def refuse_contradiction(*, quote: bool, wait: bool, follow: bool) -> None:
    """See that at most one of the ways to go on is chosen.

    Raises:
        UsageError: If more are.
    """
    if quote + wait + follow > 1:
        raise click.UsageError("--quote, --wait and --follow exclude each other; give one")


def keep_given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were given."""
    return {name: value for name, value in fields.items() if value is not None}


def record_task(client: Client, kind: str, fields: Mapping[str, Any]) -> Handle:
    """Submit a task; what is wrong is said of options.

    Raises:
        BitingLipError: As for `Client.submit`.
    """
    with name_options():
        try:
            return client.submit(kind, **fields)
        except TaskNotFoundError as exc:
            # A picture to start from makes its maker a parent.
            option = "--after" if fields.get("depends_on") else "--image"
            exc.args = (f"{option}: {exc}",)
            raise


def write_receipt(handle: Handle, *, as_json: bool) -> None:
    """Write the id of a task that nobody waits for."""
    if as_json:
        # An idempotency key may have found a task that has ended long ago.
        write_json({"id": handle.id, "status": handle.status})
    else:
        click.echo(handle.id)


def await_end(client: Client, handle: Handle, kind: str, show: Callable[[], None]) -> None:
    """Show a task to its end.

    Args:
        client: Where it was submitted.
        handle: The task.
        kind: Of task.
        show: Waits and writes.

    Raises:
        KeyboardInterrupt: If the person has enough; what becomes of the task is said.
    """
    try:
        say(f"task {handle.id}")
        if get_kind(kind).engine is not None:
            warn_if_nobody_works(client, kind)
        show()
    except KeyboardInterrupt:
        say_that_it_goes_on(handle)
        raise


def read_prompt(prompt: str) -> str:
    """The argument, or all of stdin but the newline that ends its last line."""
    if prompt != "-":
        return prompt
    content = sys.stdin.buffer.read()
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as exc:
        remedy = f"stdin is not UTF-8 at byte {exc.start}; encode it so"
        raise InvalidRequestError("PROMPT", content[exc.start :][:8], remedy) from exc


def find_model(model: str) -> str:
    """A folder by its full path: the worker that opens it stands elsewhere."""
    path = Path(model).expanduser()
    return model if model in BUNDLED or not path.is_dir() else str(path.resolve())
