"""`bitinglip queue`: who waits for what."""

from typing import Any

import click

from bitinglip.cli.arguments import parse_moment
from bitinglip.cli.follow import dump_task
from bitinglip.cli.output import examples, json_option, say, write_json, write_table
from bitinglip.cli.overviews import queues
from bitinglip.client import Client
from bitinglip.domain.task import Status, Task
from bitinglip.store.queries import MAX_PAGE, list_tasks


@click.group()
def queue() -> None:
    """See each agent's queues, and what failed for good."""


queue.add_command(queues)


@queue.command(
    epilog=examples(
        "bitinglip queue dead --agent my-bot --since 1d",
        "bitinglip queue dead --json | jq -r 'select(.error.code == \"expired\").id' | xargs bitinglip task retry",
    )
)
@click.option("--agent", "agent_id", metavar="A", help="This agent's only.")
@click.option("--since", metavar="TIME", callback=parse_moment, help="Created since 10m, 2h, 1d, 2026-01-31T18:00.")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=50, show_default=True)
@json_option
def dead(*, limit: int, as_json: bool, **filters: Any) -> None:
    """List the tasks that failed for good, newest first, and why; `bitinglip task retry` lets them run again."""
    with Client() as client, client.database.transaction() as connection:
        tasks = list_tasks(connection, statuses=[Status.FAILED], limit=limit, **filters)
    if as_json:
        for task in tasks:
            write_json(dump_task(task))
    else:
        headers = ["id", "agent", "type", "failed", "attempts", "code", "message"]
        write_table(headers, [_dead_row(task) for task in tasks])
    if len(tasks) == limit:
        say(f"there may be more: bitinglip task list --status failed --before {tasks[-1].seq}")


def _dead_row(task: Task) -> tuple[object, ...]:
    code, message = (task.error.code, task.error.message) if task.error else (None, None)
    return task.id, task.agent_id, task.type, task.finished_at, task.attempt, code, message
