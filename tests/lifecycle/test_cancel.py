"""Cancel against claim, finish and rescue: one decision each, and a result that was recorded first wins."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.errors import TaskEndedError
from bitinglip.lifecycle.cancel import cancel as cancel_tasks
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.lease import renew
from bitinglip.store.database import Database
from tests.factories import dispatch, finish, make_reserved, make_running, make_worker, read, submit


def cancel(database: Database, task_ids: list[uuid.UUID]) -> dict[uuid.UUID, bool]:
    """Whether each is cancelled already, of those that were not ended."""
    changes = cancel_tasks(database, task_ids)
    return {change.task_id: change.status == Status.CANCELLED for change in changes}


def test_a_pending_task_is_cancelled_at_once(database: Database) -> None:
    task = submit(database)[0]

    assert cancel(database, [task]) == {task: True}
    assert read(database, task).status is Status.CANCELLED
    make_worker(database)
    assert dispatch(database) == []


def test_a_cancelled_reservation_frees_its_room(database: Database) -> None:
    worker = make_worker(database, slots=1)
    for doorbell in (make_reserved(database, worker), make_reserved(database, worker)):
        cancel(database, [doorbell.task_id])

    assert dispatch(database) == []
    assert len(submit(database)) == len(dispatch(database))


def test_a_running_task_is_flagged_and_its_worker_hears_of_it(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)

    assert cancel(database, [doorbell.task_id]) == {doorbell.task_id: False}
    assert read(database, doorbell).status is Status.IN_PROGRESS
    renewed = renew(database, worker, lease_seconds=60, model_bytes={}, memory_bytes=0)
    assert renewed is not None
    assert [task.cancelled for task in renewed.held] == [True]

    finish(database, worker, doorbell, "cancelled", error={"code": "cancelled", "message": "as asked"})
    assert read(database, doorbell).status is Status.CANCELLED


def test_cancelling_twice_changes_nothing(database: Database) -> None:
    doorbell = make_running(database, make_worker(database))
    cancel(database, [doorbell.task_id])
    first = read(database, doorbell).cancel_requested_at

    cancel(database, [doorbell.task_id])

    assert read(database, doorbell).cancel_requested_at == first


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
def test_an_ended_task_keeps_its_ending(database: Database, outcome: str) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    finish(database, worker, doorbell, outcome, error={"code": "x", "message": "y"})

    assert cancel(database, [doorbell.task_id]) == {}
    assert read(database, doorbell).status == outcome


def test_a_task_that_nobody_knows_is_not_cancelled(database: Database) -> None:
    assert cancel(database, [uuid.uuid4()]) == {}


def test_a_handle_says_whether_it_came_in_time(client: Client) -> None:
    handle = client.submit("echo")

    assert handle.cancel()
    assert not handle.cancel()
    with pytest.raises(TaskEndedError, match="cancelled"):
        handle.result(timeout=1)


def test_cancel_and_claim_at_once_leave_no_task_in_between(database: Database) -> None:
    worker = make_worker(database)
    doorbells = [make_reserved(database, worker) for _ in range(40)]
    start = threading.Barrier(2)

    def cancel_each() -> dict[uuid.UUID, bool]:
        start.wait()
        return {key: value for bell in doorbells for key, value in cancel(database, [bell.task_id]).items()}

    def claim_each() -> set[uuid.UUID]:
        start.wait()
        claimed = [claim_reserved(database, [bell], worker)[0] for bell in reversed(doorbells)]
        return {task.task_id for task in claimed if task}

    with ThreadPoolExecutor(2) as threads:
        cancelling, claiming = threads.submit(cancel_each), threads.submit(claim_each)
        cancelled, claimed = cancelling.result(), claiming.result()

    assert {task for task, at_once in cancelled.items() if not at_once} == claimed
    for bell in doorbells:
        task = read(database, bell)
        assert task.status is (Status.IN_PROGRESS if bell.task_id in claimed else Status.CANCELLED)
        assert task.cancel_requested_at is not None


def test_cancel_and_finish_at_once_leave_one_ending(database: Database) -> None:
    worker = make_worker(database)
    doorbells = [make_running(database, worker) for _ in range(40)]
    start = threading.Barrier(2)

    def cancel_each() -> set[uuid.UUID]:
        start.wait()
        return {task for bell in doorbells for task in cancel(database, [bell.task_id])}

    def finish_each() -> list[bool]:
        start.wait()
        return [finish(database, worker, bell, result={"text": "done"}) for bell in reversed(doorbells)]

    with ThreadPoolExecutor(2) as threads:
        cancelling, finishing = threads.submit(cancel_each), threads.submit(finish_each)
        flagged = cancelling.result()
        assert all(finishing.result())

    for bell in doorbells:
        task = read(database, bell)
        assert (task.status, task.result) == (Status.COMPLETED, {"text": "done"})
        assert (task.cancel_requested_at is not None) == (bell.task_id in flagged)
