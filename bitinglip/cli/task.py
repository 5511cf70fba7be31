"""`bitinglip task`: what became of the tasks."""

from typing import Any

import click

from bitinglip.cli.arguments import parse_event_id, parse_moment
from bitinglip.cli.follow import dump_task, follow_task, say_that_it_goes_on, write_result
from bitinglip.cli.output import examples, json_option, say, write_json, write_table
from bitinglip.client import Client
from bitinglip.domain.catalogue import find_kinds
from bitinglip.domain.task import Attempt, Status, Task, parse_task_id
from bitinglip.errors import TaskNotFoundError
from bitinglip.lifecycle.cancel import cancel
from bitinglip.store.queries import MAX_PAGE, list_tasks

LARGEST_SEQ = 2**63 - 1


@click.group()
def task() -> None:
    """List, show, follow and cancel tasks."""


@task.command(
    "list",
    epilog=examples(
        "bitinglip task list --status failed --since 1h", "bitinglip task list --agent my-bot --json | jq .result.text"
    ),
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in Status]),
    help="May be repeated.",
)
@click.option("--agent", "agent_id", metavar="A")
@click.option("--channel", "channel_id", metavar="C")
@click.option("--type", "type_", type=click.Choice(sorted(find_kinds())))
@click.option("--model", metavar="M")
@click.option("--since", metavar="TIME", callback=parse_moment, help="Created since 10m, 2h, 1d, 2026-01-31T18:00.")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=50, show_default=True)
@click.option("--before", "before_seq", type=click.IntRange(1, LARGEST_SEQ), metavar="SEQ", help="The next page.")
@json_option
def list_(*, as_json: bool, limit: int, **filters: Any) -> None:
    """List tasks, newest first."""
    with Client() as client, client.database.transaction() as connection:
        tasks = list_tasks(connection, limit=limit, **filters)
    if as_json:
        for item in tasks:
            write_json(dump_task(item))
    else:
        write_table(
            ["seq", "id", "status", "priority", "agent", "type", "created", "title"],
            [(t.seq, t.id, t.status, t.priority, t.agent_id, t.type, t.created_at, _shorten(t.title)) for t in tasks],
        )
    if len(tasks) == limit:
        say(f"there may be more: --before {tasks[-1].seq}")


@task.command(epilog=examples("bitinglip task show 01890a5d-ac96-774b-bcce-b302099a8057 --json"))
@click.argument("task_id", metavar="ID")
@json_option
def show(task_id: str, *, as_json: bool) -> None:
    """Show one task: its record, its result, its attempts."""
    with Client() as client:
        found = client.get(task_id)
        attempts = client.attempts(task_id)
    if as_json:
        write_json({**dump_task(found), "attempts": [attempt.model_dump(mode="json") for attempt in attempts]})
    else:
        _write_record(found, attempts)


@task.command(epilog=examples("bitinglip task follow 01890a5d-ac96-774b-bcce-b302099a8057 --json --after 1-17"))
@click.argument("task_id", metavar="ID")
@click.option("--after", metavar="EVENT_ID", callback=parse_event_id, help="Resume after this event (see --json).")
@json_option
def follow(task_id: str, after: str | None, *, as_json: bool) -> None:
    """Write a task's text as it comes, from its beginning to its end."""
    with Client() as client:
        handle = client.handle(task_id)
        try:
            follow_task(handle, after=after, as_json=as_json)
        except KeyboardInterrupt:
            say_that_it_goes_on(handle)
            raise


@task.command(
    "cancel",
    epilog=examples(
        "bitinglip task cancel 01890a5d-ac96-774b-bcce-b302099a8057",
        "bitinglip task list --agent my-bot --status pending --json | jq -r .id | xargs bitinglip task cancel",
    ),
)
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@json_option
@click.pass_context
def cancel_(ctx: click.Context, task_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Cancel tasks: waiting ones at once, running ones at their next step.

    Exits with 3 if a task is not known, else with 1 if one had ended before.
    """
    worst = 0
    with Client() as client:
        for text in task_ids:
            outcome = _cancel_one(client, text)
            worst = max(worst, {"not_found": TaskNotFoundError.exit_code, "ended": 1}.get(outcome, 0))
            if as_json:
                write_json({"id": text, "outcome": outcome})
            else:
                click.echo(f"{text} {outcome}")
    ctx.exit(worst)


def _cancel_one(client: Client, text: str) -> str:
    """What became of it: cancelled, cancelling, ended (before), not_found."""
    try:
        task_id = parse_task_id(text)
        done = cancel(client.database, [task_id])
        if task_id in done:
            return "cancelled" if done[task_id] else "cancelling"
        client.get(task_id)
    except TaskNotFoundError:
        return "not_found"
    return "ended"


def _write_record(found: Task, attempts: list[Attempt]) -> None:
    standing = f"{found.status} ({found.queue_state})" if found.queue_state else str(found.status)
    rows: list[tuple[str, object]] = [
        ("id", found.id),
        ("title", found.title),
        ("description", found.description),
        ("status", standing),
        ("type", found.type),
        ("model", found.model),
        ("priority", found.priority),
        ("agent", found.agent_id),
        ("user", found.user_id),
        ("channel", found.channel_id),
        ("created", found.created_at),
        ("started", found.started_at),
        ("finished", found.finished_at),
        ("attempt", f"{found.attempt} ({found.failures} of {found.max_attempts} failed)"),
        ("error", f"{found.error.code}: {found.error.message}" if found.error else None),
        ("usage", ", ".join(f"{name} {value}" for name, value in (found.usage or {}).items()) or None),
        ("metadata", found.metadata or None),
    ]
    write_table(["field", "value"], [row for row in rows if row[1] is not None])
    if attempts:
        click.echo()
        write_table(
            ["attempt", "outcome", "worker", "started", "finished", "error"],
            [
                (a.attempt, a.outcome, a.worker_name, a.started_at, a.finished_at, a.error.message if a.error else None)
                for a in attempts
            ],
        )
    if found.status is Status.COMPLETED:
        click.echo()
        write_result(found)


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
