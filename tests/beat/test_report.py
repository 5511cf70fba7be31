"""The daily report: known tasks, known figures."""

import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from bitinglip import chores
from bitinglip.errors import InvalidRequestError
from bitinglip.lifecycle.report import read_report, store_report, store_reports_until_yesterday
from bitinglip.settings import TaskSettings
from bitinglip.store.database import Database
from tests.cli.conftest import Run, read_lines
from tests.factories import execute, finish, make_echo, make_running, make_worker, submit

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "engine_seconds": 0.5}


@pytest.fixture
def worker(database: Database) -> uuid.UUID:
    return make_worker(database)


@pytest.fixture
def today(database: Database) -> date:
    return execute(database, "SELECT (now() AT TIME ZONE 'UTC')::date AS day")[0][0]  # type: ignore[no-any-return]


def make_ended(
    database: Database,
    worker: uuid.UUID,
    created: str,
    *,
    agent: str = "bot",
    outcome: str = "completed",
    waited: float = 0,
    took: float = 1,
    **ending: Any,
) -> None:
    """A task with a past: recorded at `created`, begun after `waited` seconds, ended after `took` more."""
    doorbell = make_running(database, worker, make_echo(agent=agent))
    assert finish(database, worker, doorbell, outcome, usage=USAGE, **ending)
    moment = datetime.fromisoformat(created).replace(tzinfo=UTC)
    began = moment + timedelta(seconds=waited)
    execute(
        database,
        "UPDATE tasks SET created_at = :created, started_at = :began, finished_at = :ended WHERE id = :id",
        created=moment,
        began=began,
        ended=began + timedelta(seconds=took),
        id=doorbell.task_id,
    )


def make_submitted(database: Database, created: str) -> None:
    """A task that waits."""
    [task_id] = submit(database, make_echo(agent="bot"))
    moment = datetime.fromisoformat(created).replace(tzinfo=UTC)
    execute(database, "UPDATE tasks SET created_at = :created WHERE id = :id", created=moment, id=task_id)


def read_figures(database: Database, day: str, agent: str | None = None) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in read_report(database, date.fromisoformat(day), agent).agents]


def test_a_day_counts_what_was_submitted_and_what_ended_on_it(database: Database, worker: uuid.UUID) -> None:
    error = {"code": "x", "message": "x"}
    for waited in range(11):
        make_ended(database, worker, "2026-01-31T10:00:00", waited=waited)
    make_ended(database, worker, "2026-01-31T00:00:00", outcome="failed", error=error, waited=5)
    make_ended(database, worker, "2026-01-30T23:00:00", outcome="cancelled", error=error, waited=3600, took=0)
    make_ended(database, worker, "2026-01-31T23:59:59", waited=1, took=0)
    make_ended(database, worker, "2026-01-30T12:00:00", took=60)
    make_submitted(database, "2026-01-31T12:00:00")
    make_submitted(database, "2026-02-01T00:00:00")
    make_ended(database, worker, "2026-01-31T10:00:00", agent="other", waited=2)
    # One that never began waited for nothing.
    execute(database, "UPDATE tasks SET started_at = NULL WHERE status = 'failed'")

    # Waits: 0 to 10 s of eleven, and the hour of the cancelled one.
    bot = ("bot", 14, 11, 1, 1, 130, 65, 6.5, 5.5, pytest.approx(10 + 0.45 * 3590))
    other = ("other", 1, 1, 0, 0, 10, 5, 0.5, 2.0, 2.0)
    assert read_figures(database, "2026-01-31") == [bot, other]
    assert read_figures(database, "2026-01-31", "other") == [other]
    assert read_figures(database, "2026-02-01") == [("bot", 1, 1, 0, 0, 10, 5, 0.5, 1.0, 1.0)]
    assert read_figures(database, "2026-01-29") == []

    assert store_report(database, date(2026, 1, 31)) == 2
    found = read_report(database, date(2026, 1, 31))
    assert (found.stored, [tuple(row) for row in found.agents]) == (True, [bot, other])


def test_an_agent_whose_tasks_all_wait_has_no_waits(database: Database) -> None:
    make_submitted(database, "2026-01-31T12:00:00")

    assert read_figures(database, "2026-01-31") == [("bot", 1, 0, 0, 0, 0, 0, 0.0, None, None)]


def test_a_stored_day_outlives_its_tasks_and_grows_with_late_ones(database: Database, worker: uuid.UUID) -> None:
    day = date(2026, 1, 31)
    make_ended(database, worker, "2026-01-31T10:00:00")
    store_report(database, day)
    make_ended(database, worker, "2026-01-31T10:00:00")
    assert store_report(database, day) == 1
    before = read_figures(database, "2026-01-31")
    assert before[0][2] == 2

    execute(database, "DELETE FROM tasks WHERE id = (SELECT min(id::text)::uuid FROM tasks)")
    assert store_report(database, day) == 0
    execute(database, "DELETE FROM tasks")
    assert store_report(database, day) == 0

    assert read_figures(database, "2026-01-31") == before


def test_a_day_that_is_not_over_is_not_stored(database: Database, today: date) -> None:
    with pytest.raises(InvalidRequestError, match="not over"):
        chores.report_day(str(today))
    with pytest.raises(InvalidRequestError, match="no day"):
        chores.report_day("yesterday")
    assert chores.report_day(str(today - timedelta(days=1))) == {str(today - timedelta(days=1)): 0}


def test_days_that_were_missed_are_stored_with_yesterday(database: Database, worker: uuid.UUID, today: date) -> None:
    for days in (1, 3, 5, 40):
        make_ended(database, worker, f"{today - timedelta(days=days)}T10:00:00")

    def store(**settings: Any) -> list[int]:
        stored = store_reports_until_yesterday(database, TaskSettings(**settings))
        return [(today - day).days for day in stored]

    assert store() == [1], "the first report is of yesterday"
    execute(database, "UPDATE agent_reports SET day = day - 3")
    assert store() == [3, 2, 1]
    assert store() == [1]
    days = execute(database, "SELECT day FROM agent_reports ORDER BY day DESC")
    assert [(today - day).days for (day,) in days] == [1, 3, 4]
    execute(database, "UPDATE agent_reports SET day = day - 60")
    assert store(retention_days=4) == [4, 3, 2, 1], "older days may have been purged in part"


def test_the_command_shows_a_day(run: Run, database: Database, worker: uuid.UUID, today: date) -> None:
    make_ended(database, worker, "2026-01-31T10:00:00", waited=2)
    make_ended(database, worker, f"{today}T00:00:00", agent="early")

    [line] = read_lines(run("report", "--day", "2026-01-31", "--json").stdout)
    assert line == {
        "day": "2026-01-31",
        "stored": False,
        "agent_id": "bot",
        "submitted": 1,
        "completed": 1,
        "failed": 0,
        "cancelled": 0,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "engine_seconds": 0.5,
        "wait_p50_seconds": 2.0,
        "wait_p95_seconds": 2.0,
    }
    store_report(database, date(2026, 1, 31))
    assert read_lines(run("report", "--day", "2026-01-31", "--json").stdout) == [{**line, "stored": True}]
    assert [entry["agent_id"] for entry in read_lines(run("report", "--json").stdout)] == ["early"]
    shown = run("report", "--day", "2026-01-31", "--agent", "bot")
    assert "2026-01-31 UTC, as stored" in shown.stderr
    assert shown.stdout.splitlines()[1].split()[:3] == ["bot", "1", "1"]
    assert run("report", "--day", "today").exit_code == 2
