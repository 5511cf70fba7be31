"""A task waits no longer than its TTL, counted from when it could have begun, and not before its time."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bitinglip.domain.task import QueueState, Status, TaskRequest, make_request
from bitinglip.errors import InvalidRequestError
from bitinglip.lifecycle.waiting import expire_overdue, settle, wake_due
from bitinglip.store.database import Database
from bitinglip.store.waiting import BATCH
from tests.factories import dispatch, execute, finish, make_echo, make_reserved, make_running, make_worker, read, submit


def make_timed(**fields: Any) -> TaskRequest:
    return make_request("echo", {}, **fields)


def overdue(database: Database) -> None:
    """Let every task's time have run out."""
    execute(database, "UPDATE tasks SET expires_at = now() - interval '1 s' WHERE expires_at IS NOT NULL")


def wait_seconds(database: Database, task: uuid.UUID) -> float:
    """From now until it expires."""
    expires_at = read(database, task).expires_at
    assert expires_at is not None
    return float((expires_at - execute(database, "SELECT now()")[0][0]).total_seconds())


def test_a_task_that_has_waited_too_long_fails_with_the_reason(database: Database) -> None:
    (task,) = submit(database, make_timed(ttl=300))
    assert wait_seconds(database, task) == pytest.approx(300, abs=5)
    assert expire_overdue(database) == []
    overdue(database)

    changes = expire_overdue(database)

    assert [(change.task_id, change.status, change.error_code) for change in changes] == [(task, "failed", "expired")]
    record = read(database, task)
    assert record.error is not None
    assert (record.status, record.error.code) == (Status.FAILED, "expired")
    assert record.error.message == "waited longer than its TTL of 300 s; retry it, or submit with a longer one"
    make_worker(database)
    assert dispatch(database) == []


def test_what_runs_or_is_about_to_is_not_expired(database: Database) -> None:
    worker = make_worker(database)
    running, reserved = make_running(database, worker), make_reserved(database, worker)
    again = make_running(database, worker)
    finish(database, worker, again, "released")
    overdue(database)

    assert expire_overdue(database) == []
    assert read(database, running).status is Status.IN_PROGRESS
    assert read(database, reserved).queue_state is QueueState.RESERVED
    assert read(database, again).queue_state is QueueState.READY


def test_many_are_expired_in_batches(database: Database) -> None:
    submit(database, *(make_echo() for _ in range(BATCH + 1)))
    overdue(database)

    assert len(expire_overdue(database)) == BATCH + 1


def test_a_scheduled_task_is_ready_at_its_time_and_its_ttl_begins_then(database: Database) -> None:
    at = datetime.now(UTC) + timedelta(hours=2)
    (task,) = submit(database, make_timed(not_before=at, ttl=300))
    make_worker(database)
    wake_due(database)
    assert read(database, task).queue_state is QueueState.SCHEDULED
    assert wait_seconds(database, task) == pytest.approx(7_500, abs=5)
    assert dispatch(database) == []

    execute(database, "UPDATE tasks SET not_before = now() - interval '1 s'")
    wake_due(database)

    assert dispatch(database) == [task]


def test_the_ttl_of_a_blocked_task_begins_when_nothing_blocks_it(database: Database) -> None:
    (parent,) = submit(database)
    (child,) = submit(database, make_timed(depends_on=[parent], ttl=600))
    assert read(database, child).expires_at is None
    make_worker(database)
    dispatch(database)
    execute(database, "UPDATE tasks SET created_at = now() - interval '2 hours'")
    assert expire_overdue(database) == []

    execute(
        database,
        "UPDATE tasks SET status = 'completed', queue_state = NULL, finished_at = now() WHERE id = :id",
        id=parent,
    )
    settle(database)

    assert wait_seconds(database, child) == pytest.approx(600, abs=5)
    overdue(database)
    assert [change.task_id for change in expire_overdue(database)] == [child]


@pytest.mark.parametrize("ttl", [5, 299, 86_401, 2 * 86_400])
def test_a_ttl_out_of_bounds_is_refused(ttl: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"ttl: {ttl}: .*(300|86400)"):
        make_timed(ttl=ttl)


@pytest.mark.parametrize("ttl", [300, 86_400])
def test_the_bounds_of_a_ttl_belong_to_it(database: Database, ttl: int) -> None:
    (task,) = submit(database, make_timed(ttl=ttl))

    assert wait_seconds(database, task) == pytest.approx(ttl, abs=5)


@pytest.mark.parametrize(
    ("ahead", "zone", "words"),
    [
        (timedelta(seconds=-1), UTC, "is not ahead of now"),
        (timedelta(days=367), UTC, "by at most 366 days"),
        (timedelta(hours=1), None, "has no time zone"),
    ],
    ids=["past", "far", "no zone"],
)
def test_a_time_that_cannot_be_waited_for_is_refused(ahead: timedelta, zone: Any, words: str) -> None:
    moment = (datetime.now(UTC) + ahead).replace(tzinfo=zone)

    with pytest.raises(InvalidRequestError, match=words):
        make_timed(not_before=moment)
