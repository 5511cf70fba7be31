"""Each invariant, broken once by hand: the check must see it, and nothing else."""

import uuid

import pytest

from bitinglip.chaos.checks import Verdict, check_invariants
from bitinglip.chaos.load import Ledger
from bitinglip.store.database import Database
from tests.factories import execute, finish, make_echo, make_running, make_worker

GOOD = "good"


@pytest.fixture
def done(database: Database) -> uuid.UUID:
    """A task that was lost with its first worker, and completed by its second one."""
    worker = make_worker(database)
    doorbell = make_running(database, worker, make_echo(text=GOOD))
    assert finish(database, worker, doorbell, "released")
    execute(database, "UPDATE tasks SET queue_state = 'reserved', worker_id = :worker", worker=worker)
    execute(database, "UPDATE tasks SET status = 'in_progress', queue_state = NULL")
    again = doorbell.__class__(doorbell.task_id, 2)
    assert finish(database, worker, again, "completed", result={"text": GOOD})
    return doorbell.task_id


def check(database: Database, *task_ids: uuid.UUID, unsure: tuple[uuid.UUID, ...] = ()) -> Verdict:
    ledger = Ledger(dict.fromkeys(task_ids, GOOD), set(unsure))
    with database.transaction() as connection:
        return check_invariants(connection, ledger)


def test_a_task_that_completed_once_is_as_it_must_be(database: Database, done: uuid.UUID) -> None:
    assert check(database, done) == Verdict(tasks=1, completed=1)


def test_a_confirmed_task_that_is_not_there_is_lost(database: Database, done: uuid.UUID) -> None:
    missing = uuid.uuid4()
    verdict = check(database, done, missing)
    assert (verdict.tasks, verdict.completed) == (2, 1)
    assert [(item.task_id, item.invariant) for item in verdict.violations] == [(missing, "lost")]
    assert not verdict.is_clean


def test_a_task_whose_submission_failed_need_not_be_there(database: Database, done: uuid.UUID) -> None:
    missing = uuid.uuid4()
    assert check(database, done, missing, unsure=(missing,)) == Verdict(tasks=1, completed=1)


def test_a_task_whose_submission_failed_is_checked_if_it_is_there(database: Database, done: uuid.UUID) -> None:
    execute(database, "UPDATE task_details SET result = NULL")
    assert check(database, done, unsure=(done,)).count("double_recorded") == 1


@pytest.mark.parametrize(
    ("damage", "invariant", "reason"),
    [
        ("UPDATE tasks SET status = 'failed', error_code = 'poison'", "lost", "failed: poison"),
        ("UPDATE tasks SET status = 'cancelled'", "lost", "cancelled: no reason"),
        (
            "UPDATE tasks SET status = 'pending', queue_state = 'ready', finished_at = NULL",
            "stuck",
            "pending, ready, attempt 2",
        ),
        ("UPDATE tasks SET status = 'in_progress', finished_at = NULL", "stuck", "in_progress, attempt 2"),
        ("UPDATE attempts SET outcome = 'completed'", "double_recorded", "completed 2 times"),
        ("UPDATE attempts SET outcome = 'lost'", "double_recorded", "completed 0 times"),
        ("DELETE FROM attempts", "double_recorded", "completed 0 times"),
        (
            """UPDATE task_details SET result = '{"text": "bad"}'""",
            "double_recorded",
            'its result is {"text": "bad"} in place of good',
        ),
        ("UPDATE task_details SET result = NULL", "double_recorded", "its result is missing in place of good"),
        (
            "DELETE FROM attempts WHERE attempt = 1",
            "double_recorded",
            "its last attempt is 2, and its history says otherwise",
        ),
        (
            "INSERT INTO attempts (task_id, attempt, outcome) SELECT id, 3, 'lost' FROM tasks",
            "double_recorded",
            "its last attempt is 2, and its history says otherwise",
        ),
        (
            "UPDATE attempts SET outcome = CASE attempt WHEN 1 THEN 'completed' ELSE 'lost' END",
            "double_recorded",
            "its last attempt is 2, and its history says otherwise",
        ),
        (
            "UPDATE attempts SET attempt = 7 WHERE attempt = 1",
            "double_recorded",
            "its last attempt is 2, and its history says otherwise",
        ),
    ],
)
def test_damage_is_found(database: Database, done: uuid.UUID, damage: str, invariant: str, reason: str) -> None:
    execute(database, damage)
    verdict = check(database, done)
    assert [(item.task_id, item.invariant, item.reason) for item in verdict.violations] == [(done, invariant, reason)]
    assert verdict.count(invariant) == 1
    assert not verdict.is_clean
