"""`bitinglip task`: what became of the tasks."""

from typing import Any

import click

from bitinglip.cli.arguments import parse_event_id
from bitinglip.cli.changes import cancel, delete, retry, update
from bitinglip.cli.explain import explain
from bitinglip.cli.filters import error_option, filter_options, status_option
from bitinglip.cli.follow import dump_task, follow_task, say_that_it_goes_on, write_result
from bitinglip.cli.output import examples, json_option, say, write_json, write_table
from bitinglip.client import Client
from bitinglip.client.filters import LARGEST_SEQ
from bitinglip.domain.task import Attempt, Status, Task
from bitinglip.store.queries import MAX_PAGE, list_tasks


@click.group()
def task() -> None:
    """List, show, explain, follow, change, cancel, retry and delete tasks."""


for command in (explain, cancel, retry, update, delete):
    task.add_command(command)


@task.command(
    "list",
    epilog=examples(
        "bitinglip task list --status failed --since 1h", "bitinglip task list --agent my-bot --json | jq .result.text"
    ),
)
@status_option(*Status)
@filter_options
@error_option
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
    """Write a task's text, or how far its pictures are, as it comes, from its beginning to its end."""
    with Client() as client:
        handle = client.handle(task_id)
        try:
            follow_task(handle, after=after, as_json=as_json)
        except KeyboardInterrupt:
            say_that_it_goes_on(handle)
            raise


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
        ("not before", found.not_before),
        ("expires", found.expires_at if found.queue_state and not found.started_at else None),
        ("after", ", ".join(map(str, found.depends_on)) or None),
        ("idempotency key", found.idempotency_key),
        ("error", f"{found.error.code}: {found.error.message}" if found.error else None),
        ("usage", ", ".join(f"{name} {value}" for name, value in (found.usage or {}).items()) or None),
        ("metadata", found.metadata or None),
    ]
    write_table(["field", "value"], [row for row in rows if row[1] is not None])
    if attempts:
        click.echo()
        write_table(
            ["attempt", "outcome", "worker", "started", "finished", "engine s", "tokens", "error"],
            [_attempt_row(attempt) for attempt in attempts],
        )
    if found.status is Status.COMPLETED:
        click.echo()
        write_result(found)


def _attempt_row(attempt: Attempt) -> tuple[object, ...]:
    usage = attempt.usage or {}
    error = attempt.error
    return (
        attempt.attempt,
        attempt.outcome,
        attempt.worker_name,
        attempt.started_at,
        attempt.finished_at,
        usage.get("engine_seconds"),
        usage.get("total_tokens"),
        f"{error.code}: {error.message}" if error else None,
    )


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
