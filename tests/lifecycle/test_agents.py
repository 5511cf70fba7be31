"""What is said of an agent holds from the next round on, and what would be broken from the start is refused."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from bitinglip.client import TaskManager
from bitinglip.domain.task import make_request
from bitinglip.errors import AgentNotFoundError, InvalidRequestError
from bitinglip.lifecycle.agents import edit_agent, pause_agent, resume_agent
from bitinglip.lifecycle.take import register_taker, take
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.queues import lock_dispatch
from bitinglip.store.tasks import READY_CHANNEL
from tests.conftest import eventually
from tests.factories import dispatch, execute, make_echo, make_reserved, make_running, make_worker, submit

LIMITS: dict[str, Any] = {"max_running": 4, "max_queued": 5, "daily_seconds": 3600.0, "daily_tokens": 10_000}


def make_lanes(database: Database, agent_id: str, *closed: str | None) -> None:
    """A lane of the agent for each reason to be closed."""
    for number, reason in enumerate(closed):
        sql = """INSERT INTO lanes (pool, type, model, agent_id, priority, virtual_time, closed)
                 VALUES ('default', 'text', :model, :agent, 'medium', 1, :closed)"""
        execute(database, sql, model=f"m{number}", agent=agent_id, closed=reason)


def read_closed(database: Database, agent_id: str) -> list[str | None]:
    sql = "SELECT closed FROM lanes WHERE agent_id = :agent ORDER BY model"
    return [row.closed for row in execute(database, sql, agent=agent_id)]


def use(database: Database, agent_id: str, *, seconds: float = 0, tokens: int = 0, hours_ago: float = 0) -> None:
    sql = """INSERT INTO agent_usage (minute, pool, agent_id, tasks, cost, seconds, tokens)
             VALUES (date_trunc('day', now(), 'UTC') - make_interval(secs => :ago), :pool, :agent, 1, 1, :seconds,
                     :tokens)"""
    values = {"ago": 3600 * hours_ago, "pool": f"p{hours_ago}-{seconds}", "seconds": seconds, "tokens": tokens}
    execute(database, sql, agent=agent_id, **values)


def test_limits_are_set_kept_and_taken_away(database: Database) -> None:
    assert (
        edit_agent(database, "bot", weight=2.5, **LIMITS).items() >= {"weight": 2.5, "paused": False, **LIMITS}.items()
    )

    changed = edit_agent(database, "bot", max_running=None, daily_tokens=None)

    assert changed.items() >= {**LIMITS, "weight": 2.5, "max_running": None, "daily_tokens": None}.items()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("weight", value) for value in (0, -1, 0.000_9, float("nan"), float("inf"), 1_001)),
        *(("max_running", value) for value in (0, -1, 1.5, 1_000_001, "many")),
        *(("daily_seconds", value) for value in (0, -1, float("nan"), float("inf"), 1e13)),
        *(("daily_tokens", value) for value in (0, -1, 1.5, 10**13)),
        ("paused", True),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name_and_changes_nothing(
    database: Database, field: str, value: object
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        edit_agent(database, "bot", **{"max_queued": 3, field: value})

    assert (caught.value.field, str(caught.value.value)) == (field, str(value))
    assert execute(database, "SELECT FROM agents") == []


def test_max_running_below_what_workers_hold_is_refused_with_both_numbers_unless_forced(database: Database) -> None:
    worker = make_worker(database)
    for _ in range(2):
        make_running(database, worker, make_echo(agent="bot"))
    make_reserved(database, worker, make_echo(agent="bot"))
    make_running(database, worker, make_echo(agent="other"))
    submit(database, make_echo(agent="bot"))

    with pytest.raises(InvalidRequestError, match=r"^max_running: 2: workers hold 3 of its tasks now; allow as many, "):
        edit_agent(database, "bot", max_running=2, weight=7)

    assert execute(database, "SELECT weight FROM agents WHERE id = 'bot'")[0].weight == 1
    assert edit_agent(database, "bot", max_running=3)["max_running"] == 3
    assert edit_agent(database, "bot", max_running=2, force=True)["max_running"] == 2
    # What is not edited is not checked.
    assert edit_agent(database, "bot", weight=7)["max_running"] == 2


def test_work_that_an_agent_took_itself_is_not_counted(database: Database) -> None:
    submit(database, *(make_request("agent", {}, title="Call", agent_id="bot") for _ in range(2)))
    for _ in range(2):
        assert take(database, register_taker(database, "bot", lease_seconds=60), "bot")

    assert edit_agent(database, "bot", max_running=1)["max_running"] == 1


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"daily_seconds": 100},
            r"^daily_seconds: 100\.0: it has used 100\.5 engine seconds since midnight UTC; allow",
        ),
        ({"daily_tokens": 1_500}, r"^daily_tokens: 1500: it has used 1,500 tokens since midnight UTC; allow more, or"),
    ],
)
def test_a_budget_that_is_spent_is_refused_with_both_numbers_unless_forced(
    database: Database, budget: dict[str, int], message: str
) -> None:
    use(database, "bot", seconds=60, tokens=500)
    use(database, "bot", seconds=40.5, tokens=1_000)
    use(database, "bot", seconds=900, tokens=9_000, hours_ago=1)
    use(database, "other", seconds=800, tokens=8_000)

    with pytest.raises(InvalidRequestError, match=message):
        edit_agent(database, "bot", **budget)

    assert execute(database, "SELECT FROM agents") == []
    edit_agent(database, "bot", force=True, **budget)
    edit_agent(database, "other", daily_seconds=801, daily_tokens=8_001)


def test_a_budget_begins_with_what_was_used_today(database: Database) -> None:
    use(database, "bot", seconds=60, tokens=500)
    use(database, "bot", seconds=900, tokens=9_000, hours_ago=1)

    edit_agent(database, "bot", daily_seconds=61)

    sql = "SELECT spent_on = (now() AT TIME ZONE 'UTC')::date, spent_seconds, spent_tokens FROM agents"
    assert tuple(execute(database, sql)[0]) == (True, 60, 500)


def test_a_pause_closes_every_lane_and_a_resume_has_them_looked_at_again(database: Database) -> None:
    edit_agent(database, "bot", weight=1)
    make_lanes(database, "bot", None, "max_running", "no_worker")
    make_lanes(database, "other", None, "max_running")

    assert pause_agent(database, "bot")["paused"] is True
    assert read_closed(database, "bot") == ["paused"] * 3
    # A paused agent stays so, whatever else is said of it.
    assert edit_agent(database, "bot", weight=2)["paused"] is True
    assert read_closed(database, "bot") == ["paused"] * 3

    assert resume_agent(database, "bot")["paused"] is False
    assert "paused" not in read_closed(database, "bot")
    assert read_closed(database, "other") == [None, "max_running"]


@pytest.mark.parametrize("change", [{"max_running": 5}, {"daily_seconds": None}, {"weight": 3}])
def test_a_changed_limit_has_closed_lanes_looked_at_again(database: Database, change: dict[str, Any]) -> None:
    make_lanes(database, "bot", None, "max_running", "daily_budget")

    edit_agent(database, "bot", **change)

    closed = read_closed(database, "bot")
    assert closed[0] is None
    assert not {"max_running", "daily_budget"} & set(closed)


def test_dispatchers_hear_of_a_change_when_it_is_committed(database: Database) -> None:
    edit_agent(database, "bot", weight=1)
    for change in (lambda: edit_agent(database, "bot", weight=2), lambda: pause_agent(database, "bot")):
        with database.engine.connect() as listener:
            listener.exec_driver_sql(f"LISTEN {READY_CHANNEL}")
            change()
            listener.exec_driver_sql("SELECT 1")
            connection = listener.connection.driver_connection
            assert connection is not None
            assert len(connection.notifies) == 1
            connection.notifies.clear()


def test_a_change_waits_for_the_round_that_is_being_planned(database: Database) -> None:
    edit_agent(database, "bot", weight=1)
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            lock_dispatch(connection)
            change = threads.submit(pause_agent, database, "bot")
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            sql = "SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))"
            eventually(lambda: execute(database, sql, pid=pid)[0][0])
            assert not change.done()
        assert change.result()["paused"] is True


def test_a_change_is_on_the_disk_when_the_operator_hears_of_it(database: Database) -> None:
    settings: list[Any] = []

    def note_setting(connection: Any, cursor: Any, *_: Any) -> None:
        with cursor.connection.cursor() as own:
            own.execute("SHOW synchronous_commit")
            settings.append(own.fetchone()[0])

    event.listen(database.engine, "after_cursor_execute", note_setting)
    edit_agent(database, "bot", weight=2)

    # The last but one: after the last statement before the commit.
    assert settings[-2] == "on"


def test_a_paused_agent_is_given_nothing_until_it_is_resumed(database: Database) -> None:
    make_worker(database, slots=8)
    submit(database, make_echo(agent="bot"), make_echo(agent="other"))
    pause_agent(database, "bot")

    assert len(dispatch(database)) == 1
    submit(database, make_echo(agent="bot"))
    assert dispatch(database) == []
    resume_agent(database, "bot")
    assert len(dispatch(database)) == 2


def test_an_agent_at_its_limit_is_given_more_when_the_limit_is_raised(database: Database) -> None:
    make_worker(database, slots=8)
    edit_agent(database, "bot", max_running=2)
    submit(database, *(make_echo(agent="bot") for _ in range(6)))

    assert len(dispatch(database)) == 2
    edit_agent(database, "bot", max_running=3)
    assert len(dispatch(database)) == 1
    edit_agent(database, "bot", max_running=None)
    assert len(dispatch(database)) == 3


@pytest.mark.parametrize("change", [pause_agent, resume_agent])
def test_an_agent_that_nobody_has_heard_of_is_neither_paused_nor_resumed(database: Database, change: Any) -> None:
    for name in ("bot", "b\0t"):
        with pytest.raises(AgentNotFoundError, match=r"is not known; list them with 'bitinglip agent list'"):
            change(database, name)

    assert execute(database, "SELECT FROM agents") == []


def test_a_task_manager_edits_pauses_and_resumes_agents(urls: ServerUrls) -> None:
    with TaskManager(urls.database_url, urls.redis_url) as tasks:
        assert tasks.edit_agent("bot", max_running=2)["max_running"] == 2
        assert tasks.pause_agent("bot")["paused"] is True
        assert tasks.resume_agent("bot")["paused"] is False
        with pytest.raises(InvalidRequestError, match="daily_tokens"):
            tasks.edit_agent("bot", daily_tokens=0)
