"""No agent and no channel has more tasks waiting than it may, however many submit at the same time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.errors import LimitExceededError
from bitinglip.lifecycle.agents import edit_agent
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.settings import ServerUrls, TaskSettings
from bitinglip.store.database import Database
from bitinglip.store.submissions import Limits, insert_tasks
from tests.conftest import eventually
from tests.factories import dispatch, execute, make_echo, make_worker, submit

SETTINGS = TaskSettings(max_queue_size=100, channel_limit=10)
CHANNEL = "1" * 18


def count_waiting(database: Database) -> int:
    return int(execute(database, "SELECT count(*) FROM tasks WHERE status = 'pending'")[0][0])


def submit_from_threads(urls: ServerUrls, make_batch: Callable[[int], list[TaskRequest]], *, batches: int) -> int:
    """Submit batches from 50 threads with connections of their own; returns how many batches were refused."""

    def submit_some(thread: int) -> int:
        refused = 0
        own = Database(urls.database_url, connections=1)
        for _ in range(batches):
            try:
                submit_tasks(own, make_batch(thread), SETTINGS)
            except LimitExceededError:
                refused += 1
        own.close()
        return refused

    with ThreadPoolExecutor(50) as threads:
        return sum(threads.map(submit_some, range(50)))


def test_singles_from_50_threads_fill_the_queue_to_its_last_place(urls: ServerUrls, database: Database) -> None:
    refused = submit_from_threads(urls, lambda _: [make_echo(agent="bot")], batches=4)

    assert (count_waiting(database), refused) == (100, 100)


def test_batches_and_singles_from_50_threads_never_pass_the_limit(urls: ServerUrls, database: Database) -> None:
    refused = submit_from_threads(
        urls, lambda thread: [make_echo(agent="bot") for _ in range(1 + 6 * (thread % 2))], batches=2
    )

    # 50 singles and 50 batches of seven: singles take what no batch fits in any more.
    waiting = count_waiting(database)
    assert 94 <= waiting <= 100
    assert refused > 0


def test_a_channels_limit_holds_across_agents(urls: ServerUrls, database: Database) -> None:
    refused = submit_from_threads(
        urls,
        lambda thread: [make_request("echo", {}, agent_id=f"bot-{thread % 7}", channel_id=CHANNEL)],
        batches=1,
    )

    assert (count_waiting(database), refused) == (10, 40)


@pytest.mark.parametrize("scope", ["agent", "channel"])
def test_the_last_places_are_given_to_one_after_the_other(database: Database, scope: str) -> None:
    fields = {"agent_id": "bot"} if scope == "agent" else {"channel_id": CHANNEL}
    size = 100 if scope == "agent" else 10
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            insert_tasks(
                connection,
                [make_request("echo", {}, **fields) for _ in range(size - 1)],
                limits=Limits(100, 10),
                max_attempts=1,
                ttl_seconds=300,
                exact=True,
            )
            late = threads.submit(
                submit_tasks, database, [make_request("echo", {}, **fields) for _ in range(2)], SETTINGS
            )
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            sql = "SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))"
            eventually(lambda: execute(database, sql, pid=pid)[0][0])
        with pytest.raises(LimitExceededError, match=f"has {size - 1} tasks waiting, the limit is {size};"):
            late.result()

    assert count_waiting(database) == size - 1


def test_a_refusal_tells_the_numbers_and_records_nothing(database: Database) -> None:
    submit_tasks(database, [make_echo(agent="bot") for _ in range(95)], SETTINGS)

    with pytest.raises(LimitExceededError, match=r"agent 'bot' has 95 tasks waiting, the limit is 100; ") as caught:
        submit_tasks(database, [make_echo(agent="bot") for _ in range(6)], SETTINGS)

    assert caught.value.exit_code == 4
    assert (caught.value.scope, caught.value.limit, caught.value.waiting) == ("agent", 100, 95)
    assert count_waiting(database) == 95
    submit_tasks(database, [make_echo(agent="other"), *(make_echo(agent="bot") for _ in range(5))], SETTINGS)
    assert count_waiting(database) == 101


def test_a_channels_refusal_tells_the_numbers(database: Database) -> None:
    full = [make_request("echo", {}, channel_id=CHANNEL) for _ in range(10)]
    submit_tasks(database, full, SETTINGS)

    with pytest.raises(LimitExceededError, match=rf"channel '{CHANNEL}' has 10 tasks waiting, the limit is 10; "):
        submit_tasks(database, [make_request("echo", {}, channel_id=CHANNEL)], SETTINGS)


def test_a_task_that_has_begun_or_ended_leaves_its_place(database: Database) -> None:
    tasks = submit_tasks(database, [make_echo(agent="bot") for _ in range(100)], SETTINGS)
    cancel(database, tasks[:1])
    submit_tasks(database, [make_echo(agent="bot")], SETTINGS)

    with pytest.raises(LimitExceededError):
        submit_tasks(database, [make_echo(agent="bot")], SETTINGS)


def test_blocked_scheduled_and_reserved_tasks_wait_too(database: Database) -> None:
    (parent,) = submit(database, make_echo(agent="bot"))
    make_worker(database)
    dispatch(database)
    submit_tasks(database, [make_request("echo", {}, agent_id="bot", depends_on=[parent]) for _ in range(99)], SETTINGS)

    with pytest.raises(LimitExceededError, match="100 tasks waiting"):
        submit_tasks(database, [make_echo(agent="bot")], SETTINGS)


def test_an_agents_own_limit_goes_before_the_settings(database: Database) -> None:
    edit_agent(database, "small", max_queued=2)
    edit_agent(database, "large", max_queued=300)
    submit_tasks(database, [make_echo(agent="large") for _ in range(300)], SETTINGS)
    submit_tasks(database, [make_echo(agent="small") for _ in range(2)], SETTINGS)

    for agent, limit in (("small", "2"), ("large", "300")):
        with pytest.raises(LimitExceededError, match=f"the limit is {limit};"):
            submit_tasks(database, [make_echo(agent=agent)], SETTINGS)
    edit_agent(database, "small", max_queued=None)
    submit_tasks(database, [make_echo(agent="small") for _ in range(98)], SETTINGS)
    assert count_waiting(database) == 400


def test_an_agent_may_not_ask_more_urgently_than_it_may(database: Database) -> None:
    edit_agent(database, "bot", max_priority="medium")
    submit(database, make_echo(agent="bot", priority="medium"), make_echo(agent="bot", priority="low"))

    with pytest.raises(LimitExceededError, match=r"agent 'bot' may submit up to priority medium, not critical"):
        submit(database, make_echo(agent="bot", priority="low"), make_echo(agent="bot", priority="critical"))

    assert count_waiting(database) == 2
    edit_agent(database, "bot", max_priority=None)
    submit(database, make_echo(agent="bot", priority="critical"))
