"""Chores: Celery tasks that any worker runs, whoever asks for them."""

import json
import subprocess
import sys
from typing import Any

import pytest

from bitinglip import chores
from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.errors import InvalidRequestError
from bitinglip.store.database import Database
from tests.beat.conftest import StartBeat
from tests.conftest import REPOSITORY, System, eventually, wait_for_workers
from tests.factories import execute, finish, make_echo, make_running, make_worker, submit

ONE_SLOT = '[pools.default]\nkinds = ["echo"]\ngpus = []\nslots = 1\n'


def run_python(program: str) -> Any:
    """What a program of a Celery user prints, as JSON."""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def count_tasks(database: Database, status: str) -> int:
    return int(execute(database, "SELECT count(*) FROM tasks WHERE status = :status", status=status)[0][0])


def make_old(database: Database, *, days: int) -> None:
    """Let all that is recorded have happened so long ago."""
    names = ("created_at", "started_at", "finished_at")
    moved = ", ".join(f"{name} = {name} - make_interval(days => :days)" for name in names)
    execute(database, f"UPDATE tasks SET {moved}", days=days)


def test_a_busy_worker_purges_what_is_old(processes: System, client: Client, database: Database) -> None:
    worker = make_worker(database)
    assert finish(database, worker, make_running(database, worker))
    make_old(database, days=31)
    assert finish(database, worker, make_running(database, worker))
    execute(database, "UPDATE workers SET state = 'gone'")
    processes.start_dispatcher()
    processes.start_worker(pools=ONE_SLOT)
    wait_for_workers(database, 1)
    busy = client.submit("echo", seconds=60)
    eventually(lambda: busy.status is Status.IN_PROGRESS)

    run_python("from bitinglip.chores import purge_finished; purge_finished.delay(); print(0)")

    eventually(lambda: count_tasks(database, "completed") == 1, within=20)
    assert busy.status is Status.IN_PROGRESS
    eventually(lambda: "finished_purged" in processes.read_log("worker"))
    busy.cancel()


def test_beat_has_a_worker_store_the_report(
    start_beat: StartBeat, processes: System, database: Database, run: Any
) -> None:
    worker = make_worker(database)
    assert finish(database, worker, make_running(database, worker, make_echo(agent="bot")))
    make_old(database, days=1)
    execute(database, "UPDATE workers SET state = 'gone'")
    processes.start_worker()
    start_beat('[recurring.report]\nevery = 1\nchore = "report_day"\n')

    stored = eventually(lambda: execute(database, "SELECT agent_id, completed FROM agent_reports"), within=20)

    assert stored == [("bot", 1)]


def test_failed_tasks_are_retried_by_id_and_by_filter(system: System, client: Client, database: Database) -> None:
    failing = [client.submit("echo", agent=agent, fail="error", fail_attempts=1) for agent in ("a", "a", "b", "c")]
    eventually(lambda: count_tasks(database, "failed") == 4)

    run_python(
        f"""
from bitinglip.celery_app import app
from bitinglip.chores import retry_tasks
retry_tasks.delay(["{failing[0].id}"])
retry_tasks.delay(agent_id="b", error_code="echo_error")
app.send_task("bitinglip.retry_tasks", kwargs={{"agent_id": "a", "since": "2999-01-01T00:00:00+00:00"}})
print(0)
"""
    )

    eventually(lambda: count_tasks(database, "completed") == 2, within=20)
    eventually(lambda: processes_said(system, "tasks_retried") == 3)
    assert [task.status for task in failing] == ["completed", "failed", "completed", "failed"]


def processes_said(system: System, event: str) -> int:
    return system.read_log("worker").count(event)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "filters"),
        ({"ids": ["x"], "agent_id": "a"}, "ids"),
        ({"agent": "a"}, "agent"),
        ({"agent_id": ""}, "agent_id"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-31T08:00:00"}, "since"),
    ],
)
def test_a_retry_of_everything_by_mistake_is_refused(database: Database, arguments: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chores.retry_tasks(**arguments)

    assert caught.value.field == field


def test_a_purge_forgets_old_use(database: Database) -> None:
    execute(database, "INSERT INTO agent_usage VALUES (now() - interval '3 days', 'default', 'bot', 1, 1, 1, 1)")

    chores.purge_finished()

    assert execute(database, "SELECT count(*) FROM agent_usage") == [(0,)]


def test_a_chore_may_run_twice(database: Database) -> None:
    submit(database)
    make_old(database, days=1)

    assert [sum(chores.report_day().values()) for _ in range(2)] == [1, 1]
    assert [chores.purge_finished() for _ in range(2)] == [{"purged": 0}] * 2
    assert execute(database, "SELECT agent_id, submitted FROM agent_reports") == [("default", 1)]
