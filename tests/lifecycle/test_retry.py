"""A failed task can be tried again as if it were new: with all its attempts, its time and its children."""

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitinglip.domain.task import QueueState, Status, make_request
from bitinglip.lifecycle import edit
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.edit import change_matching, retry
from bitinglip.lifecycle.waiting import expire_overdue, settle
from bitinglip.store.database import Database
from bitinglip.store.tasks import Change, Doorbell
from tests.factories import (
    dispatch,
    execute,
    finish,
    make_echo,
    make_running,
    make_worker,
    read,
    read_outcomes,
    submit,
)

FAILURE = {"code": "boom", "message": "it broke", "retryable": False}


def make_failed(database: Database, worker: uuid.UUID, task: uuid.UUID | None = None) -> Doorbell:
    """A task that ran and failed; all of its attempts are spent."""
    if task is None:
        doorbell = make_running(database, worker)
    else:
        assert dispatch(database) == [task]
        doorbell = Doorbell(task, read(database, task).attempt)
        assert claim_reserved(database, [doorbell], worker)[0] is not None
    finish(database, worker, doorbell, "failed", error=FAILURE)
    return doorbell


def test_a_retried_task_runs_again_as_its_next_attempt(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_failed(database, worker)
    execute(database, "UPDATE tasks SET failures = max_attempts, suspect = true, expires_at = now()")

    (change,) = retry(database, [doorbell.task_id])

    assert (change.task_id, change.status, change.attempt) == (doorbell.task_id, "pending", 2)
    task = read(database, doorbell)
    assert (task.queue_state, task.failures, task.error, task.finished_at) == (QueueState.READY, 0, None, None)
    assert task.expires_at is not None
    assert task.expires_at > task.updated_at
    assert execute(database, "SELECT suspect FROM tasks") == [(False,)]
    second = make_failed(database, worker, doorbell.task_id)
    assert read_outcomes(database, second) == [(1, "failed"), (2, "failed")]


def test_a_task_that_expired_is_retried_as_the_same_attempt(database: Database) -> None:
    (task,) = submit(database)
    execute(database, "UPDATE tasks SET expires_at = now() - interval '1 s'")
    expire_overdue(database)

    retry(database, [task])

    assert expire_overdue(database) == []
    assert (read(database, task).queue_state, read(database, task).attempt) == (QueueState.READY, 1)


def test_a_task_that_failed_while_it_was_to_be_cancelled_can_be_retried(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    cancel(database, [doorbell.task_id])
    finish(database, worker, doorbell, "failed", error=FAILURE)

    retry(database, [doorbell.task_id])

    make_failed(database, worker, doorbell.task_id)
    assert read(database, doorbell).cancel_requested_at is None


@pytest.mark.parametrize("outcome", ["completed", "cancelled"])
def test_what_has_not_failed_is_left_alone(database: Database, outcome: str) -> None:
    worker = make_worker(database)
    ended = make_running(database, worker)
    finish(database, worker, ended, outcome, error=FAILURE if outcome == "cancelled" else None)
    running = make_running(database, worker)
    (waiting,) = submit(database)
    before = [read(database, task) for task in (ended, running, waiting)]

    assert retry(database, [ended.task_id, running.task_id, waiting, uuid.uuid4()]) == []

    assert [read(database, task) for task in (ended, running, waiting)] == before


def test_a_child_waits_for_its_parent_again(database: Database) -> None:
    worker = make_worker(database)
    parent = make_running(database, worker)
    child = submit(database, make_request("echo", {}, depends_on=[parent.task_id]))[0]
    finish(database, worker, parent, "failed", error=FAILURE)
    settle(database)

    # Its own turn first: the parent has not succeeded yet, and so it fails again.
    retry(database, [child])
    assert read(database, child).queue_state is QueueState.BLOCKED
    settle(database)
    assert read(database, child).status is Status.FAILED

    retry(database, [parent.task_id])
    retry(database, [child])
    settle(database)
    assert read(database, child).queue_state is QueueState.BLOCKED
    again = Doorbell(parent.task_id, 2)
    dispatch(database)
    assert claim_reserved(database, [again], worker)[0] is not None
    finish(database, worker, again, "completed", result={})
    settle(database)
    assert dispatch(database) == [child]


def test_a_parent_and_its_child_are_retried_together(database: Database) -> None:
    worker = make_worker(database)
    parent = make_running(database, worker)
    child = submit(database, make_request("echo", {}, depends_on=[parent.task_id]))[0]
    finish(database, worker, parent, "failed", error=FAILURE)
    settle(database)

    assert len(retry(database, [child, parent.task_id])) == 2
    settle(database)
    assert read(database, child).queue_state is QueueState.BLOCKED

    assert dispatch(database) == [parent.task_id]
    assert claim_reserved(database, [Doorbell(parent.task_id, 2)], worker)[0] is not None
    finish(database, worker, Doorbell(parent.task_id, 2), "completed", result={})
    settle(database)
    assert dispatch(database) == [child]


def test_parents_are_retried_before_their_children_however_many(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "BATCH", 2)
    top = make_echo()
    chain = [top]
    for _ in range(4):
        chain.append(make_request("echo", {}, depends_on=[chain[-1].id]))
    submit(database, *chain)
    execute(
        database,
        "UPDATE tasks SET status = 'failed', queue_state = NULL, finished_at = now(), error_code = 'boom', "
        "has_children = false",
    )

    def retry_while_others_settle(database: Database, task_ids: Sequence[uuid.UUID]) -> list[Change]:
        changes = retry(database, task_ids)
        settle(database)
        return changes

    retried = [*change_matching(database, retry_while_others_settle, oldest_first=True, statuses=["failed"])]

    assert len(retried) == 5
    assert {read(database, request.id).status for request in chain} == {Status.PENDING}


def test_two_retries_at_once_make_one_attempt(database: Database) -> None:
    worker = make_worker(database)
    failed = [make_failed(database, worker).task_id for _ in range(10)]
    with ThreadPoolExecutor(4) as threads:
        told = [threads.submit(retry, database, failed) for _ in range(4)]
        assert sum(len(one.result()) for one in told) == 10

    assert {read(database, task).attempt for task in failed} == {2}
