"""Options that say which tasks are meant: by their ids, or by what they have in common."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click

from bitinglip.cli.arguments import parse_moment
from bitinglip.cli.output import say
from bitinglip.client import Client
from bitinglip.client.filters import TaskFilter, check_filter
from bitinglip.domain.catalogue import find_kinds
from bitinglip.domain.task import Status
from bitinglip.store.queries import list_ids

C = TypeVar("C", bound=Callable[..., Any])

LARGEST_COUNT = 10_000

_FILTER_OPTIONS = [
    click.option("--agent", "agent_id", metavar="A", help="This agent's only."),
    click.option("--channel", "channel_id", metavar="C", help="This channel's only."),
    click.option("--type", "type_", type=click.Choice(sorted(find_kinds()))),
    click.option("--model", metavar="M"),
    click.option("--since", metavar="TIME", callback=parse_moment, help="Created since 10m, 2h, 1d, 2026-01-31T18:00."),
]

error_option = click.option("--error", "error_code", metavar="CODE", help="That failed so: expired, poison, ...")
yes_option = click.option("--yes", is_flag=True, help="Do not ask, on a terminal, before changing what filters choose.")
ids_argument = click.argument("task_ids", metavar="[ID]...", nargs=-1)


def filter_options(command: C) -> C:
    """The filters of every command."""
    for option in reversed(_FILTER_OPTIONS):
        command = option(command)
    return command


def status_option(*statuses: Status) -> Callable[[C], C]:
    """A filter by some of the statuses."""
    choice = click.Choice([status.value for status in statuses])
    return click.option("--status", "statuses", multiple=True, type=choice, help="May be repeated.")


def choose_filter(task_ids: tuple[str, ...], filters: Mapping[str, Any]) -> TaskFilter | None:
    """The filters that were given; None if ids were, in their place.

    Raises:
        click.UsageError: If both were given, or neither.
    """
    given = cast("TaskFilter", {name: value for name, value in filters.items() if value})
    if task_ids and given:
        raise click.UsageError("give ids or filters, not both")
    if not task_ids and not given:
        raise click.UsageError("say which tasks: give ids, or a filter such as --agent")
    return None if task_ids else given


def confirm(verb: str, chosen: TaskFilter, default: TaskFilter) -> bool:
    """Ask, if somebody is there to answer, before many tasks are changed.

    Args:
        verb: What would be done to them.
        chosen: Which tasks.
        default: What holds where they do not say.
    """
    if not sys.stdin.isatty():
        return True
    filters = {**check_filter(default), **check_filter(chosen)}
    with Client() as client, client.database.transaction() as connection:
        count = len(list_ids(connection, limit=LARGEST_COUNT + 1, **filters))
    number = f"{count:,}" if count <= LARGEST_COUNT else f"more than {LARGEST_COUNT:,}"
    if click.confirm(f"{verb} {number} tasks?", err=True):
        return True
    say("nothing was changed")
    return False
