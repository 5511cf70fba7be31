"""A worker that goes silent, leaves or is replaced gives its tasks back, and what it sends later is discarded."""

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from bitinglip.domain.task import QueueState, Status
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.lease import Lease, drain, leave, renew
from bitinglip.lifecycle.rescue import rescue
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.tasks import Change, Doorbell
from bitinglip.store.workers import MAX_LOSSES, find_next_expiry, release_tasks
from tests.conftest import eventually
from tests.factories import (
    dispatch,
    execute,
    finish,
    make_echo,
    make_reserved,
    make_running,
    make_worker,
    read,
    read_outcomes,
    submit,
)

SHORT = 0.001
"""A lease that PostgreSQL has outlived."""


def expire(database: Database, *workers: uuid.UUID) -> None:
    past = "UPDATE workers SET lease_expires_at = now() - interval '1 s' WHERE id = ANY(CAST(:ids AS uuid[]))"
    execute(database, past, ids=[str(worker) for worker in workers])


def test_a_reservation_of_a_lost_worker_is_ready_again_as_the_same_attempt(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_reserved(database, worker)
    expire(database, worker)

    assert len(rescue(database, lease_seconds=SHORT)) == 1

    task = read(database, doorbell)
    assert (task.queue_state, task.attempt, task.worker_id) == (QueueState.READY, 1, None)
    assert read_outcomes(database, doorbell) == []


def test_a_running_task_of_a_lost_worker_is_ready_again_as_a_new_attempt(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    expire(database, worker)

    rescue(database, lease_seconds=SHORT)

    task = read(database, doorbell)
    assert (task.queue_state, task.attempt, task.failures) == (QueueState.READY, 2, 0)
    assert read_outcomes(database, doorbell) == [(1, "lost")]
    make_worker(database, "next")
    assert dispatch(database) == [doorbell.task_id]


def test_a_rescued_task_that_was_to_be_cancelled_is_cancelled(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    cancel(database, [doorbell.task_id])
    expire(database, worker)

    rescue(database, lease_seconds=SHORT)

    assert read(database, doorbell).status is Status.CANCELLED
    assert read_outcomes(database, doorbell) == [(1, "cancelled")]


def test_a_rescued_worker_cannot_overwrite_the_result(database: Database) -> None:
    zombie = make_worker(database, "zombie")
    doorbell = make_running(database, zombie)
    expire(database, zombie)
    rescue(database, lease_seconds=SHORT)
    heir = make_worker(database, "heir")
    dispatch(database)
    second = Doorbell(doorbell.task_id, 2)
    claim_reserved(database, [second], heir)

    assert not finish(database, zombie, doorbell, result={"text": "late"})
    assert finish(database, heir, second, result={"text": "right"})
    assert not finish(database, zombie, doorbell, result={"text": "later"})
    assert read(database, doorbell).result == {"text": "right"}
    assert read_outcomes(database, doorbell) == [(1, "lost"), (2, "completed")]


def test_a_lost_worker_is_told_at_its_next_heartbeat(database: Database) -> None:
    worker = make_worker(database)
    expire(database, worker)
    rescue(database, lease_seconds=SHORT)

    assert renew(database, worker, lease_seconds=60, model_bytes={}, memory_bytes=0) is None


def test_a_worker_that_renews_its_lease_keeps_its_tasks(database: Database) -> None:
    worker = make_worker(database, lease_seconds=SHORT)
    doorbell = make_running(database, worker)
    renewed = renew(database, worker, lease_seconds=60, model_bytes={"m": 5}, memory_bytes=5)

    assert renewed is not None
    assert [task.doorbell for task in renewed.held] == [doorbell]
    assert len(rescue(database, lease_seconds=SHORT)) == 0
    assert read(database, doorbell).status is Status.IN_PROGRESS


def test_no_lease_expires_within_a_lease_of_postgresqls_own_start(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    expire(database, worker)

    assert len(rescue(database, lease_seconds=86_400)) == 0
    assert read(database, doorbell).status is Status.IN_PROGRESS


def test_a_new_start_takes_over_the_name_and_frees_what_its_predecessor_held(database: Database) -> None:
    old = make_worker(database, "same")
    running, reserved = make_running(database, old), make_reserved(database, old)

    new = make_worker(database, "same")

    assert renew(database, old, lease_seconds=60, model_bytes={}, memory_bytes=0) is None
    assert renew(database, new, lease_seconds=60, model_bytes={}, memory_bytes=0) == Lease(draining=False, held=[])
    assert not finish(database, old, running, result={})
    assert (read(database, running).attempt, read(database, reserved).attempt) == (2, 1)
    assert sorted(dispatch(database)) == sorted([running.task_id, reserved.task_id])


def test_a_worker_that_leaves_gives_everything_back(database: Database) -> None:
    worker = make_worker(database)
    make_running(database, worker)
    make_reserved(database, worker)

    assert leave(database, worker) == 2
    assert dispatch(database) == []
    make_worker(database, "next")
    assert len(dispatch(database)) == 2


def test_a_draining_worker_gives_back_what_it_has_not_begun_and_gets_nothing_more(database: Database) -> None:
    worker = make_worker(database)
    running, reserved = make_running(database, worker), make_reserved(database, worker)

    drain(database, worker)

    assert dispatch(database) == []
    assert read(database, running).status is Status.IN_PROGRESS
    assert read(database, reserved).queue_state is QueueState.READY
    assert finish(database, worker, running, result={})


def test_a_late_finish_holds_its_task_until_it_is_recorded(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    expire(database, worker)

    with database.transaction() as connection:
        connection.execute(text("SELECT FROM tasks WHERE id = :id FOR UPDATE"), {"id": doorbell.task_id})
        assert len(rescue(database, lease_seconds=SHORT)) == 0
    assert len(rescue(database, lease_seconds=SHORT)) == 1


def test_two_sweeps_at_once_rescue_each_task_once(database: Database) -> None:
    worker = make_worker(database, slots=30)
    doorbells = [make_running(database, worker) for _ in range(20)]
    expire(database, worker)
    with ThreadPoolExecutor(4) as threads:
        swept = [threads.submit(rescue, database, lease_seconds=SHORT) for _ in range(8)]
        assert sum(len(one.result()) for one in swept) == 20

    assert {read_outcomes(database, bell)[0] for bell in doorbells} == {(1, "lost")}
    assert all(read(database, bell).attempt == 2 for bell in doorbells)


def test_a_slow_rescuer_leaves_alone_what_a_faster_one_has_given_to_the_living(
    urls: ServerUrls, database: Database
) -> None:
    dead = make_worker(database, "dead")
    doorbells = [make_running(database, dead) for _ in range(2)]
    expire(database, dead)
    execute(
        database,
        """
        CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF current_setting('application_name') = 'slow' THEN PERFORM pg_advisory_xact_lock_shared(7); END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER pause BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION pause()
        """,
    )
    slow = Database(urls.database_url, name="slow")

    def rescue_slowly() -> list[Change]:
        with slow.transaction() as connection:
            # One row after the other, as PostgreSQL does it when there are many.
            connection.execute(text("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"))
            return release_tasks(connection)

    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as gate:
            gate.execute(text("SELECT pg_advisory_xact_lock(7)"))
            paused = text("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            execute(database, "UPDATE workers SET state = 'gone'")
            releasing = threads.submit(rescue_slowly)
            eventually(lambda: gate.execute(paused).all())
            freed = [change.task_id for change in rescue(database, lease_seconds=SHORT)]
            heir = make_worker(database, "heir")
            assert freed == dispatch(database)
            assert claim_reserved(database, [Doorbell(freed[0], 2)], heir) != [None]
        assert {change.task_id for change in releasing.result()} == {bell.task_id for bell in doorbells} - {*freed}
    slow.close()

    task = read(database, freed[0])
    assert (task.status, task.attempt, task.worker_id) == (Status.IN_PROGRESS, 2, heir)


def test_a_rescue_of_thousands_is_quick_and_nobody_waits_for_it(urls: ServerUrls, database: Database) -> None:
    dead = [make_worker(database, f"dead-{number}") for number in range(5)]
    submit(database, *(make_echo(agent=f"agent-{number % 20}") for number in range(2_000)))
    held = """
        UPDATE tasks SET status = 'in_progress', queue_state = NULL, started_at = now(),
                         worker_id = (CAST(:dead AS uuid[]))[1 + seq % 5]
    """
    execute(database, held, dead=[str(worker) for worker in dead])
    living = make_worker(database, "living", slots=100)
    waiting = [make_reserved(database, living) for _ in range(100)]
    expire(database, *dead)
    own = Database(urls.database_url)
    rescued = threading.Event()

    def claim_until_rescued() -> list[float]:
        waits = []
        while waiting and not rescued.is_set():
            began = time.monotonic()
            assert claim_reserved(own, [waiting.pop()], living) != [None]
            waits.append(time.monotonic() - began)
        return waits

    with ThreadPoolExecutor(1) as threads:
        claiming = threads.submit(claim_until_rescued)
        began = time.monotonic()
        assert len(rescue(database, lease_seconds=SHORT)) == 2_000
        seconds = time.monotonic() - began
        rescued.set()
        slowest = max(claiming.result())
    own.close()

    # Ten thousand took 0.6 s; what claimed meanwhile waited no longer than before.
    assert (seconds < 5, slowest < 1) == (True, True), (seconds, slowest)


@pytest.mark.parametrize("state", ["ready", "reserved"])
def test_a_sweep_leaves_living_workers_and_waiting_tasks_alone(database: Database, state: str) -> None:
    worker = make_worker(database)
    task = submit(database)[0] if state == "ready" else make_reserved(database, worker).task_id

    assert len(rescue(database, lease_seconds=SHORT)) == 0
    assert read(database, task).queue_state == state


def test_what_was_handed_back_does_not_count_as_lost(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    execute(
        database,
        """
        INSERT INTO attempts (task_id, attempt, outcome, error)
        SELECT :id, n, 'lost', '{"code": "handed_back"}' FROM generate_series(2, :n) AS n
        """,
        id=doorbell.task_id,
        n=MAX_LOSSES + 5,
    )
    execute(database, "UPDATE tasks SET attempt = :n", n=MAX_LOSSES + 6)
    expire(database, worker)

    rescue(database, lease_seconds=SHORT)

    assert read(database, doorbell).queue_state is QueueState.READY


def test_a_worker_that_comes_back_while_it_drains_is_given_nothing(database: Database) -> None:
    worker = make_worker(database, state="draining", problem="GPU 0 still holds 11.2 GB")
    drain(database, worker)
    submit(database)

    assert dispatch(database) == []
    assert execute(database, "SELECT problem FROM workers") == [("GPU 0 still holds 11.2 GB",)]


def test_the_next_lease_to_run_out_is_known(database: Database) -> None:
    def ask() -> float | None:
        with database.statement() as connection:
            return find_next_expiry(connection)

    assert ask() is None
    make_worker(database, "later", lease_seconds=60)
    gone = make_worker(database, "gone", lease_seconds=1)
    make_worker(database, "first", lease_seconds=5)
    leave(database, gone)

    assert 4 < (ask() or 0) <= 5
