"""`bitinglip queue list` and `bitinglip agent list`: who waits for what, and what part of the workers they had."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from bitinglip.cli.output import examples, format_table, json_option, say, write_json, write_table
from bitinglip.client import Client
from bitinglip.store.queries import MAX_PAGE, list_agents, list_queues

if TYPE_CHECKING:
    from rich.text import Text

WATCH_SECONDS = 1.0

_DRIFTING = frozenset({"longest_wait_seconds", "share", "due_share"})
"""What changes with the time alone: a watch writes no new lines for it."""

QUEUE_COLUMNS = {
    "agent": "agent_id",
    "priority": "priority",
    "type": "type",
    "model": "model",
    "ready": "ready",
    "later": "later",
    "reserved": "reserved",
    "running": "running",
    "weight": "weight",
    "share": "share",
    "due": "due_share",
    "wait s": "longest_wait_seconds",
    "closed": "closed",
}

AGENT_COLUMNS = {
    "agent": "id",
    "weight": "weight",
    "share": "share",
    "due": "due_share",
    "closed": "closed",
    "pending": "pending",
    "reserved": "reserved",
    "running": "in_progress",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "wait s": "longest_wait_seconds",
    "max priority": "max_priority",
    "max queued": "max_queued",
    "max running": "max_running",
    "daily s": "daily_seconds",
    "daily tokens": "daily_tokens",
    "since": "created_at",
}

Document = dict[str, Any]

watch_option = click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
limit_option = click.option("--limit", type=click.IntRange(1, 100_000), default=MAX_PAGE, show_default=True)


@click.command("list", epilog=examples("bitinglip queue list --watch", "bitinglip queue list --agent my-bot --json"))
@click.option("--agent", "agent_id", metavar="A", help="This agent's only.")
@limit_option
@watch_option
@json_option
def queues(agent_id: str | None, *, limit: int, watch: bool, as_json: bool) -> None:
    """List the queues: an agent has one for each priority, type of task and model.

    `ready` waits to be given to a worker, `later` for its time or for other tasks, `reserved` is at hand in a worker,
    `running` is generated now. `share` is the agent's part of what all used in the last hour, `due` the part that its
    weight gives it among those that asked for anything. `wait s` is for how long the oldest that is ready has been.
    """

    def read(client: Client) -> list[Document]:
        with client.database.transaction() as connection:
            return [dict(row._mapping) for row in list_queues(connection, agent_id, limit=limit)]

    _show(read, QUEUE_COLUMNS, limit=limit, watch=watch, as_json=as_json)


@click.command(
    "list", epilog=examples("bitinglip agent list --watch", "bitinglip agent list --json | jq 'select(.pending > 0)'")
)
@limit_option
@watch_option
@json_option
def agents(*, limit: int, watch: bool, as_json: bool) -> None:
    """List the agents: their weights and limits, what they had of the workers, and their tasks by status.

    `share` is its part of what all used in the last hour, `due` the part that its weight gives it among those that
    asked for anything. `closed` says why nothing of it is given to workers, `wait s` for how long the oldest of its
    tasks that are ready has been. Before a daily limit stands what was used of it today. Of each status up to 1,000 are
    counted.
    """

    def read(client: Client) -> list[Document]:
        with client.database.transaction() as connection:
            return [dict(row._mapping) for row in list_agents(connection, limit=limit)]

    _show(read, AGENT_COLUMNS, limit=limit, watch=watch, as_json=as_json)


def _show(
    read: Callable[[Client], list[Document]], columns: Mapping[str, str], *, limit: int, watch: bool, as_json: bool
) -> None:
    with Client() as client:
        if watch and not as_json and sys.stdout.isatty():
            _watch_screen(lambda: read(client), columns)
        elif watch:
            _watch_lines(lambda: read(client), columns, as_json=as_json)
        items = read(client)
    _write(items, columns, as_json=as_json)
    if len(items) == limit:
        say(f"there may be more: --limit {10 * limit}")


def _write(items: Sequence[Document], columns: Mapping[str, str], *, as_json: bool) -> None:
    if as_json:
        for item in items:
            write_json(item)
    else:
        write_table([*columns], [_make_row(item, columns) for item in items])


def _make_row(item: Document, columns: Mapping[str, str]) -> tuple[object, ...]:
    return tuple(_make_cell(item, name) for name in columns.values())


def _make_cell(item: Document, name: str) -> object:
    value = item[name]
    if value is None:
        return None
    if name.endswith("share"):
        return f"{value:.1%}".rjust(len("100.0%"))
    if name.startswith("daily_"):
        return f"{item[name.replace('daily', 'spent')]:,.10g} of {value:,.10g}"
    return value


def _watch_lines(read: Callable[[], list[Document]], columns: Mapping[str, str], *, as_json: bool) -> None:
    """Write everything whenever something in it has changed."""
    last: object = None
    while True:
        items = read()
        lasting = [{name: value for name, value in item.items() if name not in _DRIFTING} for item in items]
        if lasting != last:
            _write(items, columns, as_json=as_json)
            last = lasting
        time.sleep(WATCH_SECONDS)


def _watch_screen(read: Callable[[], list[Document]], columns: Mapping[str, str]) -> None:
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while True:
            live.update(draw(read(), columns), refresh=True)
            time.sleep(WATCH_SECONDS)


def draw(items: Sequence[Document], columns: Mapping[str, str]) -> "Text":
    """A table with a line for each item however narrow the screen is.

    Args:
        items: One a line.
        columns: Headers and what is under them. One that nobody has would push others beyond the margin: it is left
            out.
    """
    from rich.text import Text

    used = {header: name for header, name in columns.items() if any(item[name] is not None for item in items)}
    lines = format_table([*used], [_make_row(item, used) for item in items]) if items else ["nothing yet"]
    return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
