"""What would stop, starve or poison the sharing: an odd weight, an odd budget, a lane in the way, two who wait."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from bitinglip.dispatcher.placement import Fleet, WorkerRoom
from bitinglip.dispatcher.round import run_round
from bitinglip.domain.task import make_request
from bitinglip.errors import InvalidRequestError
from bitinglip.lifecycle.agents import edit_agent, pause_agent
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.check import find_all_drift, repair_all_drift
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.outcome import Outcome
from bitinglip.lifecycle.take import end, register_taker, take
from bitinglip.store.database import Database
from bitinglip.store.queues import RECHECK_SECONDS, lock_dispatch, set_yielding
from bitinglip.store.tasks import Doorbell, Ending
from tests.dispatcher.test_sharing import read_closed, read_share, run_to_end, settle
from tests.factories import dispatch, execute, finish, make_echo, make_worker, measure, read, submit

WAITING = "SELECT FROM pg_locks WHERE NOT granted"


def test_a_weight_that_nothing_can_be_divided_by_is_refused(database: Database) -> None:
    """One grant would cost it all the time there is, and the dispatcher could not count on."""
    with pytest.raises(InvalidRequestError, match=r"weight.*0\.001"):
        edit_agent(database, "bot", weight=1e-310)


def test_a_greater_weight_is_felt_at_once(database: Database) -> None:
    """What it was charged under the old one counts by the new one."""
    worker = make_worker(database, slots=1)
    edit_agent(database, "slow", weight=0.001)
    measure(database, "slow", "other", cost=10)
    submit(database, *(make_echo(agent=agent) for agent in ("slow", "other") for _ in range(40)))
    for task in dispatch(database):
        run_to_end(database, worker, task, seconds=10)
    settle(database)
    edit_agent(database, "slow", weight=1)

    granted = []
    for _ in range(5):
        granted += dispatch(database)
        for task in granted[-2:]:
            run_to_end(database, worker, task, seconds=10)
    assert [read(database, task).agent_id for task in granted].count("slow") >= 3
    settle(database)
    assert "lane_time" not in [drift.code for drift in find_all_drift(database)]


def test_a_dear_task_of_the_past_does_not_use_up_every_day_of_a_small_budget(database: Database) -> None:
    worker = make_worker(database, slots=1)
    (dear,) = submit(database, make_echo(agent="small"))
    dispatch(database)
    run_to_end(database, worker, dear, seconds=100)
    settle(database)
    execute(database, "UPDATE agents SET daily_seconds = 50 WHERE id = 'small'")
    submit(database, *(make_echo(agent="small") for _ in range(3)))

    assert len(dispatch(database)) == 1
    assert read_closed(database) == {"small": "daily_budget"}


def test_a_budget_is_counted_though_its_tasks_cost_next_to_nothing(database: Database) -> None:
    make_worker(database)
    measure(database, "tiny")
    execute(database, "UPDATE costs SET peak_seconds = 1e-310")
    edit_agent(database, "tiny", daily_seconds=1_000_000)
    submit(database, make_echo(agent="tiny"))
    assert len(dispatch(database)) == 1


@pytest.mark.parametrize("seconds", [-1e300, 1e308])
def test_no_measurement_stops_the_dispatcher_or_pays_for_others(database: Database, seconds: float) -> None:
    worker = make_worker(database, slots=2)
    submit(database, *(make_echo() for _ in range(8)))
    for _ in range(2):
        for task in dispatch(database):
            run_to_end(database, worker, task, seconds=seconds, tokens=10**30)
    settle(database)
    assert 0 <= read_share(database)[0] <= 1e12


def test_old_tasks_of_a_paused_agent_do_not_take_the_turn_of_a_lower_band(database: Database) -> None:
    worker = make_worker(database, slots=1)
    submit(database, *(make_echo(agent="paused", priority="low") for _ in range(20)))
    pause_agent(database, "paused")
    (low,) = submit(database, make_echo(agent="low", priority="low"))
    submit(database, *(make_echo(agent=f"high-{n}", priority="high") for n in range(12) for _ in range(5)))

    for _ in range(12):
        for task in dispatch(database):
            run_to_end(database, worker, task, seconds=1)
    assert read(database, low).status == "completed"


def test_an_urgent_task_whose_model_cannot_come_yet_displaces_nothing(database: Database) -> None:
    """What gave way would come back at once, and give way again, and the slot would stay empty."""
    worker = make_worker(
        database,
        slots=2,
        kinds=("text",),
        models=("held", "unused"),
        model_bytes={"held": 60, "unused": 30},
        memory_limit_bytes=100,
    )
    execute(database, "INSERT INTO models (name, held_bytes) VALUES ('held', 60), ('unused', 30), ('away', 40)")

    def ask(model: str, priority: str) -> uuid.UUID:
        request = make_request("text", {"prompt": "hello"}, model=model, agent_id=model, priority=priority)
        return submit(database, request)[0]

    for _ in range(6):
        ask("held", "medium")
    bells = [Doorbell(task, 1) for task in dispatch(database)]
    claim_reserved(database, bells[:2], worker)
    urgent = ask("away", "critical")
    dispatch(database)
    finish(database, worker, bells[0], result={})
    assert claim_reserved(database, [bells[2]], worker) != [None]

    # Once it has waited long enough, it has the next slot.
    dispatch(database)
    execute(database, "UPDATE lanes SET passed_at = now() - interval '1 hour' WHERE model = 'away'")
    dispatch(database)
    finish(database, worker, bells[1], result={})
    claim_reserved(database, [bells[3]], worker)
    dispatch(database)
    assert read(database, urgent).queue_state == "reserved"


def test_a_check_that_corrects_what_an_agent_runs_lets_it_go_on(database: Database) -> None:
    make_worker(database)
    edit_agent(database, "limited", max_running=1)
    (task,) = submit(database, make_echo(agent="limited"))
    execute(database, "INSERT INTO agent_shares VALUES ('default', 'limited', 0, 5)")
    assert dispatch(database) == []
    assert read_closed(database) == {"limited": "max_running"}

    repair_all_drift(database)
    assert dispatch(database) == [task]


def test_a_limit_is_held_against_what_really_runs(database: Database) -> None:
    """What processes of older releases ended was never counted down."""
    make_worker(database)
    (task,) = submit(database, make_echo(agent="limited"))
    execute(database, "INSERT INTO agent_shares VALUES ('default', 'limited', 0, 5)")
    edit_agent(database, "limited", max_running=1)
    assert dispatch(database) == [task]


@pytest.mark.parametrize("place", ["nobody serves it", "its lane is closed", "all workers are gone", "taken"])
def test_a_check_does_not_mind_a_queue_that_nobody_had_to_look_at(database: Database, place: str) -> None:
    kind = "agent" if place == "taken" else "echo"
    if place != "nobody serves it":
        make_worker(database)
    (task,) = submit(database, make_request(kind, {}, agent_id="bot"))
    if place == "its lane is closed":
        pause_agent(database, "bot")
        dispatch(database)
        pause_agent(database, "bot")
    if place == "all workers are gone":
        execute(database, "UPDATE agents SET paused = true")
        dispatch(database)
        execute(database, "UPDATE workers SET state = 'gone'")
        execute(database, "UPDATE lanes SET closed = NULL")
    if place == "taken":
        taker = register_taker(database, "bot", lease_seconds=60)
        taken = take(database, taker, "bot")
        assert taken
        end(database, taker, Ending(taken.task_id, taken.attempt, Outcome.COMPLETED, result={}))
    cancel(database, [task])
    dispatch(database)
    execute(database, "UPDATE tasks SET updated_at = now() - interval '1 hour'")
    assert find_all_drift(database) == []


def test_a_round_does_not_wait_for_a_task_that_somebody_changes(database: Database) -> None:
    """Whoever holds its row goes on to a queue, which the round may hold."""
    make_worker(database)
    task, other = submit(database, make_echo(), make_echo(agent="other"))
    with database.transaction() as changing, ThreadPoolExecutor(1) as threads:
        changing.execute(text("SELECT FROM tasks WHERE agent_id = 'default' FOR NO KEY UPDATE"))
        result = threads.submit(run_round, database).result(timeout=5)
        assert [item.head.task_id for item in result.reserved] == [other]
        # Nor does it try again and again.
        assert not run_round(database).more
    assert dispatch(database) == [task]


def test_a_round_does_not_wait_for_a_worker_that_gives_back_what_it_has(database: Database) -> None:
    """Whoever holds its row goes on to the queues, which the round may hold."""
    worker = make_worker(database)
    with database.transaction() as leaving, ThreadPoolExecutor(1) as threads:
        leaving.execute(text("UPDATE workers SET state = 'draining'"))

        def mark() -> None:
            with database.transaction() as connection:
                lock_dispatch(connection)
                set_yielding(connection, {worker}, {worker})

        threads.submit(mark).result(timeout=5)


def test_whoever_stops_in_the_middle_of_a_transaction_is_cut_off_before_its_tasks_are_forgotten(
    database: Database,
) -> None:
    """Its tasks are ready when it goes on, and the hint of their queue is looked at for so long only."""
    (cut,) = execute(database, "SELECT setting::int / 1000 FROM pg_settings WHERE name LIKE 'idle_in_transaction%'")
    assert 0 < cut[0] < RECHECK_SECONDS


@pytest.mark.parametrize(
    ("slots", "held", "may_swap", "gives_way"),
    [(1, 2, False, True), (2, 3, False, False), (2, 1, False, True), (2, 3, True, True)],
)
def test_a_worker_gives_way_to_an_urgent_model_only_if_it_could_then_swap(
    slots: int, held: int, may_swap: bool, gives_way: bool
) -> None:
    """At once where nothing else runs, elsewhere when it is overdue."""
    busy = WorkerRoom(
        uuid.uuid4(),
        "busy",
        frozenset({"text"}),
        slots,
        0,
        held=held,
        models={"held": 60},
        in_use={"held"},
        memory_bytes=100,
        unclaimed=1,
    )
    fleet = Fleet([busy], {"away": 60})
    # As it is while `held` is in use: together they do not fit.
    assert (busy.id in fleet.find_yielding([(("text", "away", "bot"), may_swap)])) == gives_way


def test_tasks_that_cost_nothing_do_not_stop_the_counting(database: Database) -> None:
    """A mean that only shrinks comes to numbers that PostgreSQL refuses to multiply."""
    worker = make_worker(database, slots=1)
    measure(database, "default", "", cost=1e-300)
    for _ in range(3):
        (task,) = submit(database)
        dispatch(database)
        bell = Doorbell(task, 1)
        assert all(claim_reserved(database, [bell], worker))
        finish(database, worker, bell, result={}, usage={"engine_seconds": 0})
        execute(database, "UPDATE costs SET cost = 1e-307, peak_seconds = 1e-307, running_seconds = 1e-307")
    dispatch(database)

    means = "SELECT cost, peak_seconds FROM costs WHERE agent_id = 'default'"
    assert execute(database, means) == [(pytest.approx(0.0001, rel=0.1), 0.0)]


def test_tasks_that_cost_nothing_still_take_turns(database: Database) -> None:
    worker = make_worker(database, slots=1)
    submit(database, *(make_echo(agent="free") for _ in range(60)))
    submit(database, *(make_echo(agent="later") for _ in range(10)))
    measure(database, "free", "later", cost=0.001)
    served = []
    for _ in range(12):
        for task in dispatch(database):
            served.append(read(database, task).agent_id)
            run_to_end(database, worker, task, seconds=0)

    assert served.count("later") == 10
