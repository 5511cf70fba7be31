"""`bitinglip task cancel | retry | update | delete`: what people change in tasks.

By ids each is told of on a line of its own, and what was refused by a message on stderr; the exit code is the worst
one's. By filters how many there were is told.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import click

from bitinglip.cli.arguments import parse_json_object
from bitinglip.cli.failures import report_failure
from bitinglip.cli.fields import name_options
from bitinglip.cli.filters import (
    choose_filter,
    confirm,
    error_option,
    filter_options,
    ids_argument,
    status_option,
    yes_option,
)
from bitinglip.cli.follow import dump_task
from bitinglip.cli.output import examples, json_option, say, write_json
from bitinglip.client import TaskFilter, TaskManager
from bitinglip.domain.task import Priority, Status
from bitinglip.errors import ConflictError, TaskNotFoundError
from bitinglip.store.tasks import Change

OPEN = TaskFilter(statuses=[Status.PENDING, Status.IN_PROGRESS])
FAILED = TaskFilter(statuses=[Status.FAILED])
EVERY = TaskFilter()


@click.command(
    epilog=examples(
        "bitinglip task cancel 01890a5d-ac96-774b-bcce-b302099a8057",
        "bitinglip task cancel --agent my-bot --status pending --yes",
    )
)
@ids_argument
@filter_options
@status_option(Status.PENDING, Status.IN_PROGRESS)
@yes_option
@json_option
@click.pass_context
def cancel(ctx: click.Context, /, task_ids: tuple[str, ...], *, yes: bool, as_json: bool, **filters: Any) -> None:
    """Cancel tasks: waiting ones at once, running ones at their next step.

    Exits with 3 if a task is not known, else with 1 if one had ended before.
    """
    chosen = choose_filter(task_ids, filters)
    with TaskManager() as tasks:
        if chosen is None:
            ctx.exit(_change_each(task_ids, lambda task_id: _cancel_one(tasks, task_id), "ended", as_json=as_json))
        if not yes and not confirm("cancel", chosen, OPEN):
            ctx.exit(1)
        _write_counts(tasks.cancel_matching(**chosen), ["cancelled", "cancelling"], _name_cancelled, as_json=as_json)


@click.command(
    epilog=examples(
        "bitinglip task retry 01890a5d-ac96-774b-bcce-b302099a8057",
        "bitinglip task retry --error time_limit --since 1d --yes",
    )
)
@ids_argument
@filter_options
@error_option
@yes_option
@json_option
@click.pass_context
def retry(ctx: click.Context, /, task_ids: tuple[str, ...], *, yes: bool, as_json: bool, **filters: Any) -> None:
    """Let failed tasks run again, with all their attempts before them.

    Exits with 3 if a task is not known, else with 1 if one has not failed.
    """
    chosen = choose_filter(task_ids, filters)
    with TaskManager() as tasks:
        if chosen is None:
            ctx.exit(_change_each(task_ids, lambda task_id: _retry_one(tasks, task_id), "not_failed", as_json=as_json))
        if not yes and not confirm("retry", chosen, FAILED):
            ctx.exit(1)
        _write_counts(tasks.retry_matching(**chosen), ["retried"], lambda _: "retried", as_json=as_json)


@click.command(
    epilog=examples(
        "bitinglip task delete 01890a5d-ac96-774b-bcce-b302099a8057 --hard",
        "bitinglip task delete --agent old-bot --hard --yes",
    )
)
@ids_argument
@filter_options
@status_option(*Status)
@error_option
@click.option("--hard", is_flag=True, help="Delete the records, results and attempts for good.")
@yes_option
@json_option
@click.pass_context
def delete(
    ctx: click.Context, /, task_ids: tuple[str, ...], *, hard: bool, yes: bool, as_json: bool, **filters: Any
) -> None:
    """Delete tasks: softly, which cancels them and keeps their records, or for good with --hard.

    What runs is not deleted for good: cancel it first. Exits with 3 if a task is not known, else with 1 if one could
    not be deleted.
    """
    chosen = choose_filter(task_ids, filters)
    with TaskManager() as tasks:
        if chosen is None:
            delete_one = _delete_one if hard else _cancel_one
            refused = "not_deleted" if hard else "ended"
            code = _change_each(task_ids, lambda task_id: delete_one(tasks, task_id), refused, as_json=as_json)
            if code == ConflictError.exit_code and not hard:
                say("what has ended is deleted, record and all, with --hard")
            ctx.exit(code)
        if not yes and not confirm("delete for good" if hard else "cancel", chosen, EVERY if hard else OPEN):
            ctx.exit(1)
        if hard:
            _write_counts(tasks.delete_matching(**chosen), ["deleted"], lambda _: "deleted", as_json=as_json)
        else:
            cancelled = tasks.cancel_matching(**chosen)
            _write_counts(cancelled, ["cancelled", "cancelling"], _name_cancelled, as_json=as_json)


@click.command(epilog=examples("bitinglip task update 01890a5d-ac96-774b-bcce-b302099a8057 --priority high"))
@click.argument("task_id", metavar="ID")
@click.option("--title", metavar="T")
@click.option("--description", metavar="D")
@click.option("--priority", type=click.Choice([priority.value for priority in Priority]), help="Of one that waits.")
@click.option("--metadata", metavar="JSON", callback=parse_json_object, help="Merged with what is there.")
@json_option
def update(task_id: str, *, as_json: bool, **fields: Any) -> None:
    """Change what a task is called, how urgent it is, or its metadata."""
    given = {name: value for name, value in fields.items() if value is not None}
    if not given:
        raise click.UsageError("nothing to change: give --title, --description, --priority or --metadata")
    with TaskManager() as tasks:
        with name_options():
            changed = tasks.update(task_id, **given)
        if as_json:
            write_json(dump_task(changed))
        else:
            click.echo(f"{changed.id} updated")


def _change_each(task_ids: Sequence[str], change: Callable[[str], str], refused: str, *, as_json: bool) -> int:
    """Change one after the other and tell of each; returns the worst exit code."""
    worst = 0
    for task_id in task_ids:
        try:
            outcome = change(task_id)
        except TaskNotFoundError as exc:
            outcome = "not_found"
            worst = max(worst, report_failure(exc, as_json=as_json))
        except ConflictError as exc:
            outcome = refused
            worst = max(worst, report_failure(exc, as_json=as_json))
        if as_json:
            write_json({"id": task_id, "outcome": outcome})
        else:
            click.echo(f"{task_id} {outcome}")
    return worst


def _cancel_one(tasks: TaskManager, task_id: str) -> str:
    return "cancelled" if tasks.cancel(task_id).status is Status.CANCELLED else "cancelling"


def _retry_one(tasks: TaskManager, task_id: str) -> str:
    tasks.retry(task_id)
    return "retried"


def _delete_one(tasks: TaskManager, task_id: str) -> str:
    tasks.delete(task_id, hard=True)
    return "deleted"


def _name_cancelled(change: Change) -> str:
    return "cancelled" if change.status == Status.CANCELLED else "cancelling"


def _write_counts(
    changes: Sequence[Change], names: Sequence[str], name: Callable[[Change], str], *, as_json: bool
) -> None:
    counts = {**dict.fromkeys(names, 0), **Counter(map(name, changes))}
    if as_json:
        write_json(counts)
    else:
        click.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or f"0 {names[0]}")
