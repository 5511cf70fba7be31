"""An ending is fenced by task, attempt, worker and status: whoever lost the task changes nothing."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bitinglip.domain.task import QueueState, Status
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.finish import finish_attempts
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell, Ending
from bitinglip.store.waiting import wake_scheduled
from tests.factories import (
    dispatch,
    execute,
    finish,
    make_reserved,
    make_running,
    make_worker,
    read,
    read_outcomes,
)

ERROR = {"code": "echo_error", "message": "it failed", "retryable": True}


def test_a_result_is_recorded_with_its_usage_and_its_attempt(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)

    assert finish(database, worker, doorbell, result={"text": "hi"}, usage={"engine_seconds": 0.5})

    task = read(database, doorbell)
    assert (task.status, task.result, task.usage, task.progress) == (
        Status.COMPLETED,
        {"text": "hi"},
        {"engine_seconds": 0.5},
        1,
    )
    assert task.finished_at is not None
    assert read_outcomes(database, doorbell) == [(1, "completed")]


def test_a_task_that_does_not_run_cannot_be_finished(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_reserved(database, worker)

    assert not finish(database, worker, doorbell, result={})
    assert read(database, doorbell).status is Status.PENDING
    assert read_outcomes(database, doorbell) == []


def test_another_attempts_result_is_discarded(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)

    assert not finish(database, worker, Doorbell(doorbell.task_id, 2), result={})
    assert read(database, doorbell).status is Status.IN_PROGRESS
    assert read_outcomes(database, doorbell) == []


def test_another_workers_result_is_discarded(database: Database) -> None:
    doorbell = make_running(database, make_worker(database, "owner"))

    assert not finish(database, make_worker(database, "zombie"), doorbell, result={"text": "late"})
    task = read(database, doorbell)
    assert (task.status, task.result) == (Status.IN_PROGRESS, None)
    assert read_outcomes(database, doorbell) == []


def test_another_tasks_result_changes_only_that_task(database: Database) -> None:
    worker = make_worker(database)
    bystander, doorbell = make_running(database, worker), make_running(database, worker)

    assert finish(database, worker, doorbell, result={})
    assert read(database, bystander).status is Status.IN_PROGRESS


def test_the_first_ending_wins(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    finish(database, worker, doorbell, result={"text": "first"})

    assert not finish(database, worker, doorbell, "failed", error=ERROR)
    assert read(database, doorbell).result == {"text": "first"}
    assert read_outcomes(database, doorbell) == [(1, "completed")]


def test_a_failure_is_recorded_with_its_code(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)

    finish(database, worker, doorbell, "failed", error=ERROR)

    task = read(database, doorbell)
    assert (task.status, task.failures) == (Status.FAILED, 1)
    assert task.error is not None
    assert task.error.code == "echo_error"


def test_a_retried_task_waits_for_its_time_and_is_then_ready(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)

    finish(database, worker, doorbell, "retried", error=ERROR, retry_seconds=30)

    task = read(database, doorbell)
    assert (task.status, task.queue_state) == (Status.PENDING, QueueState.SCHEDULED)
    assert (task.attempt, task.failures, task.worker_id) == (2, 1, None)
    assert task.not_before is not None
    assert timedelta(seconds=25) < task.not_before - datetime.now(UTC) < timedelta(seconds=31)
    assert read_outcomes(database, doorbell) == [(1, "retried")]
    assert dispatch(database) == []

    execute(database, "UPDATE tasks SET not_before = now()")
    with database.transaction() as connection:
        assert wake_scheduled(connection) == 1
    assert dispatch(database) == [doorbell.task_id]
    assert claim_reserved(database, [Doorbell(doorbell.task_id, 2)], worker) != [None]


def test_a_task_that_is_to_be_cancelled_is_not_tried_again(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    cancel(database, [doorbell.task_id])

    finish(database, worker, doorbell, "retried", error=ERROR, retry_seconds=1)

    task = read(database, doorbell)
    assert (task.status, task.queue_state) == (Status.CANCELLED, None)
    assert read_outcomes(database, doorbell) == [(1, "cancelled")]


@pytest.mark.parametrize("outcome", ["completed", "failed"])
def test_an_ending_that_comes_before_the_cancel_is_obeyed_wins(database: Database, outcome: str) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    cancel(database, [doorbell.task_id])

    finish(database, worker, doorbell, outcome, error=ERROR if outcome == "failed" else None)

    assert read(database, doorbell).status == outcome


def test_only_what_was_still_the_workers_own_is_recorded_of_a_batch(database: Database) -> None:
    worker = make_worker(database)
    ours = make_running(database, worker)
    theirs = make_running(database, make_worker(database, "other"))

    endings = [Ending(bell.task_id, bell.attempt, "completed", result={}) for bell in (theirs, ours)]

    assert [bool(recorded) for recorded in finish_attempts(database, endings, worker)] == [False, True]


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a\x00b", "a\N{REPLACEMENT CHARACTER}b"),
        ("a\ud800b", "a\N{REPLACEMENT CHARACTER}b"),
        (r"a\u0000b", r"a\u0000b"),
    ],
    ids=["nul", "half a surrogate", "an escape that is text"],
)
def test_text_that_postgresql_cannot_store_harms_no_neighbour(database: Database, text: str, stored: str) -> None:
    worker = make_worker(database)
    odd, neighbour = make_running(database, worker), make_running(database, worker)
    results: list[dict[str, Any]] = [{"text": text, "parts": [{text: text}]}, {"text": "fine"}]

    endings = [
        Ending(bell.task_id, 1, "completed", result=r) for bell, r in zip((odd, neighbour), results, strict=True)
    ]
    finish_attempts(database, endings, worker)

    assert read(database, odd).result == {"text": stored, "parts": [{stored: stored}]}
    assert read(database, neighbour).status is Status.COMPLETED


def test_a_number_that_json_has_not_harms_no_neighbour(database: Database) -> None:
    worker = make_worker(database)
    odd, neighbour = make_running(database, worker), make_running(database, worker)

    finish_attempts(
        database,
        [
            Ending(odd.task_id, 1, "completed", result={"logprobs": [float("-inf"), float("nan")]}),
            Ending(neighbour.task_id, 1, "completed", result={}),
        ],
        worker,
    )

    assert read(database, odd).result == {"logprobs": [None, None]}
    assert read(database, neighbour).status is Status.COMPLETED
