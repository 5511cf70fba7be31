"""Tasks and workers in the state that a test is about."""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from bitinglip.dispatcher.round import run_round
from bitinglip.domain.task import Task, TaskRequest, make_request
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.finish import finish_attempts
from bitinglip.lifecycle.lease import register_worker
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.settings import TaskSettings
from bitinglip.store import queries
from bitinglip.store.database import Database
from bitinglip.store.queues import Reservation, reserve_tasks
from bitinglip.store.tasks import Doorbell, Ending
from bitinglip.store.workers import WorkerRecord


def make_echo(*, agent: str | None = None, priority: str | None = None, **payload: Any) -> TaskRequest:
    """A request for an echo."""
    return make_request("echo", payload, agent_id=agent, priority=priority)


def submit(database: Database, *requests: TaskRequest) -> list[uuid.UUID]:
    """Record tasks; without requests, one echo."""
    wanted = requests or (make_echo(),)
    submit_tasks(database, wanted, TaskSettings(max_queue_size=10_000))
    return [request.id for request in wanted]


def make_worker(
    database: Database,
    name: str = "worker",
    *,
    slots: int = 8,
    kinds: Sequence[str] = ("echo",),
    models: Sequence[str] = (),
    pool: str = "default",
    node: str = "node",
    lease_seconds: float = 60,
    **fields: Any,
) -> uuid.UUID:
    """Register a worker that does nothing by itself."""
    record = WorkerRecord(
        id=uuid.uuid4(),
        name=name,
        node=node,
        pool=pool,
        kinds=kinds,
        slots=slots,
        pid=1,
        version="0",
        models=models,
        **fields,
    )
    register_worker(database, record, lease_seconds=lease_seconds)
    return record.id


def measure(database: Database, *agents: str, cost: float = 1.0) -> None:
    """Let echoes of these agents have been measured: their next ones are no guesses."""
    execute(
        database,
        "INSERT INTO costs SELECT 'default', 'echo', '', agent, 1, :cost, :cost, :cost, 0, now()"
        " FROM unnest(CAST(:agents AS text[])) AS agent",
        agents=list(agents),
        cost=cost,
    )


def make_reserved(database: Database, worker: uuid.UUID, request: TaskRequest | None = None) -> Doorbell:
    """A task that is reserved for a worker."""
    return reserve(database, worker, submit(database, request or make_echo())[0])


def reserve(database: Database, worker: uuid.UUID, task: uuid.UUID) -> Doorbell:
    """A task that was submitted before, and that is reserved for a worker now."""
    with database.transaction() as connection:
        assert reserve_tasks(connection, [Reservation(task, worker, 0.0)]) == {task}
    return Doorbell(task, 1)


def make_running(database: Database, worker: uuid.UUID, request: TaskRequest | None = None) -> Doorbell:
    """A task that a worker runs."""
    return start_task(database, worker, submit(database, request or make_echo())[0])


def start_task(database: Database, worker: uuid.UUID, task: uuid.UUID) -> Doorbell:
    """A task that was submitted before, and that a worker runs now."""
    doorbell = reserve(database, worker, task)
    assert claim_reserved(database, [doorbell], worker)[0] is not None
    return doorbell


def finish(
    database: Database, worker: uuid.UUID, doorbell: Doorbell, outcome: str = "completed", **ending: Any
) -> bool:
    """Record how an attempt ended; whether it was."""
    return bool(finish_attempts(database, [Ending(doorbell.task_id, doorbell.attempt, outcome, **ending)], worker)[0])


def read(database: Database, task: Doorbell | uuid.UUID) -> Task:
    """The record."""
    with database.transaction() as connection:
        found = queries.get_task(connection, task.task_id if isinstance(task, Doorbell) else task)
    assert found is not None
    return found


def read_outcomes(database: Database, task: Doorbell | uuid.UUID) -> list[tuple[int, str]]:
    """The attempts that have ended: number and outcome."""
    with database.transaction() as connection:
        ended = queries.list_attempts(connection, task.task_id if isinstance(task, Doorbell) else task)
    return [(attempt.attempt, attempt.outcome) for attempt in ended]


def execute(database: Database, sql: str, **values: Any) -> list[Any]:
    """Run one statement; its rows, if it gives any."""
    with database.transaction() as connection:
        result = connection.execute(text(sql), values)
        return list(result) if result.returns_rows else []


def dispatch(database: Database) -> list[uuid.UUID]:
    """Reserve all that can be reserved; the tasks in the order they were granted."""
    granted: list[uuid.UUID] = []
    while True:
        result = run_round(database)
        granted += [item.head.task_id for item in result.reserved]
        if not result.more:
            return granted
