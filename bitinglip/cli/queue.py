"""`bitinglip queue`: who waits for what."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from bitinglip.cli.arguments import parse_moment
from bitinglip.cli.follow import dump_task
from bitinglip.cli.output import examples, format_table, json_option, say, write_json, write_table
from bitinglip.client import Client
from bitinglip.domain.task import Status, Task
from bitinglip.store.queries import MAX_PAGE, list_queues, list_tasks

WATCH_SECONDS = 1.0

HEADERS = ["agent", "priority", "type", "ready", "reserved", "running", "longest wait s"]


@click.group()
def queue() -> None:
    """See each agent's queues, and what failed for good."""


@queue.command("list", epilog=examples("bitinglip queue list --watch", "bitinglip queue list --agent my-bot --json"))
@click.option("--agent", "agent_id", metavar="A", help="This agent's only.")
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@json_option
def list_(agent_id: str | None, *, watch: bool, as_json: bool) -> None:
    """List the queues: an agent has one for each priority and type of task.

    `ready` waits to be given to a worker, `reserved` waits in one, `running` is generated now.
    """
    with Client() as client:
        if not watch:
            _write(_read(client, agent_id), as_json=as_json)
        elif as_json or not sys.stdout.isatty():
            _watch_lines(client, agent_id, as_json=as_json)
        else:
            _watch_screen(client, agent_id)


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


def _read(client: Client, agent_id: str | None) -> list[dict[str, Any]]:
    with client.database.transaction() as connection:
        return [dict(row._mapping) for row in list_queues(connection, agent_id)]


def _write(queues: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for item in queues:
            write_json(item)
    else:
        write_table(HEADERS, [tuple(item.values()) for item in queues])


def _watch_lines(client: Client, agent_id: str | None, *, as_json: bool) -> None:
    """Write the queues whenever a count in them has changed."""
    last: object = None
    while True:
        queues = _read(client, agent_id)
        counts = [{name: value for name, value in item.items() if name != "longest_wait_seconds"} for item in queues]
        if counts != last:
            _write(queues, as_json=as_json)
            last = counts
        time.sleep(WATCH_SECONDS)


def _watch_screen(client: Client, agent_id: str | None) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            rows = [tuple(item.values()) for item in _read(client, agent_id)]
            live.update(Text("\n".join(format_table(HEADERS, rows))), refresh=True)
            time.sleep(WATCH_SECONDS)
