"""`bitinglip agent next | renew | complete | fail`: the work that an agent takes and does itself, from a shell.

Nobody renews the lease between two commands: a script that takes longer than it says so with `renew`.
"""

import json
from typing import Any

import click

from bitinglip.cli.arguments import parse_json_object
from bitinglip.cli.fields import name_options
from bitinglip.cli.follow import dump_task
from bitinglip.cli.output import examples, json_option, say, write_json, write_table
from bitinglip.client import Client, TakenTask

LEASE_SECONDS = 300.0
"""Longer than a program's: a shell does not renew by itself."""

_id_argument = click.argument("task_id", metavar="ID")
_token_option = click.option("--token", required=True, metavar="T", help="As 'agent next' wrote it.")


@click.command(
    "next",
    epilog=examples(
        "bitinglip agent next --agent my-bot --timeout 60",
        "taken=$(bitinglip agent next --agent my-bot --json)",
        "bitinglip agent complete $(jq -r .task.id <<< $taken) --token $(jq -r .token <<< $taken)",
    ),
)
@click.option("--agent", required=True, metavar="A", help="Whose tasks.")
@click.option("--channel", metavar="C", help="This channel's only.")
@click.option("--timeout", type=float, metavar="S", help="Wait so long for one.  [default: for ever]")
@click.option("--lease", "lease_seconds", type=float, metavar="S", default=LEASE_SECONDS, show_default=True)
@json_option
@click.pass_context
def next_(
    ctx: click.Context,
    /,
    agent: str,
    *,
    channel: str | None,
    timeout: float | None,
    lease_seconds: float,
    as_json: bool,
) -> None:
    """Take the agent's next task of type `agent`, most urgent and then oldest first, and write it and its token.

    Whoever has the token has the task, for --lease seconds; then it is given to the next who asks. Exits with 1 if
    there is none within --timeout.
    """
    with Client() as client:
        with name_options():
            taken = client.next(agent, timeout, channel=channel, lease_seconds=lease_seconds)
        if taken is None:
            say(f"no task for agent {agent!r} within {timeout:g} s")
            ctx.exit(1)
        _write(taken, as_json=as_json)


@click.command(epilog=examples("bitinglip agent renew $id --token $token --lease 600"))
@_id_argument
@_token_option
@click.option("--lease", "lease_seconds", type=float, metavar="S", default=LEASE_SECONDS, show_default=True)
@json_option
def renew(task_id: str, token: str, lease_seconds: float, *, as_json: bool) -> None:
    """Keep a task for --lease seconds from now, and hear whether it was cancelled."""
    with Client() as client, name_options():
        cancelled = client.taken(task_id, token).keep(lease_seconds)
    _tell(task_id, "cancelling" if cancelled else "renewed", as_json=as_json)


@click.command(epilog=examples('bitinglip agent complete $id --token $token --result \'{"text": "done"}\''))
@_id_argument
@_token_option
@click.option("--result", metavar="JSON", callback=parse_json_object, help="A JSON object.")
@json_option
def complete(task_id: str, token: str, result: dict[str, Any] | None, *, as_json: bool) -> None:
    """Record that a task is done."""
    with Client() as client, name_options():
        client.taken(task_id, token).complete(result)
    _tell(task_id, "completed", as_json=as_json)


@click.command(epilog=examples("bitinglip agent fail $id --token $token --message 'no such meeting'"))
@_id_argument
@_token_option
@click.option("--message", required=True, metavar="M", help="Why, for people.")
@click.option("--code", metavar="C", default="agent_failed", show_default=True, help="Why, for programs.")
@click.option("--retryable", is_flag=True, help="Let it be tried again, as long as it has attempts.")
@json_option
def fail(task_id: str, token: str, message: str, code: str, *, retryable: bool, as_json: bool) -> None:
    """Record that a task failed."""
    with Client() as client, name_options():
        client.taken(task_id, token).fail(message, code=code, retryable=retryable)
        status = client.get(task_id).status
    _tell(task_id, "retried" if status == "pending" else status, as_json=as_json)


def _write(taken: TakenTask, *, as_json: bool) -> None:
    task = taken.task
    if as_json:
        write_json({"task": dump_task(task), "token": taken.token})
        return
    rows: list[tuple[str, object]] = [
        ("id", task.id),
        ("token", taken.token),
        ("title", task.title),
        ("description", task.description),
        ("priority", task.priority),
        ("channel", task.channel_id),
        ("attempt", task.attempt),
        ("payload", json.dumps(task.payload.get("payload", {}), ensure_ascii=False)),
    ]
    write_table(["field", "value"], [row for row in rows if row[1] is not None])


def _tell(task_id: str, outcome: str, *, as_json: bool) -> None:
    if as_json:
        write_json({"id": task_id, "outcome": outcome})
    else:
        click.echo(f"{task_id} {outcome}")
