"""A claim is bound to the reservation: task, attempt and worker."""

import uuid

from bitinglip.domain.task import Status
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.factories import execute, finish, make_echo, make_reserved, make_running, make_worker, read, submit


def test_a_worker_claims_what_is_reserved_for_it(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_reserved(database, worker, make_echo(text="hello", agent="bot"))

    claimed = claim_reserved(database, [doorbell], worker)[0]

    assert claimed is not None
    assert (claimed.payload, claimed.agent_id, claimed.attempt) == ({"text": "hello"}, "bot", 1)
    task = read(database, doorbell)
    assert task.status is Status.IN_PROGRESS
    assert task.started_at is not None


def test_another_workers_claim_gets_nothing(database: Database) -> None:
    doorbell = make_reserved(database, make_worker(database, "owner"))

    assert claim_reserved(database, [doorbell], make_worker(database, "other")) == [None]
    assert read(database, doorbell).status is Status.PENDING


def test_another_worker_cannot_claim_what_runs(database: Database) -> None:
    doorbell = make_running(database, make_worker(database, "owner"))

    assert claim_reserved(database, [doorbell], make_worker(database, "other")) == [None]


def test_a_stale_doorbell_claims_nothing(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_reserved(database, worker)
    execute(database, "UPDATE tasks SET attempt = 2")

    assert claim_reserved(database, [doorbell], worker) == [None]
    assert read(database, doorbell).status is Status.PENDING
    assert claim_reserved(database, [Doorbell(doorbell.task_id, 2)], worker) != [None]


def test_a_task_that_is_not_reserved_cannot_be_claimed(database: Database) -> None:
    worker = make_worker(database)
    task = submit(database)[0]

    assert claim_reserved(database, [Doorbell(task, 1)], worker) == [None]


def test_a_claim_whose_reply_was_lost_is_made_again(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)

    again = claim_reserved(database, [doorbell], worker)[0]

    assert again is not None
    assert again.attempt == 1


def test_a_cancelled_task_is_not_claimed(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_reserved(database, worker)
    cancel(database, [doorbell.task_id])

    assert claim_reserved(database, [doorbell], worker) == [None]


def test_a_running_task_that_is_to_be_cancelled_is_not_claimed_again(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    cancel(database, [doorbell.task_id])

    assert claim_reserved(database, [doorbell], worker) == [None]


def test_a_finished_task_is_not_claimed(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    finish(database, worker, doorbell)

    assert claim_reserved(database, [doorbell], worker) == [None]


def test_a_doorbell_for_no_task_claims_nothing(database: Database) -> None:
    assert claim_reserved(database, [Doorbell(uuid.uuid4(), 1)], make_worker(database)) == [None]


def test_answers_come_in_the_order_of_the_doorbells(database: Database) -> None:
    worker = make_worker(database)
    first, second = make_reserved(database, worker), make_reserved(database, worker)

    claimed = claim_reserved(database, [second, Doorbell(uuid.uuid4(), 1), first], worker)

    assert [task and task.task_id for task in claimed] == [second.task_id, None, first.task_id]
