"""Chores: Celery tasks that generate nothing. Any worker runs them, in a thread that takes no task's slot.

    from bitinglip.chores import retry_tasks
    retry_tasks.delay(agent_id="my-bot", error_code="out_of_memory")

Each may be run twice, and by two workers at once. One that ends half way, or is lost with Redis, is made up for by the
next. What it did is logged, and is its result in Flower.
"""

import uuid
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from bitinglip.beat.schedule import Chore
from bitinglip.celery_app import app, task_name
from bitinglip.client import Client
from bitinglip.client.manager import TaskManager
from bitinglip.domain.task import parse_task_id
from bitinglip.errors import InvalidRequestError
from bitinglip.lifecycle.edit import purge
from bitinglip.lifecycle.report import store_report, store_reports_until_yesterday
from bitinglip.settings import TaskSettings, load_settings
from bitinglip.telemetry import get_logger

_OPTIONS = {"acks_late": True, "ignore_result": True, "shared": False}

log = get_logger()


@app.task(name=task_name(Chore.PURGE_FINISHED), **_OPTIONS)
def purge_finished() -> dict[str, int]:
    """Delete the tasks that finished longer ago than TASK_RETENTION_DAYS; returns how many."""
    with Client(connections=1) as client:
        purged = purge(client.database, load_settings(TaskSettings))
    log.info("finished_purged", tasks=purged)
    return {"purged": purged}


@app.task(name=task_name(Chore.REPORT_DAY), **_OPTIONS)
def report_day(day: str | None = None) -> dict[str, int]:
    """Store what each agent's tasks came to; returns the number of agents by day.

    Args:
        day: `YYYY-MM-DD`, UTC, over by now; None: yesterday, and the days before it that were missed.

    Raises:
        InvalidRequestError: If it is no day, or not over.
    """
    with Client(connections=1) as client:
        if day is None:
            stored = store_reports_until_yesterday(client.database, load_settings(TaskSettings))
        else:
            wanted = _parse_day(day)
            stored = {wanted: store_report(client.database, wanted)}
    agents = {str(found): count for found, count in stored.items()}
    log.info("days_reported", agents=agents)
    return agents


@app.task(name=task_name("retry_tasks"), **_OPTIONS)
def retry_tasks(ids: Sequence[str] | None = None, **filters: Any) -> dict[str, int]:
    """Make failed tasks ready again, with all their attempts before them; returns how many.

    Args:
        ids: Which; the others than failed ones are left alone.
        **filters: In place of ids: statuses, priorities, agent_id, channel_id, type_, model, error_code, metadata, or
            since, in ISO 8601. `statuses=["failed"]` alone stands for all.

    Raises:
        InvalidRequestError: If neither or both are given, or one is wrong.
    """
    if (ids is None) == (not filters):
        raise InvalidRequestError("ids", ids, 'give ids or filters; statuses=["failed"] for all that failed')
    checked = _check_filters(filters)
    with TaskManager() as tasks:
        changes = tasks.retry_matching(**checked) if ids is None else tasks.retry_many(_parse_ids(ids))
    log.info("tasks_retried", tasks=len(changes))
    return {"retried": len(changes)}


_FILTERS = {"statuses", "priorities", "agent_id", "channel_id", "type_", "model", "error_code", "metadata", "since"}


def _check_filters(filters: dict[str, Any]) -> dict[str, Any]:
    for name, value in filters.items():
        if name not in _FILTERS:
            raise InvalidRequestError(name, value, f"no such filter; choose from {', '.join(sorted(_FILTERS))}")
        if not value:
            # An empty filter would match everything.
            raise InvalidRequestError(name, value, "empty; leave it out")
    if "since" not in filters:
        return filters
    return {**filters, "since": _parse_moment(filters["since"])}


def _parse_ids(ids: object) -> list[uuid.UUID]:
    if not isinstance(ids, list | tuple):
        raise InvalidRequestError("ids", ids, "write a list of ids")
    return [parse_task_id(task_id) for task_id in ids]


def _parse_moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as exc:
        raise InvalidRequestError("since", text, "no time; write one such as 2026-01-31T18:00:00+00:00") from exc
    if moment.tzinfo is None:
        raise InvalidRequestError("since", text, "has no time zone; add one, such as +00:00")
    return moment


def _parse_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except (TypeError, ValueError) as exc:
        raise InvalidRequestError("day", text, "no day; write one such as 2026-01-31") from exc
