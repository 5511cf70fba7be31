"""Agents' limits and budgets against a real database: they close lanes, and let them open again."""

from bitinglip.lifecycle.waiting import wake_due
from bitinglip.store.database import Database
from bitinglip.store.lanes import reopen_agent
from bitinglip.store.queues import lock_dispatch
from tests.dispatcher.test_sharing import read_closed, run_to_end
from tests.factories import dispatch, execute, make_echo, make_worker, read, submit


def test_an_agent_runs_no_more_than_it_may_and_goes_on_when_one_ends(database: Database) -> None:
    workers = [make_worker(database, name, slots=4, pool=name) for name in ("a", "b")]
    submit(database, *(make_echo(agent="limited") for _ in range(9)))
    execute(database, "UPDATE agents SET max_running = 3 WHERE id = 'limited'")

    granted = dispatch(database)
    assert len(granted) == 3
    assert set(read_closed(database).values()) == {"max_running"}
    record = read(database, granted[0])
    assert record.worker_id in workers
    run_to_end(database, record.worker_id, granted[0], seconds=1)

    assert len(dispatch(database)) == 1


def test_a_daily_budget_is_reserved_and_never_overspent(database: Database) -> None:
    worker = make_worker(database, slots=8)
    submit(database, *(make_echo(agent="limited") for _ in range(30)))
    execute(database, "UPDATE agents SET daily_seconds = 10 WHERE id = 'limited'")
    spent = 0.0
    sizes = []
    while granted := dispatch(database):
        sizes.append(len(granted))
        for task in granted:
            run_to_end(database, worker, task, seconds=2)
            spent += 2

    # One at a time until the first was measured, and then as many as the rest of the budget is good for.
    assert (sizes, spent) == ([1, 4], 10)
    assert read_closed(database) == {"limited": "daily_budget"}

    execute(database, "UPDATE agents SET spent_on = spent_on - 1")
    wake_due(database)
    assert len(dispatch(database)) == 5


def test_a_budget_of_tokens_is_kept_too(database: Database) -> None:
    worker = make_worker(database, slots=8)
    submit(database, *(make_echo(agent="limited") for _ in range(30)))
    execute(database, "UPDATE agents SET daily_tokens = 700 WHERE id = 'limited'")
    spent = 0
    while granted := dispatch(database):
        for task in granted:
            run_to_end(database, worker, task, seconds=2, tokens=100)
            spent += 100
    assert spent == 700


def test_a_paused_agent_is_given_nothing_until_it_is_resumed(database: Database) -> None:
    make_worker(database)
    submit(database, make_echo(agent="paused"))
    execute(database, "UPDATE agents SET paused = true")
    assert dispatch(database) == []
    assert read_closed(database) == {"paused": "paused"}

    execute(database, "UPDATE agents SET paused = false")
    with database.transaction() as connection:
        lock_dispatch(connection)
        reopen_agent(connection, "paused")
    assert len(dispatch(database)) == 1
