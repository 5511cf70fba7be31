"""`bitinglip submit`: a prompt becomes a task, and perhaps an answer."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from bitinglip.cli.arguments import parse_due, parse_json_object, read_json_object
from bitinglip.cli.explain import write_quote
from bitinglip.cli.fields import name_options
from bitinglip.cli.follow import follow_task, say_that_it_goes_on, wait_for_task, warn_if_nobody_works
from bitinglip.cli.output import examples, json_option, say, write_json
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
    click.option("--wait", is_flag=True, help="Wait for the end and write the text (with --json: the record)."),
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


@click.group()
def submit() -> None:
    """Submit a task. Without --wait or --follow it writes the task's id and is done."""


@submit.command(
    "text",
    epilog=examples(
        'bitinglip submit text "What is the capital of Peru?" --follow',
        "bitinglip submit text - --agent my-bot --priority high --wait < question.txt",
        'id=$(bitinglip submit text "What is 17 plus 25?" --temperature 0)',
        'bitinglip submit text "What is the capital of Peru?" --quote --json',
        'bitinglip submit text "And who governs it?" --after $id --at "in 10m" --ttl 600',
        "bitinglip task show $id --json",
    ),
)
@click.argument("prompt")
@click.option("--model", metavar="M", default="demo", show_default=True, help="A model's name, or a folder.")
@click.option("--max-tokens", type=int, metavar="N", help="New tokens at most.  [default: 512]")
@click.option("--temperature", type=float, metavar="T", help="0 to 2; 0 takes the likeliest.  [default: 0.7]")
@click.option("--top-p", type=float, metavar="P", help="Choose among the likeliest tokens that add up to P.")
@click.option("--top-k", type=int, metavar="K", help="Choose among the K likeliest tokens; 0: among all.")
@click.option("--seed", type=int, metavar="N", help="The same seed chooses the same tokens.")
@click.option("--stop", multiple=True, metavar="S", help="End before this text; may be repeated.")
@click.option("--repetition-penalty", type=float, metavar="R", help="Above 1 avoids what was said.  [default: 1]")
@click.option(
    "--json-schema", metavar="FILE", callback=read_json_object, help="Make a JSON document of this JSON schema."
)
@title_option
@shared_options
def submit_text(prompt: str, model: str, stop: tuple[str, ...], **options: Any) -> None:
    """Generate text from PROMPT; `-` reads it from stdin."""
    _submit("text", prompt=_read_prompt(prompt), model=_find_folder(model), stop=list(stop), **options)


@submit.command(
    "embedding",
    epilog=examples(
        'bitinglip submit embedding "The capital of Peru" "Lima" --wait | jq .embeddings',
        "bitinglip submit embedding - --model org/name --dimensions 256 < passage.txt",
    ),
)
@click.argument("texts", nargs=-1, required=True)
@click.option("--model", metavar="M", default="demo", show_default=True, help="A model's name, or a folder.")
@click.option("--dimensions", type=int, metavar="N", help="Keep the first N of each vector.  [default: all]")
@click.option("--normalize/--no-normalize", default=None, help="Give vectors the length 1.  [default: normalize]")
@click.option("--title", metavar="T", help="For people.  [default: made from the first text]")
@shared_options
def submit_embedding(texts: tuple[str, ...], model: str, **options: Any) -> None:
    """Make a vector of each of TEXTS; `-` reads one from stdin."""
    _submit("embedding", input=[_read_prompt(text) for text in texts], model=_find_folder(model), **options)


@submit.command(
    "echo",
    epilog=examples(
        "bitinglip submit echo hello --seconds 2 --chunks 5 --follow",
        "bitinglip submit echo hello --fail retryable --fail-attempts 1 --wait",
    ),
)
@click.argument("text", default="")
@click.option("--seconds", type=float, metavar="S", help="How long it takes.  [default: 0]")
@click.option("--chunks", type=int, metavar="N", help="In how many pieces the text comes.  [default: 1]")
@click.option("--fail", metavar="HOW", help="error, retryable, out_of_memory, crash (of the engine) or hang.")
@click.option("--fail-attempts", type=int, metavar="N", help="Fail on the first N attempts only.")
@title_option
@shared_options
def submit_echo(text: str, **options: Any) -> None:
    """Give TEXT back, after a while, or fail as told: for tests of what you build on BitingLip."""
    _submit("echo", text=text, **options)


@submit.command(
    "download",
    epilog=examples(
        "bitinglip submit download org/name --follow",
        "id=$(bitinglip submit download org/name --revision v1.0)",
        'bitinglip submit text "What is the capital of Peru?" --model org/name@v1.0 --follow',
    ),
)
@click.argument("model")
@click.option("--revision", metavar="R", help="A branch, a tag or a commit.  [default: main]")
@title_option
@shared_options
def submit_download(model: str, **options: Any) -> None:
    """Fetch MODEL, organisation/name on the hub, for every worker.

    If somebody has asked for the model already, the id is that of the task that fetches it.
    """
    _submit("download", model=model, **options)


@submit.command(
    "agent",
    epilog=examples(
        "bitinglip submit agent 'Write the minutes' --agent my-bot --payload '{\"meeting\": 17}'",
        "bitinglip agent next --agent my-bot --json",
    ),
)
@click.argument("title")
@click.option("--payload", metavar="JSON", callback=parse_json_object, help="A JSON object: all that the agent needs.")
@shared_options
def submit_agent(title: str, **options: Any) -> None:
    """Submit work that the agent takes itself, with `bitinglip agent next` or the client's `next`."""
    _submit("agent", title=title, **options)


def _submit(kind: str, *, quote: bool, wait: bool, follow: bool, as_json: bool, **fields: Any) -> None:
    if quote + wait + follow > 1:
        raise click.UsageError("--quote, --wait and --follow exclude each other; give one")
    given = {name: value for name, value in fields.items() if value is not None}
    with Client() as client:
        if quote:
            write_quote(client, kind, given, as_json=as_json)
            return
        handle = _record(client, kind, given)
        if wait or follow:
            _await_end(client, handle, kind, follow=follow, as_json=as_json)
        elif as_json:
            # An idempotency key may have found a task that has ended long ago.
            write_json({"id": handle.id, "status": handle.status})
        else:
            click.echo(handle.id)


def _record(client: Client, kind: str, fields: Mapping[str, Any]) -> Handle:
    with name_options():
        try:
            return client.submit(kind, **fields)
        except TaskNotFoundError as exc:
            exc.args = (f"--after: {exc}",)
            raise


def _await_end(client: Client, handle: Handle, kind: str, *, follow: bool, as_json: bool) -> None:
    try:
        say(f"task {handle.id}")
        if get_kind(kind).engine is not None:
            warn_if_nobody_works(client, kind)
        (follow_task if follow else wait_for_task)(handle, as_json=as_json)
    except KeyboardInterrupt:
        say_that_it_goes_on(handle)
        raise


def _read_prompt(prompt: str) -> str:
    """The argument, or all of stdin but the newline that ends its last line."""
    if prompt != "-":
        return prompt
    content = sys.stdin.buffer.read()
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as exc:
        remedy = f"stdin is not UTF-8 at byte {exc.start}; encode it so"
        raise InvalidRequestError("PROMPT", content[exc.start :][:8], remedy) from exc


def _find_folder(model: str) -> str:
    """A folder by its full path: the worker that opens it stands elsewhere."""
    path = Path(model).expanduser()
    return model if model in BUNDLED or not path.is_dir() else str(path.resolve())
