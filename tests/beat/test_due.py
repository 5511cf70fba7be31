"""What is due is run once: by threads that race, after an absence, and when something is in the way."""

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bitinglip.beat.due import MAX_SLEEP_SECONDS, RETRY_SECONDS, DueRunner
from bitinglip.beat.schedule import Chore, read_schedule
from bitinglip.beat.scheduler import _send_chore
from bitinglip.domain.task import make_request
from bitinglip.errors import LimitExceededError, RedisUnreachableError
from bitinglip.lifecycle.recur import read_marks, send_due, submit_due
from bitinglip.settings import TaskSettings
from bitinglip.store import recurring
from bitinglip.store.database import Database
from tests.conftest import make_celery_app
from tests.factories import execute, make_echo, submit

DUE = datetime(2026, 1, 31, 8, tzinfo=UTC)
HOURLY = '[recurring.hourly]\nevery = 3600\ntask = "echo"\ntext = "x"\nagent = "bot"\n'
CHORE = '[recurring.hourly]\nevery = 3600\nchore = "report_day"\n'

MakeRunner = Callable[..., DueRunner]


@pytest.fixture
def make_runner(database: Database, tmp_path: Path) -> MakeRunner:
    """A runner of a schedule, with the first look done."""

    def make(schedule: str = HOURLY, **options: Any) -> DueRunner:
        file = tmp_path / "schedule.toml"
        file.write_text(schedule)
        ways = {"send_chore": lambda _: uuid.uuid4(), "on_submitted": lambda *_: None, **options}
        runner = DueRunner(read_schedule(file), database, TaskSettings(), **ways)
        runner.run_due()
        return runner

    return make


def be_absent(database: Database, **time: float) -> None:
    """Let the last due time be so long ago."""
    execute(database, "UPDATE recurring SET last_due_at = now() - :time", time=timedelta(**time))


def count_tasks(database: Database) -> int:
    return int(execute(database, "SELECT count(*) FROM tasks")[0][0])


def test_a_new_entry_waits_for_its_next_due_time(make_runner: MakeRunner, database: Database) -> None:
    runner = make_runner()

    assert 0 < runner.run_due() <= MAX_SLEEP_SECONDS
    assert count_tasks(database) == 0
    assert execute(database, "SELECT name, now() - last_due_at < interval '1 minute' FROM recurring") == [
        ("hourly", True)
    ]


def test_what_was_missed_runs_once(make_runner: MakeRunner, database: Database) -> None:
    told: list[tuple[str, uuid.UUID]] = []
    runner = make_runner(on_submitted=lambda agent_id, task_id: told.append((agent_id, task_id)))
    be_absent(database, days=7)

    runner.run_due()
    runner.run_due()

    [(task_id, key, agent_id)] = execute(database, "SELECT id, idempotency_key, agent_id FROM tasks")
    [(due, last_task_id)] = execute(database, "SELECT last_due_at, last_task_id FROM recurring")
    assert (due.minute, due.second) == (0, 0)
    assert key == f"recurring:hourly:{due.isoformat()}"
    assert last_task_id == task_id
    assert told == [(agent_id, task_id)] == [("bot", task_id)]


def test_a_due_time_is_claimed_by_one_of_many(database: Database) -> None:
    barrier = threading.Barrier(5)
    read_marks(database, ["a"])
    be_absent(database, days=3650)

    def claim(number: int) -> uuid.UUID | None:
        barrier.wait()
        request = make_request("echo", {"text": str(number)})
        return submit_due(database, "a", DUE, request, TaskSettings())

    with ThreadPoolExecutor(5) as pool:
        claimed = [task_id for task_id in pool.map(claim, range(5)) if task_id]

    assert len(claimed) == 1
    assert execute(database, "SELECT id FROM tasks") == [(claimed[0],)]


def test_a_due_time_before_the_last_one_is_not_claimed(database: Database) -> None:
    assert submit_due(database, "a", DUE, make_request("echo", {}), TaskSettings())

    assert submit_due(database, "a", DUE - timedelta(hours=1), make_request("echo", {}), TaskSettings()) is None
    assert count_tasks(database) == 1


def test_a_beat_that_ends_half_way_has_done_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        raise SystemExit

    read_marks(database, ["a"])
    be_absent(database, days=3650)
    before = execute(database, "SELECT * FROM recurring")
    with monkeypatch.context() as patch:
        patch.setattr(recurring, "note_task", end)
        with pytest.raises(SystemExit):
            submit_due(database, "a", DUE, make_request("echo", {}), TaskSettings())

    assert count_tasks(database) == 0
    assert execute(database, "SELECT * FROM recurring") == before
    assert submit_due(database, "a", DUE, make_request("echo", {}), TaskSettings())


def test_a_refused_task_spends_its_due_time(make_runner: MakeRunner, database: Database) -> None:
    runner = make_runner()
    submit(database, make_echo(agent="bot"))
    execute(database, "UPDATE agents SET max_queued = 1")
    be_absent(database, hours=2)

    with capture_logs() as logs:
        runner.run_due()
        runner.run_due()

    assert count_tasks(database) == 1
    assert [entry["event"] for entry in logs] == ["recurring_refused"]
    assert "agent 'bot' has 1 tasks waiting" in logs[0]["reason"]
    with pytest.raises(LimitExceededError):
        submit_due(database, "b", DUE, make_echo(agent="bot"), TaskSettings())
    assert execute(database, "SELECT last_due_at FROM recurring WHERE name = 'b'") == [(DUE,)]


def test_a_key_that_was_used_spends_the_due_time_and_makes_no_task(database: Database) -> None:
    request = make_request("echo", {"text": "x"}, idempotency_key="recurring:a")
    first = submit_due(database, "a", DUE, request, TaskSettings())
    execute(database, "DELETE FROM recurring")

    again = make_request("echo", {"text": "x"}, idempotency_key="recurring:a")

    assert submit_due(database, "a", DUE, again, TaskSettings()) == first
    assert execute(database, "SELECT id FROM tasks") == [(first,)]
    assert execute(database, "SELECT last_task_id FROM recurring") == [(first,)]


def test_a_chore_that_cannot_be_sent_stays_due(make_runner: MakeRunner, database: Database) -> None:
    sent: list[Chore] = []
    problems = [RedisUnreachableError("the broker", "away"), RuntimeError("whatever")]

    def send(chore: Chore) -> uuid.UUID:
        if problems:
            raise problems.pop(0)
        sent.append(chore)
        return uuid.uuid4()

    runner = make_runner(CHORE + HOURLY.replace("recurring.hourly", "recurring.other"), send_chore=send)
    be_absent(database, hours=2)

    with capture_logs() as logs:
        assert runner.run_due() == RETRY_SECONDS
        assert count_tasks(database) == 1, "the other entry goes on"
        assert runner.run_due() == RETRY_SECONDS
        assert sent == []
        runner.run_due()
    # A broker that is away is nobody's fault; what nobody foresaw is.
    assert {"recurring_delayed": "warning", "recurring_failed": "error"}.items() <= {
        entry["event"]: entry["log_level"] for entry in logs
    }.items()
    runner.run_due()
    assert sent == [Chore.REPORT_DAY]
    assert count_tasks(database) == 1


def test_a_chore_that_another_beat_sent_is_not_sent_again(database: Database) -> None:
    first = send_due(database, "a", DUE, uuid.uuid4)

    assert first is not None
    assert send_due(database, "a", DUE, lambda: pytest.fail("sent twice")) is None
    assert execute(database, "SELECT last_task_id FROM recurring") == [(first,)]


def test_a_broker_that_is_away_is_said_so_at_once(urls: object) -> None:
    app = make_celery_app()
    app.conf.broker_url = "redis://127.0.0.1:1/0"

    began = time.monotonic()
    with pytest.raises(RedisUnreachableError, match="the broker"):
        _send_chore(app, Chore.REPORT_DAY)
    app.close()

    assert time.monotonic() - began < 3, "a transaction waits for this"
