"""A worker's lease: it registers, renews, and hears what it holds, has missed, or no longer owns.

Invariant: one registration a name. A new start of a worker takes its name over, and what the predecessor held is ready
again at once; the predecessor, if it still lives, is told at its next heartbeat.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from bitinglip.errors import WorkerNotFoundError
from bitinglip.store.database import Database, retry_once
from bitinglip.store.queues import notify_dispatchers
from bitinglip.store.tasks import Doorbell
from bitinglip.store.workers import (
    WorkerRecord,
    drain_worker,
    find_worker,
    insert_worker,
    list_held,
    mark_engine_down,
    release_tasks,
    renew_lease,
    retire_name,
    retire_worker,
    return_reserved,
)


@dataclass(frozen=True, slots=True)
class HeldTask:
    """A task that PostgreSQL says is this worker's.

    Attributes:
        running: Claimed; otherwise only reserved.
        reserved_seconds: Since it was reserved.
    """

    doorbell: Doorbell
    running: bool
    cancelled: bool
    reserved_seconds: float


def register_worker(database: Database, worker: WorkerRecord, *, lease_seconds: float) -> None:
    """Take the name, free what its predecessor held, and be open for tasks.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction() as connection:
        retire_name(connection, worker.name)
        insert_worker(connection, worker, lease_seconds=lease_seconds)
        release_tasks(connection)
        notify_dispatchers(connection)


@dataclass(frozen=True, slots=True)
class Lease:
    """What PostgreSQL says of a worker.

    Attributes:
        draining: It is given no more tasks.
        held: What is reserved for it or running.
    """

    draining: bool
    held: list[HeldTask]


def renew(
    database: Database,
    worker_id: uuid.UUID,
    *,
    lease_seconds: float,
    model_bytes: Mapping[str, int] | None = None,
    memory_bytes: int = 0,
    engine_up: bool = True,
) -> Lease | None:
    """Extend the lease and return what is this worker's; None if the lease was given to others.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. The lease runs on.
    """

    def beat() -> Lease | None:
        with database.transaction(durable=False) as connection:
            state = renew_lease(
                connection,
                worker_id,
                lease_seconds=lease_seconds,
                model_bytes=model_bytes or {},
                memory_bytes=memory_bytes,
                engine_up=engine_up,
            )
            if state is None:
                return None
            held = [
                HeldTask(Doorbell(row.id, row.attempt), row.running, row.cancelled, row.reserved_seconds)
                for row in list_held(connection, worker_id)
            ]
            return Lease(state == "draining", held)

    return retry_once(beat)


def is_name_taken(database: Database, name: str) -> bool:
    """Whether a worker of that name is registered now."""
    with database.transaction() as connection:
        return find_worker(connection, name) is not None


def report_engine_loss(database: Database, worker_id: uuid.UUID) -> None:
    """Say that a worker's engine has to start anew: others that are up are given tasks before it.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction(durable=False) as connection:
        mark_engine_down(connection, worker_id)


def drain(database: Database, worker_id: uuid.UUID, problem: str | None = None) -> None:
    """Take no more tasks and give back what has not begun; what runs goes on.

    Idempotent, and to be repeated: a dispatcher that planned meanwhile may have reserved something still.

    Args:
        database: Where it is registered.
        worker_id: The worker.
        problem: What is wrong with it; None: nothing, it was asked to.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def give_back() -> None:
        with database.transaction() as connection:
            drain_worker(connection, worker_id, problem)
            return_reserved(connection, worker_id)
            notify_dispatchers(connection)

    retry_once(give_back)


def drain_by_name(database: Database, name: str) -> uuid.UUID:
    """Tell a worker from afar to take no more and to leave when its tasks have ended; returns its id.

    Raises:
        WorkerNotFoundError: If no worker of that name is registered.
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def tell() -> uuid.UUID | None:
        with database.transaction() as connection:
            found = find_worker(connection, name)
            if found is None:
                return None
            drain_worker(connection, found.id)
            return_reserved(connection, found.id)
            notify_dispatchers(connection)
            worker_id: uuid.UUID = found.id
            return worker_id

    told = retry_once(tell)
    if told is None:
        raise WorkerNotFoundError(name)
    return told


def leave(database: Database, worker_id: uuid.UUID) -> int:
    """End the registration and free what is still held; returns how many tasks go to others.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. The lease will end.
    """
    with database.transaction() as connection:
        retire_worker(connection, worker_id)
        released = release_tasks(connection)
        notify_dispatchers(connection)
        return len(released)
