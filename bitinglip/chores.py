"""Chores: Celery tasks that generate nothing. Any worker runs them, one at a time in a thread beside its slots.

    from bitinglip.chores import retry_tasks
    retry_tasks.delay(agent_id="my-bot", error_code="out_of_memory")

Each may be run twice, and by two workers at once. One that ends half way, or is lost with Redis, is made up for by the
next. What it did is logged, and is its result in Flower.
"""

from collections.abc import Sequence
from datetime import date
from typing import Any

from bitinglip.artifacts.store import open_artifacts
from bitinglip.artifacts.sweep import sweep
from bitinglip.beat.schedule import Chore
from bitinglip.celery_app import app, task_name
from bitinglip.client import Client
from bitinglip.client.manager import TaskManager
from bitinglip.errors import InvalidRequestError
from bitinglip.lifecycle.edit import purge
from bitinglip.lifecycle.quote import forget_old
from bitinglip.lifecycle.report import store_report, store_reports_until_yesterday
from bitinglip.settings import ArtifactSettings, TaskSettings, load_settings
from bitinglip.telemetry import get_logger

SHOWN_NAMES = 5

_OPTIONS = {"acks_late": True, "ignore_result": True, "shared": False}

log = get_logger()


@app.task(name=task_name(Chore.PURGE_FINISHED), **_OPTIONS)
def purge_finished() -> dict[str, int]:
    """Delete the tasks that finished longer ago than TASK_RETENTION_DAYS; returns how many.

    So is what was measured and foretold more than two days ago.
    """
    with Client(connections=1) as client:
        purged = purge(client.database, load_settings(TaskSettings))
        forget_old(client.database)
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


@app.task(name=task_name(Chore.SWEEP_ARTIFACTS), **_OPTIONS)
def sweep_artifacts() -> dict[str, int]:
    """Delete the files that no task's record names; returns how many were kept, deleted, and named but missing."""
    with Client(connections=1) as client:
        days = load_settings(ArtifactSettings).artifact_upload_days
        swept = sweep(open_artifacts(), client.database, upload_days=days)
    counts = {"kept": swept.kept, "deleted": swept.deleted, "missing": len(swept.missing)}
    log.info("artifacts_swept", **counts)
    if swept.missing:
        log.warning("artifacts_missing", names=swept.missing[:SHOWN_NAMES], count=len(swept.missing))
    return counts


@app.task(name=task_name("retry_tasks"), **_OPTIONS)
def retry_tasks(ids: Sequence[str] | None = None, **filters: Any) -> dict[str, int]:
    """Make failed tasks ready again, with all their attempts before them; returns how many.

    Args:
        ids: Which; those that have not failed are left alone.
        **filters: In place of ids: those of `TaskManager.list`, as JSON has them; `statuses=["failed"]` means all.

    Raises:
        InvalidRequestError: If neither or both are given, or a filter is bad.
    """
    if ids is not None and filters:
        raise InvalidRequestError("ids", ids, f"give either ids or filters, not {', '.join(filters)} as well")
    with TaskManager() as tasks:
        changes = tasks.retry_matching(**filters) if ids is None else tasks.retry_many(ids)
    log.info("tasks_retried", tasks=len(changes))
    return {"retried": len(changes)}


def _parse_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except (TypeError, ValueError) as exc:
        raise InvalidRequestError("day", text, "no day; write one such as 2026-01-31") from exc
