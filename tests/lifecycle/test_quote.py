"""What is foretold of a wait: against the order in which the dispatcher really grants, and against the truth later."""

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bitinglip.dispatcher.sweep import sweep
from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.errors import InfeasibleError, LimitExceededError
from bitinglip.lifecycle.agents import edit_agent, pause_agent
from bitinglip.lifecycle.explain import explain_task
from bitinglip.lifecycle.quote import Quote, forget_old, quote_request, read_calibration, sample_quotes
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.factories import dispatch, execute, finish, make_echo, make_running, make_worker, submit


def quote(database: Database, request: TaskRequest | None = None) -> Quote:
    return quote_request(database, request or make_echo(agent="bot"), swap_seconds=10)


def find_position(database: Database, task: uuid.UUID) -> int:
    position = explain_task(database, task, swap_seconds=10).position
    assert position is not None
    return position


def know_costs(
    database: Database,
    *,
    type_: str = "echo",
    model: str = "",
    agent: str = "",
    cost: float = 2.0,
    running: float = 10.0,
    pool: str = "default",
) -> None:
    """What tasks of an agent took of late; of anybody, if none is named."""
    sql = "INSERT INTO costs VALUES (:pool, :type, :model, :agent, 100, :cost, :running, 1, 1, now())"
    execute(database, sql, pool=pool, type=type_, model=model, agent=agent, cost=cost, running=running)


def end_first(database: Database, *, seconds: float = 1.0) -> list[uuid.UUID]:
    """The task that was given first ends; what is given instead."""
    sql = """
        UPDATE tasks SET status = 'in_progress', queue_state = NULL, started_at = now() WHERE id = (
            SELECT id FROM tasks WHERE worker_id IS NOT NULL AND finished_at IS NULL ORDER BY reserved_at, seq LIMIT 1)
        RETURNING id, worker_id, attempt
    """
    ((task, worker, attempt),) = execute(database, sql)
    finish(database, worker, Doorbell(task, attempt), result={}, usage={"engine_seconds": seconds})
    return dispatch(database)


def fill(database: Database, *, slots: int = 1) -> uuid.UUID:
    """A worker that has all that it can be given."""
    worker = make_worker(database, slots=slots)
    submit(database, *(make_echo(agent="before") for _ in range(2 * slots)))
    assert len(dispatch(database)) == 2 * slots
    return worker


@pytest.mark.parametrize("seed", range(3))
def test_positions_are_those_of_the_order_in_which_tasks_are_granted(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    fill(database)
    weights = {"one": 1, "two": 2, "four": 4}
    for agent, weight in weights.items():
        edit_agent(database, agent, weight=weight)
        know_costs(database, agent=agent, cost=1.0)
    agents = [agent for agent in weights for _ in range(chance.randint(3, 12))]
    chance.shuffle(agents)
    tasks = submit(database, *(make_echo(agent=agent) for agent in agents))
    dispatch(database)
    foretold = {task: find_position(database, task) for task in tasks}

    order: list[uuid.UUID] = []
    while len(order) < len(tasks):
        order += end_first(database)

    off = {task: abs(order.index(task) - position) for task, position in foretold.items()}
    assert max(off.values()) <= 2, (foretold, order)
    assert sum(off.values()) / len(off) < 1


def test_a_quote_counts_as_if_the_task_were_submitted_and_records_nothing(database: Database) -> None:
    fill(database)
    submit(database, *(make_echo(agent="other") for _ in range(5)), *(make_echo(agent="bot") for _ in range(3)))
    dispatch(database)
    before = execute(database, "SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM queues)")

    found = quote(database)

    assert execute(database, "SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM queues)") == before
    (task,) = submit(database, make_echo(agent="bot"))
    dispatch(database)
    assert found.position == find_position(database, task) == 7
    assert (found.feasible, found.code, found.pool) == (True, "agent_turn", "default")


def test_an_agent_that_is_new_begins_where_the_least_active_one_is(database: Database) -> None:
    fill(database)
    submit(database, *(make_echo(agent="before") for _ in range(50)))
    dispatch(database)

    # One of `before` is at the same virtual time and older.
    assert quote(database, make_echo(agent="new")).position == 1


def test_a_wait_follows_from_the_running_seconds_and_the_slots(database: Database) -> None:
    fill(database, slots=4)
    know_costs(database, cost=2.0, running=10.0)
    submit(database, *(make_echo(agent="bot") for _ in range(395)))
    dispatch(database)

    found = quote(database)

    # 395 before it and 4 more reserved than there are slots: 400 ends, at one each 2.5 s.
    assert found.position == 395
    assert found.wait_p50_seconds == pytest.approx(1_000, rel=0.05)
    assert found.wait_p90_seconds == pytest.approx(1_000 * (1 + 1.28 * 0.25), rel=0.05)
    assert found.engine_seconds == 2.0


def test_what_an_agent_asked_before_counts_by_what_it_takes_itself(database: Database) -> None:
    make_worker(database, slots=1, kinds=["text", "echo"])
    submit(database, *(make_echo(agent="before") for _ in range(2)))
    dispatch(database)
    know_costs(database, cost=10.0, running=20.0)
    know_costs(database, cost=0.1, running=0.2, type_="text", model="demo")
    submit(database, *(make_echo(agent="bot") for _ in range(5)), *(make_echo(agent="other") for _ in range(9)))
    dispatch(database)

    found = quote(database, make_request("text", {"prompt": "Hello"}, model="demo", agent_id="bot"))

    # `other` has as much in the meantime; of 12 tasks of 20 s each only the one that runs may end sooner.
    assert found.position in (10, 11)
    assert found.engine_seconds == 0.1
    assert found.wait_p50_seconds == pytest.approx(240, rel=0.15)


def test_a_faster_worker_needs_fewer_engine_seconds(database: Database) -> None:
    make_worker(database, speed=4.0)
    know_costs(database, cost=2.0)

    assert quote(database).engine_seconds == 0.5


def test_where_tokens_are_charged_the_running_seconds_stand_for_the_engines(database: Database) -> None:
    make_worker(database, charge="tokens")
    know_costs(database, cost=500, running=3)

    assert quote(database).engine_seconds == 3


def test_with_room_nobody_waits(urls: ServerUrls, database: Database) -> None:
    make_worker(database, slots=2)
    know_costs(database)
    alone = quote(database)
    # A dispatcher is seen by its connection.
    dispatcher = Database(urls.database_url, connections=1, name="bitinglip-dispatcher")
    dispatcher.check_schema()

    found = quote(database)

    dispatcher.close()
    assert (alone.code, alone.wait_p50_seconds) == ("no_dispatcher", None)
    assert (found.code, found.position, found.wait_p50_seconds) == ("next", 0, 0.0)
    assert found.wait_p90_seconds is not None
    assert found.wait_p90_seconds < 1


def test_the_places_of_an_agent_may_be_fewer_than_the_slots(database: Database) -> None:
    worker = make_worker(database, slots=10)
    know_costs(database, running=10)
    for _ in range(10):
        make_running(database, worker, make_echo(agent="other"))
    submit(database, *(make_echo(agent="other") for _ in range(10)))
    dispatch(database)
    submit(database, *(make_echo(agent="bot") for _ in range(99)))
    dispatch(database)
    free = quote(database).wait_p50_seconds
    edit_agent(database, "bot", max_running=1)

    limited = quote(database).wait_p50_seconds

    assert free is not None
    assert limited is not None
    assert limited > 5 * free


def test_without_a_worker_a_wait_is_not_foretold(database: Database) -> None:
    found = quote(database)

    assert (found.feasible, found.code, found.position) == (True, "no_worker", None)
    assert (found.wait_p50_seconds, found.wait_p90_seconds, found.engine_seconds) == (None, None, None)


def test_a_paused_agent_is_told_so(database: Database) -> None:
    make_worker(database)
    edit_agent(database, "bot")
    pause_agent(database, "bot")

    assert quote(database).code == "agent_paused"


def test_what_is_refused_at_submission_is_not_quoted(database: Database) -> None:
    make_worker(database, kinds=("text",))
    with pytest.raises(InfeasibleError, match="no worker does 'echo'"):
        quote(database)

    make_worker(database, "able")
    edit_agent(database, "bot", max_priority="medium")
    with pytest.raises(LimitExceededError, match="up to priority medium, not high"):
        quote(database, make_echo(agent="bot", priority="high"))


def test_a_task_for_later_waits_at_least_until_then(database: Database) -> None:
    fill(database)
    know_costs(database)
    now = quote(database)
    when = datetime.now(UTC) + timedelta(hours=1)
    later = quote(database, make_request("echo", {}, agent_id="bot", not_before=when))

    assert (later.code, later.release) == ("scheduled", f"the time: {when:%Y-%m-%d %H:%M:%S} UTC")
    assert now.wait_p50_seconds is not None
    assert later.wait_p50_seconds == pytest.approx(3_600 + now.wait_p50_seconds, abs=60)


def test_a_task_that_depends_on_others_waits_nobody_knows_how_long(database: Database) -> None:
    fill(database)
    know_costs(database)

    found = quote(database, make_request("echo", {}, agent_id="bot", depends_on=[uuid.uuid4()]))

    assert (found.code, found.wait_p50_seconds, found.engine_seconds) == ("blocked", None, 2.0)


def read_quotes(database: Database) -> list[Any]:
    return execute(database, "SELECT task_id, wait_p50_seconds, wait_p90_seconds, engine_seconds FROM quotes")


def test_a_sweep_quotes_a_task_that_has_just_come_and_then_none_for_a_while(database: Database) -> None:
    fill(database)
    know_costs(database)
    task, *_ = submit(database, make_echo(agent="bot"))
    dispatch(database)

    sweep(database, lease_seconds=None)

    ((quoted, p50, p90, engine_seconds),) = read_quotes(database)
    assert (quoted, engine_seconds) == (task, 2.0)
    assert 0 < p50 < p90
    submit(database, make_echo(agent="bot", priority="high"))
    assert sample_quotes(database) == 0
    execute(database, "UPDATE quotes SET made_at = now() - interval '6 seconds'")
    assert sample_quotes(database) == 1
    assert len(read_quotes(database)) == 2


def test_a_task_that_came_long_ago_is_not_quoted(database: Database) -> None:
    fill(database)
    know_costs(database)
    submit(database, make_echo(agent="bot"))
    dispatch(database)
    execute(database, "UPDATE tasks SET created_at = now() - interval '1 minute'")

    assert sample_quotes(database) == 0


def test_what_was_never_measured_is_not_quoted(database: Database) -> None:
    fill(database)
    submit(database, make_echo(agent="bot"))
    dispatch(database)

    assert sample_quotes(database) == 0


def put_quote(
    database: Database, task: uuid.UUID, *, p50: float, p90: float, waited: float | None, **ages: float
) -> None:
    """A quote of ten engine seconds, made `waited` seconds before the task began."""
    ago = ages.get("seconds_ago", 60)
    sql = "INSERT INTO quotes VALUES (:id, now() - make_interval(secs => :ago), :p50, :p90, 10)"
    execute(database, sql, id=task, ago=ago, p50=p50, p90=p90)
    if waited is not None:
        sql = (
            "UPDATE tasks SET started_at = (SELECT made_at FROM quotes WHERE task_id = id) + make_interval(secs => :s)"
        )
        execute(database, sql + " WHERE id = :id", id=task, s=waited)


def test_calibration_compares_quotes_with_the_truth(database: Database) -> None:
    worker = make_worker(database)
    for waited in (5, 15, 30):
        task = make_running(database, worker, make_echo(agent="bot"))
        put_quote(database, task.task_id, p50=10, p90=20, waited=waited)
        finish(database, worker, task, result={}, usage={"engine_seconds": 8})
    # It waits, and is later than half of such tasks were to be; whether it is in time for the other bound is not known.
    put_quote(database, submit(database)[0], p50=10, p90=100, waited=None)
    # Too long ago, and never to begin.
    task = make_running(database, worker, make_echo(agent="bot"))
    put_quote(database, task.task_id, p50=10, p90=20, waited=1, seconds_ago=2 * 86_400)
    cancelled = submit(database)[0]
    put_quote(database, cancelled, p50=10, p90=20, waited=None)
    execute(
        database,
        "UPDATE tasks SET status = 'cancelled', queue_state = NULL, finished_at = now() WHERE id = :i",
        i=cancelled,
    )

    found = read_calibration(database)

    assert (found["quotes"], found["started"]) == (4, 3)
    assert found["within_p50"] == pytest.approx(1 / 4)
    assert found["within_p90"] == pytest.approx(2 / 3)
    assert found["median_error_seconds"] == pytest.approx(5)
    assert found["median_engine_ratio"] == pytest.approx(10 / 8)


def test_without_quotes_there_is_nothing_to_compare(database: Database) -> None:
    assert read_calibration(database) == {
        "quotes": 0,
        "started": 0,
        "within_p50": None,
        "within_p90": None,
        "median_error_seconds": None,
        "median_engine_ratio": None,
    }


def test_a_task_that_was_tried_again_counts_from_its_first_start(database: Database) -> None:
    worker = make_worker(database)
    task = make_running(database, worker)
    put_quote(database, task.task_id, p50=10, p90=20, waited=5)
    finish(database, worker, task, "released")

    assert read_calibration(database)["within_p50"] == 1


def test_old_quotes_and_use_are_forgotten(database: Database) -> None:
    for days, task in enumerate(submit(database, *(make_echo() for _ in range(4)))):
        put_quote(database, task, p50=1, p90=1, waited=None, seconds_ago=86_400 * days + 60)
        minute = "now() - make_interval(days => :days, mins => 1)"
        execute(database, f"INSERT INTO agent_usage VALUES ({minute}, 'default', 'bot', 1, 1, 1, 1)", days=days)

    forget_old(database)

    assert len(read_quotes(database)) == 2
    assert execute(database, "SELECT count(*) FROM agent_usage") == [(2,)]
