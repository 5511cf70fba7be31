"""Rounds against a real database: what is planned is reserved, once, and no worker is over-filled."""

import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from sqlalchemy import text

from bitinglip.dispatcher.round import run_round
from bitinglip.dispatcher.sweep import sweep
from bitinglip.domain.models import CopyState, ModelSource
from bitinglip.domain.task import QueueState, make_request
from bitinglip.lifecycle.cancel import cancel
from bitinglip.settings import ServerUrls, TaskSettings
from bitinglip.store.copies import note_copy
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelCopy, ModelRecord, insert_entry
from bitinglip.store.lanes import LaneKey, mark_emptied
from bitinglip.store.queues import DEPTH, Reservation, lock_dispatch, recheck_emptied, reserve_tasks
from bitinglip.store.submissions import Limits, insert_tasks
from tests.conftest import eventually
from tests.factories import dispatch, execute, finish, make_echo, make_running, make_worker, measure, read, submit


def test_tasks_of_one_lane_are_granted_in_the_order_they_came(database: Database) -> None:
    tasks = submit(database, *(make_echo(text=str(n)) for n in range(30)))
    make_worker(database, slots=50)

    assert dispatch(database) == tasks


def test_urgent_bands_go_first(database: Database) -> None:
    wanted = {
        priority: submit(database, make_echo(priority=priority))[0]
        for priority in ("low", "medium", "high", "critical")
    }
    make_worker(database, slots=8)

    assert dispatch(database) == [wanted[priority] for priority in ("critical", "high", "medium", "low")]


def test_agents_take_turns_across_rounds(database: Database) -> None:
    owner = {
        task: agent
        for agent in ("first", "second")
        for task in submit(database, *(make_echo(agent=agent) for _ in range(20)))
    }
    worker = make_worker(database, slots=1)
    measure(database, "first", "second")
    served: list[str] = []
    for _ in range(10):
        granted = dispatch(database)
        served += [owner[task] for task in granted]
        execute(database, "UPDATE tasks SET worker_id = NULL, queue_state = 'blocked' WHERE worker_id = :w", w=worker)

    assert Counter(served) == {"first": 10, "second": 10}
    assert all(first != second for first, second in pairwise(served))


def test_a_weight_counts_across_rounds(database: Database) -> None:
    submit(database, *(make_echo(agent=agent) for agent in ("heavy", "light") for _ in range(30)))
    execute(database, "UPDATE agents SET weight = 3 WHERE id = 'heavy'")
    measure(database, "heavy", "light")
    make_worker(database, slots=8)

    granted = Counter(read(database, task).agent_id for task in dispatch(database))

    assert granted == {"heavy": 12, "light": 4}


def test_a_worker_is_given_twice_its_slots_and_no_more(database: Database) -> None:
    worker = make_worker(database, slots=3)
    make_running(database, worker)
    submit(database, *(make_echo() for _ in range(20)))

    assert len(dispatch(database)) == 3 * DEPTH - 1
    assert dispatch(database) == []


def test_an_ended_task_makes_room_for_one(database: Database) -> None:
    worker = make_worker(database, slots=1)
    running = make_running(database, worker)
    submit(database, *(make_echo() for _ in range(5)))
    dispatch(database)

    finish(database, worker, running, result={})

    assert len(dispatch(database)) == 1


def test_a_worker_is_given_only_its_kinds(database: Database) -> None:
    submit(database)
    make_worker(database, kinds=("text",))

    assert dispatch(database) == []


def test_a_worker_whose_lease_is_over_is_given_nothing(database: Database) -> None:
    submit(database)
    make_worker(database, lease_seconds=-1)

    assert dispatch(database) == []


def test_each_pool_has_its_own_workers(database: Database) -> None:
    submit(database, *(make_echo() for _ in range(10)))
    slow, fast = make_worker(database, "a", slots=1, pool="a"), make_worker(database, "b", slots=2, pool="b")

    dispatch(database)

    held = dict(execute(database, "SELECT worker_id, count(*) FROM tasks WHERE worker_id IS NOT NULL GROUP BY 1"))
    assert held == {slow: 2, fast: 4}


def test_dispatchers_at_once_fill_every_slot_and_over_fill_none(urls: ServerUrls, database: Database) -> None:
    workers = [make_worker(database, f"w{n}", slots=n + 1) for n in range(4)]
    submit(database, *(make_echo(agent=f"agent-{n % 5}") for n in range(200)))
    measure(database, *(f"agent-{n}" for n in range(5)))
    start = threading.Barrier(6)

    def run_dispatcher() -> list[uuid.UUID]:
        own = Database(urls.database_url)
        start.wait()
        granted = [item.head.task_id for _ in range(8) for item in run_round(own).reserved]
        own.close()
        return granted

    with ThreadPoolExecutor(6) as threads:
        runs = [threads.submit(run_dispatcher) for _ in range(6)]
        granted = [task for run in runs for task in run.result()]

    assert len(granted) == len(set(granted)) == DEPTH * (1 + 2 + 3 + 4)
    held = dict(execute(database, "SELECT worker_id, count(*) FROM tasks WHERE worker_id IS NOT NULL GROUP BY 1"))
    assert held == {worker: DEPTH * (n + 1) for n, worker in enumerate(workers)}


def test_a_dispatcher_plans_only_after_another_has_committed(database: Database) -> None:
    make_worker(database, slots=1)
    first, *others = submit(database, *(make_echo() for _ in range(5)))
    waiting = text("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            lock_dispatch(connection)
            other = threads.submit(run_round, database)
            eventually(lambda: connection.execute(waiting).all())
            worker = connection.scalar(text("SELECT id FROM workers"))
            assert reserve_tasks(connection, [Reservation(first, worker, 0.0)])
        granted = [item.head.task_id for item in other.result().reserved]

    assert granted == others[: DEPTH - 1]


def test_a_task_that_is_cancelled_while_it_is_planned_is_not_reserved(database: Database) -> None:
    tasks = submit(database, *(make_echo() for _ in range(4)))
    cancel(database, tasks[1:3])
    make_worker(database)

    assert dispatch(database) == [tasks[0], tasks[3]]


def test_a_lane_without_tasks_is_not_read_again(database: Database) -> None:
    make_worker(database)
    submit(database)
    dispatch(database)

    assert execute(database, "SELECT has_ready FROM queues") == [(False,)]


def test_a_lane_with_more_tasks_than_were_read_stays_in_view(database: Database) -> None:
    make_worker(database, slots=1)
    submit(database, *(make_echo() for _ in range(10)))
    dispatch(database)

    assert execute(database, "SELECT has_ready FROM queues") == [(True,)]


def test_a_thousand_cancelled_queues_hide_no_task(database: Database) -> None:
    tasks = submit(database, *(make_echo(agent=f"gone-{n}", priority="high") for n in range(300)))
    cancel(database, tasks)
    waiting = submit(database, make_echo(priority="low"))
    make_worker(database)

    assert dispatch(database) == waiting


def test_a_task_submitted_while_its_lane_is_emptied_is_found_by_the_sweep(database: Database) -> None:
    make_worker(database)
    submit(database)
    lane = LaneKey("echo", "", "default", "medium")
    late = make_echo()
    with database.transaction() as submitter:
        # The lane still has its hint, so the submitter leaves it alone and wakes nobody.
        insert_tasks(submitter, [late], limits=Limits(1_000, 100), max_attempts=1, ttl_seconds=300, exact=False)
        with database.transaction() as connection:
            connection.execute(text("UPDATE tasks SET queue_state = 'blocked'"))
            mark_emptied(connection, [lane])
    assert dispatch(database) == []

    with database.transaction() as connection:
        assert recheck_emptied(connection) == 1
    assert dispatch(database) == [late.id]


def test_a_lane_is_not_emptied_over_a_task_that_is_there(database: Database) -> None:
    submit(database)

    with database.transaction() as connection:
        mark_emptied(connection, [LaneKey("echo", "", "default", "medium")])

    assert execute(database, "SELECT has_ready FROM queues") == [(True,)]


def test_the_sweep_wakes_what_is_due_and_leaves_the_rest(database: Database) -> None:
    due, later = submit(database, make_echo(), make_echo())
    for task, seconds in ((due, -1), (later, 60)):
        execute(
            database,
            "UPDATE tasks SET queue_state = 'scheduled', not_before = now() + make_interval(secs => :s) WHERE id = :id",
            s=seconds,
            id=task,
        )
    execute(database, "UPDATE queues SET has_ready = false")

    assert sweep(database, lease_seconds=8) == []
    assert read(database, later).queue_state is QueueState.SCHEDULED
    make_worker(database)
    assert dispatch(database) == [due]


def test_default_settings_give_four_attempts(database: Database) -> None:
    assert read(database, submit(database)[0]).max_attempts == TaskSettings().max_retry_count + 1 == 4


def test_a_task_for_a_model_of_the_hub_goes_to_a_node_that_has_it(database: Database) -> None:
    workers = {node: make_worker(database, f"on-{node}", node=node, kinds=["text"]) for node in "abc"}
    with database.transaction() as connection:
        for model in ("org/here", "org/elsewhere"):
            insert_entry(connection, ModelRecord(model, ModelSource.HUB, repo=model))
        for model, node, state in (
            ("org/here", "a", CopyState.DOWNLOADING),
            ("org/here", "b", CopyState.AVAILABLE),
            ("org/elsewhere", "c", CopyState.AVAILABLE),
        ):
            note_copy(connection, ModelCopy(model, node, state, "/models", "a" * 40))

    here, elsewhere = (
        submit(database, make_request("text", {"prompt": "?"}, model=model))[0]
        for model in ("org/here", "org/elsewhere")
    )

    assert sorted(dispatch(database)) == sorted([here, elsewhere])
    assert (read(database, here).worker_id, read(database, elsewhere).worker_id) == (workers["b"], workers["c"])
