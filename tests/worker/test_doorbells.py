"""A message is only a doorbell: repeated, stale, malformed or lost, each task runs once."""

import json
import uuid
from collections.abc import Iterator

import pytest
from celery import Celery

from bitinglip.celery_app import queue_name
from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from tests.conftest import System, eventually, flush_redis, make_celery_app, wait_for_workers
from tests.factories import execute, read_outcomes


@pytest.fixture
def app(urls: ServerUrls) -> Iterator[Celery]:
    made = make_celery_app()
    yield made
    made.close()


def ring(app: Celery, database: Database, arguments: list[object]) -> None:
    """Publish a message by hand to the one worker's queue."""
    worker = execute(database, "SELECT name FROM workers")[0][0]
    with app.connection_for_write() as connection:
        connection.Producer(auto_declare=False).publish(
            json.dumps([arguments, {}, {}]),
            routing_key=queue_name(worker),
            content_type="application/json",
            content_encoding="utf-8",
            headers={"lang": "py", "task": "bitinglip.echo", "id": str(uuid.uuid4()), "ignore_result": True},
        )


def count_started(client: Client, task_id: uuid.UUID) -> int:
    return sum(event.name == "started" for event in client.handle(task_id).stream())


def test_repeated_stale_and_malformed_doorbells_are_harmless(
    system: System, client: Client, database: Database, app: Celery
) -> None:
    running = client.submit("echo", text="long", seconds=2)
    done = client.submit("echo", text="short")
    done.result(timeout=20)
    eventually(lambda: running.status is Status.IN_PROGRESS)
    begun = running.task().started_at

    for _ in range(5):
        for task in (running, done):
            ring(app, database, [1, str(task.id), 1])
    ring(app, database, [1, str(running.id), 2])
    ring(app, database, [1, str(uuid.uuid4()), 1])
    ring(app, database, [1, "no-uuid", 1])
    ring(app, database, [99, str(running.id), 1])
    ring(app, database, ["nonsense"])

    assert running.result(timeout=20) == {"text": "long"}
    assert running.task().started_at == begun
    for task in (running, done):
        assert count_started(client, task.id) == 1
        assert read_outcomes(database, task.id) == [(1, "completed")]
    assert client.submit("echo", text="after").result(timeout=20) == {"text": "after"}
    assert execute(database, "SELECT count(*) FROM workers") == [(1,)]


def test_tasks_that_wait_survive_an_emptied_redis(system: System, client: Client, database: Database) -> None:
    blockers = [client.submit("echo", seconds=1.5, priority="critical") for _ in range(8)]
    eventually(lambda: all(blocker.status is Status.IN_PROGRESS for blocker in blockers))
    handles = [client.submit("echo", text=str(number), agent=f"agent-{number % 3}") for number in range(200)]
    eventually(lambda: execute(database, "SELECT 1 FROM tasks WHERE queue_state = 'reserved'"))

    flush_redis(system.urls)

    for number, handle in enumerate(handles):
        assert handle.result(timeout=40) == {"text": str(number)}
    assert {
        (attempt, outcome) for (attempt, outcome) in execute(database, "SELECT attempt, outcome FROM attempts")
    } == {(1, "completed")}


def test_a_task_whose_doorbell_was_lost_is_run_by_the_heartbeat(
    processes: System, client: Client, database: Database
) -> None:
    processes.start_worker()
    wait_for_workers(database, 1)
    handle = client.submit("echo", text="unheard")
    worker = execute(database, "SELECT id FROM workers")[0][0]
    execute(database, "UPDATE tasks SET queue_state = 'reserved', worker_id = :w, reserved_at = now()", w=worker)

    assert handle.result(timeout=10) == {"text": "unheard"}
    assert "doorbell_missed" in processes.read_log("worker")
