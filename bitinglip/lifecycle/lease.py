"""A worker's lease: it registers, renews, and hears what it holds, has missed, or no longer owns.

Invariant: one registration a name. A new start of a worker takes its name over, and what the predecessor held is ready
again at once; the predecessor, if it still lives, is told at its next heartbeat.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from bitinglip.store.database import Database, retry_once
from bitinglip.store.queues import notify_dispatchers
from bitinglip.store.tasks import Doorbell
from bitinglip.store.workers import (
    WorkerRecord,
    drain_worker,
    insert_worker,
    is_name_registered,
    list_held,
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


def renew(
    database: Database, worker_id: uuid.UUID, *, lease_seconds: float, models: Sequence[str], memory_bytes: int
) -> list[HeldTask] | None:
    """Extend the lease and return what is this worker's; None if the lease was given to others.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. The lease runs on.
    """

    def beat() -> list[HeldTask] | None:
        with database.transaction(durable=False) as connection:
            if not renew_lease(
                connection, worker_id, lease_seconds=lease_seconds, models=models, memory_bytes=memory_bytes
            ):
                return None
            return [
                HeldTask(Doorbell(row.id, row.attempt), row.running, row.cancelled, row.reserved_seconds)
                for row in list_held(connection, worker_id)
            ]

    return retry_once(beat)


def is_name_taken(database: Database, name: str) -> bool:
    """Whether a worker of that name is registered now."""
    with database.transaction() as connection:
        return is_name_registered(connection, name)


def drain(database: Database, worker_id: uuid.UUID) -> None:
    """Take no more tasks and give back what has not begun; what runs goes on.

    Idempotent, and to be repeated: a dispatcher that planned meanwhile may have reserved something still.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def give_back() -> None:
        with database.transaction() as connection:
            drain_worker(connection, worker_id)
            return_reserved(connection, worker_id)
            notify_dispatchers(connection)

    retry_once(give_back)


def leave(database: Database, worker_id: uuid.UUID) -> int:
    """End the registration and free what is still held; returns how many tasks go to others."""
    with database.transaction() as connection:
        retire_worker(connection, worker_id)
        released = release_tasks(connection)
        notify_dispatchers(connection)
        return released
