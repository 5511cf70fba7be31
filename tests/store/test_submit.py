"""A submission is one statement: all of a batch or nothing, in order, from any number of threads at once."""

import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from bitinglip.domain.task import Priority, QueueState, Status, make_request
from bitinglip.lifecycle.submit import BATCH
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.tasks import READY_CHANNEL
from tests.conftest import eventually
from tests.factories import dispatch, execute, make_echo, make_worker, read, submit


@pytest.fixture
def listener(database: Database) -> Iterator[Any]:
    """A connection that listens as a dispatcher does."""
    connection = psycopg2.connect(database.url.set(drivername="postgresql").render_as_string(hide_password=False))
    connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
    with connection.cursor() as cursor:
        cursor.execute(f"LISTEN {READY_CHANNEL}")
    yield connection
    connection.close()


def count_notifications(connection: Any) -> int:
    """Those that have come since the last look; a round trip makes sure that none is under way."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    select.select([connection], [], [], 0)
    connection.poll()
    count = len(connection.notifies)
    connection.notifies.clear()
    return count


def test_a_task_is_recorded_with_everything_that_was_said(database: Database) -> None:
    request = make_request(
        "echo",
        {"text": "hi", "seconds": 2},
        agent_id="bot",
        user_id="ann",
        channel_id="123456789012345678",
        priority="high",
        title="Greeting",
        description="Says hi",
        metadata={"tags": ["a", {"b": 1}]},
    )
    task = read(database, submit(database, request)[0])

    assert (task.status, task.queue_state, task.attempt, task.progress) == (Status.PENDING, QueueState.READY, 1, 0)
    assert (task.agent_id, task.user_id, task.channel_id) == ("bot", "ann", "123456789012345678")
    assert (task.priority, task.title, task.description) == (Priority.HIGH, "Greeting", "Says hi")
    assert (task.payload, task.metadata) == ({"text": "hi", "seconds": 2}, {"tags": ["a", {"b": 1}]})
    assert task.id.version == 7
    assert task.created_at.tzinfo is not None
    assert task.expires_at is not None
    assert 3_590 < (task.expires_at - task.created_at).total_seconds() < 3_610


def test_a_batch_keeps_its_order(database: Database) -> None:
    tasks = submit(database, *(make_echo(text=str(n)) for n in range(BATCH + 500)))

    assert [task for (task,) in execute(database, "SELECT id FROM tasks ORDER BY seq")] == tasks


def test_a_bad_row_records_nothing_of_its_batch(database: Database) -> None:
    bad = make_echo().model_copy(update={"agent_id": "a" * 101})

    with pytest.raises(IntegrityError):
        submit(database, make_echo(), bad, make_echo())

    for table in ("tasks", "task_details", "agents", "queues"):
        assert execute(database, f"SELECT count(*) FROM {table}") == [(0,)]


def test_a_request_that_is_submitted_twice_is_recorded_once(database: Database) -> None:
    request = make_echo(text="once")

    submit(database, request)
    submit(database, request, make_echo())
    submit(database, request, request)

    assert execute(database, "SELECT count(*) FROM tasks") == [(2,)]
    assert execute(database, "SELECT count(*) FROM task_details") == [(2,)]


def test_agents_and_their_queues_appear_with_their_first_task(database: Database) -> None:
    submit(
        database, make_echo(agent="b", priority="low"), make_echo(agent="a"), make_echo(agent="a"), make_echo(agent="b")
    )

    assert execute(database, "SELECT id, weight FROM agents ORDER BY id") == [("a", 1), ("b", 1)]
    assert execute(database, "SELECT agent_id, priority::text, has_ready FROM queues ORDER BY 1, 2") == [
        ("a", "medium", True),
        ("b", "low", True),
        ("b", "medium", True),
    ]


def test_dispatchers_are_notified_only_when_a_queue_turns_from_empty_to_filled(
    database: Database, listener: Any
) -> None:
    submit(database)
    assert count_notifications(listener) == 1
    submit(database)
    submit(database, *(make_echo() for _ in range(10)))
    assert count_notifications(listener) == 0

    submit(database, make_echo(priority="high"))
    assert count_notifications(listener) == 1

    make_worker(database, slots=50)
    dispatch(database)
    count_notifications(listener)
    submit(database)
    assert count_notifications(listener) == 1


def test_many_threads_for_one_agent_lose_nothing(urls: ServerUrls, database: Database) -> None:
    def submit_some(_: int) -> list[Any]:
        own = Database(urls.database_url, connections=1)
        tasks = [submit(own, make_echo(agent="shared"))[0] for _ in range(15)]
        tasks += submit(own, *(make_echo(agent="shared") for _ in range(50)))
        own.close()
        return tasks

    with ThreadPoolExecutor(20) as threads:
        tasks = [task for batch in threads.map(submit_some, range(20)) for task in batch]

    assert {task for (task,) in execute(database, "SELECT id FROM tasks")} == set(tasks)
    assert len(tasks) == 20 * 65
    assert count_deadlocks(database) == 0


AGENTS = [f"agent-{n:02}" for n in range(40)]
ADD_AGENTS = "INSERT INTO agents (id) SELECT unnest(CAST(:agents AS text[]))"
ADD_QUEUES = (
    "INSERT INTO queues (type, model, agent_id, priority) SELECT 'echo', '', unnest(CAST(:agents AS text[])), 'low'"
)


@pytest.mark.parametrize(
    ("first", "held", "then", "wanted"),
    [
        (ADD_AGENTS, AGENTS[:1], ADD_AGENTS, AGENTS[1:]),
        (ADD_QUEUES, AGENTS[:1], ADD_QUEUES, AGENTS[1:]),
        (ADD_QUEUES, AGENTS[-1:], ADD_AGENTS, AGENTS),
    ],
    ids=["agents by name", "queues by name", "queues before agents"],
)
def test_batches_lock_agents_and_queues_in_one_order_and_so_never_each_other(
    database: Database, first: str, held: list[str], then: str, wanted: list[str]
) -> None:
    waiting = text("SELECT 1 FROM pg_locks WHERE NOT granted")
    requests = [make_echo(agent=agent, priority="low") for agent in reversed(AGENTS)]
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            connection.execute(text(first), {"agents": held})
            batch = threads.submit(submit, database, *requests)
            eventually(lambda: connection.execute(waiting).all())
            # The batch waits for what is held, and so must not hold what comes later in the order.
            connection.execute(text("SET LOCAL lock_timeout = '300ms'"))
            connection.execute(text(then), {"agents": wanted})
        batch.result()

    assert execute(database, "SELECT count(*) FROM tasks") == [(40,)]
    assert count_deadlocks(database) == 0


def count_deadlocks(database: Database) -> int:
    execute(database, "SELECT pg_stat_force_next_flush()")
    return int(execute(database, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0])
