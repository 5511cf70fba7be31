"""Two who write to one task, or one whose words are lost: the races that only show when a lock or a reply comes late.

Each race has a guard, and each guard a test that fails without it:

- a message before its commit, or for a task that is not known: below; `test_claim`, `worker/test_doorbells`
- a message that is lost: `worker/test_doorbells`, `worker/test_servers_away`, `dispatcher/test_loop`
- more messages than a worker has use for: `dispatcher/test_round` (twice its slots)
- a message that comes twice or late: `test_claim`, `worker/test_doorbells`
- the rescuer against the heartbeat: below (both orders), `test_rescue`
- a zombie's ending: below (while it is rescued), `test_rescue`, `test_finish`
- a zombie's events: `streams/test_takeover`, `streams/test_streams`
- cancel against claim: `test_cancel`
- a task that is to be cancelled is never left waiting: below (released), `test_finish` (retried), `test_rescue` (lost),
  `test_retry` (failed and brought back)
- cancel against an ending: `test_cancel`, `test_finish`
- the rescuer against cancel: below (both orders), `test_rescue`
- a task that is lost with its worker again and again: below
- the reply to a claim that is lost: below, `test_claim`
- the reply to an ending that is lost: below, `test_finish`
- endings that are recorded together: `test_finish`, `test_rescue` (the row is held until they are)
- a worker that takes the place of another: below (its process), `test_rescue` (its name)
- PostgreSQL away for longer than a lease: below (the dispatcher's patience), `test_rescue` (PostgreSQL's own start),
  `worker/test_servers_away`
- two rescuers at once: `test_rescue`
- a retry against the deletion of what it waits for: below
"""

import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bitinglip.dispatcher import loop
from bitinglip.dispatcher.loop import Dispatcher
from bitinglip.dispatcher.plan import Assignment
from bitinglip.domain.task import QueueState, Status, make_request
from bitinglip.errors import DatabaseUnreachableError
from bitinglip.lifecycle import claim as claiming
from bitinglip.lifecycle import edit
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.lease import renew
from bitinglip.lifecycle.rescue import report_death, rescue
from bitinglip.lifecycle.waiting import settle
from bitinglip.store import records
from bitinglip.store.database import Database
from bitinglip.store.queues import Reservation, reserve_tasks
from bitinglip.store.tasks import Change, ClaimedTask, Doorbell, cancel_tasks, claim_tasks
from bitinglip.store.workers import MAX_LOSSES, expire_workers, release_tasks
from tests.conftest import eventually
from tests.factories import (
    dispatch,
    execute,
    finish,
    make_reserved,
    make_running,
    make_worker,
    read,
    read_outcomes,
    submit,
)

SHORT = 0.001
"""A lease that PostgreSQL has outlived."""

ERROR = {"code": "echo_error", "message": "it failed"}


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@contextmanager
def held_open(database: Database, write: Callable[[Connection], object]) -> Iterator[None]:
    """What another transaction has written, and commits at the end of the block."""
    with database.transaction() as connection:
        write(connection)
        yield


def await_wait(database: Database, later: "Future[Any]") -> None:
    """Return when it waits for another transaction."""
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
    eventually(lambda: execute(database, waiting))
    assert not later.done()


def expire(database: Database, worker: uuid.UUID) -> None:
    execute(database, "UPDATE workers SET lease_expires_at = now() - interval '1 s' WHERE id = :id", id=worker)


def beat(database: Database, worker: uuid.UUID) -> object:
    return renew(database, worker, lease_seconds=60)


class Ringer:
    """Looks, at each doorbell, at what others see of its task."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.heard: list[tuple[uuid.UUID, QueueState | None]] = []

    def ring(self, assignments: Sequence[Assignment]) -> None:
        self.heard += [(item.head.task_id, read(self._database, item.head.task_id).queue_state) for item in assignments]


@contextmanager
def open_dispatcher(database: Database, *, lease_seconds: float = 60) -> Iterator[tuple[Dispatcher, Ringer]]:
    ringer = Ringer(database)
    dispatcher = Dispatcher(database, ringer, lambda _: None, lease_seconds=lease_seconds, swap_seconds=10)  # type: ignore[arg-type]
    yield dispatcher, ringer
    dispatcher.stop()
    dispatcher._listener._ear.close()


def test_a_doorbell_rings_when_everybody_can_see_its_reservation(database: Database) -> None:
    make_worker(database)
    task = submit(database)[0]

    with open_dispatcher(database) as (dispatcher, ringer):
        dispatcher.dispatch_once()

    assert ringer.heard == [(task, QueueState.RESERVED)]


def test_no_doorbell_rings_for_a_reservation_that_failed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    make_worker(database)
    task = submit(database)[0]
    execute(database, "ALTER TABLE agent_shares ADD CONSTRAINT none CHECK (false)")

    with open_dispatcher(database) as (dispatcher, ringer), pytest.raises(DBAPIError, match="none"):
        dispatcher.dispatch_once()

    assert ringer.heard == []
    assert read(database, task).queue_state is QueueState.READY


def test_a_rescuer_passes_over_a_worker_that_is_just_renewing(database: Database, threads: ThreadPoolExecutor) -> None:
    worker = make_worker(database, lease_seconds=SHORT)
    doorbell = make_running(database, worker)

    def renew_it(connection: Connection) -> None:
        connection.execute(text("UPDATE workers SET lease_expires_at = now() + interval '60 s'"))

    with held_open(database, renew_it):
        assert threads.submit(rescue, database, lease_seconds=SHORT).result(timeout=10) == []
    assert rescue(database, lease_seconds=SHORT) == []
    assert read(database, doorbell).status is Status.IN_PROGRESS


def test_a_heartbeat_that_comes_second_is_told_so(database: Database, threads: ThreadPoolExecutor) -> None:
    worker = make_worker(database, lease_seconds=SHORT)
    doorbell = make_running(database, worker)

    with held_open(database, lambda connection: expire_workers(connection, lease_seconds=SHORT)):
        beating = threads.submit(beat, database, worker)
        await_wait(database, beating)
    assert beating.result(timeout=10) is None
    assert [change.task_id for change in rescue(database, lease_seconds=SHORT)] == [doorbell.task_id]


def test_an_ending_that_waits_for_the_rescuer_is_discarded(database: Database, threads: ThreadPoolExecutor) -> None:
    zombie = make_worker(database)
    doorbell = make_running(database, zombie)
    execute(database, "UPDATE workers SET state = 'gone'")

    with held_open(database, release_tasks):
        ending = threads.submit(finish, database, zombie, doorbell, result={"text": "late"})
        await_wait(database, ending)
    assert not ending.result(timeout=10)
    assert read_outcomes(database, doorbell) == [(1, "lost")]
    assert read(database, doorbell).queue_state is QueueState.READY


def test_a_claim_that_waits_for_the_rescuer_gets_nothing(database: Database, threads: ThreadPoolExecutor) -> None:
    heir, late = make_worker(database, "heir"), make_worker(database, "late")
    doorbell = make_reserved(database, late)
    execute(database, "UPDATE workers SET state = 'gone' WHERE name = 'late'")

    def give_to_the_heir(connection: Connection) -> None:
        release_tasks(connection)
        assert reserve_tasks(connection, [Reservation(doorbell.task_id, heir, 0.0)])

    with held_open(database, give_to_the_heir):
        claim = threads.submit(claim_reserved, database, [doorbell], late)
        await_wait(database, claim)
    assert claim.result(timeout=10) == [None]
    assert claim_reserved(database, [doorbell], heir) != [None]


@pytest.mark.parametrize("suspect", [False, True])
def test_a_released_task_that_is_to_be_cancelled_is(database: Database, suspect: bool) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    cancel(database, [doorbell.task_id])

    assert finish(database, worker, doorbell, "released", error=ERROR, suspect=suspect)

    task = read(database, doorbell)
    assert (task.status, task.queue_state, task.attempt) == (Status.CANCELLED, None, 1)
    assert read_outcomes(database, doorbell) == [(1, "cancelled")]


def test_a_cancel_that_waits_for_the_rescuer_finds_the_task_pending(
    database: Database, threads: ThreadPoolExecutor
) -> None:
    doorbell = make_running(database, make_worker(database))
    execute(database, "UPDATE workers SET state = 'gone'")

    with held_open(database, release_tasks):
        cancelling = threads.submit(cancel, database, [doorbell.task_id])
        await_wait(database, cancelling)
    assert [change.status for change in cancelling.result(timeout=10)] == [Status.CANCELLED]
    assert read(database, doorbell).status is Status.CANCELLED


def test_a_rescuer_that_comes_upon_a_cancel_leaves_it_to_the_next(
    database: Database, threads: ThreadPoolExecutor
) -> None:
    doorbell = make_running(database, make_worker(database))
    execute(database, "UPDATE workers SET state = 'gone'")

    with held_open(database, lambda connection: cancel_tasks(connection, [doorbell.task_id])):
        assert threads.submit(rescue, database, lease_seconds=SHORT).result(timeout=10) == []
    assert [change.status for change in rescue(database, lease_seconds=SHORT)] == [Status.CANCELLED]
    assert read_outcomes(database, doorbell) == [(1, "cancelled")]


def lose(database: Database, task: uuid.UUID, times: int) -> None:
    """Lose a ready task with one worker after another."""
    for _ in range(times):
        worker = make_worker(database)
        assert dispatch(database) == [task]
        assert claim_reserved(database, [Doorbell(task, read(database, task).attempt)], worker) != [None]
        execute(database, "UPDATE workers SET state = 'gone'")
        rescue(database, lease_seconds=SHORT)


def test_a_task_that_is_lost_too_often_fails_uncharged(database: Database) -> None:
    task = submit(database)[0]
    lose(database, task, MAX_LOSSES)
    assert read(database, task).queue_state is QueueState.READY

    lose(database, task, 1)

    failed = read(database, task)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.failures) == (Status.FAILED, "lost_too_often", 0)
    assert read_outcomes(database, task) == [(attempt, "lost") for attempt in range(1, MAX_LOSSES + 2)]


def test_what_was_only_reserved_is_never_lost_too_often(database: Database) -> None:
    task = submit(database)[0]
    lose(database, task, MAX_LOSSES)
    make_worker(database)
    dispatch(database)
    execute(database, "UPDATE workers SET state = 'gone'")

    rescue(database, lease_seconds=SHORT)

    assert read(database, task).queue_state is QueueState.READY


def test_a_task_that_is_lost_too_often_but_to_be_cancelled_is(database: Database) -> None:
    task = submit(database)[0]
    lose(database, task, MAX_LOSSES)
    worker = make_worker(database)
    dispatch(database)
    claim_reserved(database, [Doorbell(task, MAX_LOSSES + 1)], worker)
    cancel(database, [task])
    execute(database, "UPDATE workers SET state = 'gone'")

    rescue(database, lease_seconds=SHORT)

    assert read(database, task).status is Status.CANCELLED


def test_a_claim_whose_reply_is_lost_is_asked_for_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = make_worker(database)
    doorbell = make_reserved(database, worker)
    replies = iter([False, True])

    def claim_over_a_bad_line(*arguments: Any) -> list[ClaimedTask]:
        claimed = claim_tasks(*arguments)
        if not next(replies):
            raise DatabaseUnreachableError("here", "the reply was lost")
        return claimed

    monkeypatch.setattr(claiming, "claim_tasks", claim_over_a_bad_line)

    claimed = claim_reserved(database, [doorbell], worker)[0]

    assert claimed is not None
    assert claimed.attempt == 1
    assert read_outcomes(database, doorbell) == []


@pytest.mark.parametrize(("outcome", "attempt"), [("completed", 1), ("failed", 1), ("retried", 2), ("released", 2)])
def test_an_ending_whose_reply_was_lost_is_recorded_and_charged_once(
    database: Database, outcome: str, attempt: int
) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    ending: dict[str, Any] = {"result": {}} if outcome == "completed" else {"error": ERROR}
    assert finish(database, worker, doorbell, outcome, **ending)
    first = read(database, doorbell)

    assert not finish(database, worker, doorbell, outcome, **ending)

    assert read(database, doorbell) == first
    assert (first.attempt, first.failures) == (attempt, outcome in {"failed", "retried"})
    assert len(read_outcomes(database, doorbell)) == 1


def test_the_death_of_a_process_frees_what_it_held_and_nothing_of_its_successor(database: Database) -> None:
    def make_process(pid: int, node: str | None = None) -> uuid.UUID:
        worker = make_worker(database, "same")
        values = {"pid": pid, "node": node or socket.gethostname(), "id": worker}
        execute(database, "UPDATE workers SET pid = :pid, node = :node WHERE id = :id", **values)
        return worker

    running = make_running(database, make_process(11))
    freed = report_death(database, "same", 11)
    assert [(change.task_id, change.attempt) for change in freed] == [(running.task_id, 2)]

    other = make_running(database, make_process(12))
    assert report_death(database, "same", 11) == []
    assert report_death(database, "other", 12) == []
    assert read(database, other).status is Status.IN_PROGRESS

    elsewhere = make_running(database, make_process(13, node="another machine"))
    assert report_death(database, "same", 13) == []
    assert read(database, elsewhere).status is Status.IN_PROGRESS


def test_a_dispatcher_that_lost_contact_ends_no_lease_for_the_time_of_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_seconds = 1.5
    sweeps: list[tuple[float, float | None]] = []

    def sweep_over_a_bad_line(_: Database, *, lease_seconds: float | None) -> list[Change]:
        sweeps.append((time.monotonic(), lease_seconds))
        if len(sweeps) == 2:
            raise DatabaseUnreachableError("here", "no answer")
        return []

    monkeypatch.setattr(loop, "sweep", sweep_over_a_bad_line)
    with open_dispatcher(database, lease_seconds=lease_seconds) as (dispatcher, _), ThreadPoolExecutor(1) as thread:
        thread.submit(dispatcher.run)
        try:
            eventually(lambda: len(sweeps) > 2 and sweeps[-1][1] is not None)
        finally:
            dispatcher.stop()

    assert [ends for _, ends in sweeps[:2]] == [lease_seconds, lease_seconds]
    lost_at, back_at = sweeps[1][0], sweeps[-1][0]
    assert {ends for _, ends in sweeps[2:-1]} == {None}
    assert back_at - lost_at >= lease_seconds


def test_a_child_that_is_retried_while_its_parent_is_deleted_waits_for_nobody(
    database: Database, threads: ThreadPoolExecutor
) -> None:
    parent = submit(database)[0]
    child = submit(database, make_request("echo", {}, depends_on=[parent]))[0]
    worker = make_worker(database)
    dispatch(database)
    claim_reserved(database, [Doorbell(parent, 1)], worker)
    finish(database, worker, Doorbell(parent, 1), "failed", error=ERROR)
    settle(database)
    assert read(database, child).status is Status.FAILED

    def delete_parent(connection: Connection) -> None:
        assert records.delete_tasks(connection, [parent])

    with held_open(database, delete_parent):
        retrying = threads.submit(edit.retry, database, [child])
        await_wait(database, retrying)
    assert len(retrying.result(timeout=10)) == 1

    assert read(database, child).queue_state is QueueState.READY
