"""Registration and leases of workers. One statement a function.

Invariant: only PostgreSQL's clock expires a lease, and none within one full lease after PostgreSQL itself came back.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a worker says of itself when it starts.

    Attributes:
        id: New at every start, so that a predecessor of the same name is fenced off.
        name: Stable; names its Celery queue.
        gpus: One object each: index, uuid, name, memory_bytes.
        memory_limit_bytes: What its engine may hold; None: no limit known.
    """

    id: uuid.UUID
    name: str
    node: str
    pool: str
    kinds: Sequence[str]
    slots: int
    pid: int
    version: str
    gpus: Sequence[dict[str, Any]] = field(default_factory=list)
    models: Sequence[str] = field(default_factory=list)
    memory_limit_bytes: int | None = None


_REGISTER = text("""
INSERT INTO workers (id, name, node, pool, kinds, slots, gpus, models, memory_limit_bytes, pid, version,
                     lease_expires_at)
VALUES (:id, :name, :node, :pool, :kinds, :slots, CAST(:gpus AS jsonb), :models, :memory_limit_bytes, :pid, :version,
        now() + make_interval(secs => :lease_seconds))
""")


def insert_worker(connection: Connection, worker: WorkerRecord, *, lease_seconds: float) -> None:
    """Register a worker. A predecessor of the same name must have been retired before."""
    connection.execute(
        _REGISTER,
        {
            "id": worker.id,
            "name": worker.name,
            "node": worker.node,
            "pool": worker.pool,
            "kinds": list(worker.kinds),
            "slots": worker.slots,
            "gpus": json.dumps(list(worker.gpus)),
            "models": list(worker.models),
            "memory_limit_bytes": worker.memory_limit_bytes,
            "pid": worker.pid,
            "version": worker.version,
            "lease_seconds": lease_seconds,
        },
    )


_RETIRE_NAME = text("UPDATE workers SET state = 'gone' WHERE name = :name AND state <> 'gone' RETURNING id")


def retire_name(connection: Connection, name: str) -> list[uuid.UUID]:
    """End the registration of whoever holds the name; returns the ids."""
    return list(connection.scalars(_RETIRE_NAME, {"name": name}))


_IS_REGISTERED = text("SELECT EXISTS (SELECT FROM workers WHERE name = :name AND state <> 'gone')")


def is_name_registered(connection: Connection, name: str) -> bool:
    """Whether a registration holds the name."""
    return bool(connection.scalar(_IS_REGISTERED, {"name": name}))


_RETIRE = text("UPDATE workers SET state = 'gone', lease_expires_at = now() WHERE id = :id")


def retire_worker(connection: Connection, worker_id: uuid.UUID) -> None:
    """End a registration: its worker leaves."""
    connection.execute(_RETIRE, {"id": worker_id})


_DRAIN = text("UPDATE workers SET state = 'draining' WHERE id = :id AND state = 'ready'")


def drain_worker(connection: Connection, worker_id: uuid.UUID) -> None:
    """Give a worker no more tasks."""
    connection.execute(_DRAIN, {"id": worker_id})


_RETURN_RESERVED = text("""
WITH returned AS (
    UPDATE tasks SET queue_state = 'ready', worker_id = NULL, reserved_at = NULL, updated_at = now()
    WHERE worker_id = :id AND finished_at IS NULL AND queue_state = 'reserved'
    RETURNING type, agent_id, priority
)
INSERT INTO agent_queues AS q (type, agent_id, priority)
SELECT DISTINCT type, agent_id, priority FROM returned
ON CONFLICT (type, agent_id, priority) DO UPDATE SET has_ready = true WHERE NOT q.has_ready
""")


def return_reserved(connection: Connection, worker_id: uuid.UUID) -> None:
    """Make ready again what a worker has not begun; each keeps its attempt."""
    connection.execute(_RETURN_RESERVED, {"id": worker_id})


_RENEW = text("""
UPDATE workers SET lease_expires_at = now() + make_interval(secs => :lease_seconds), last_seen_at = now(),
                   models = :models, memory_bytes = :memory_bytes
WHERE id = :id AND state <> 'gone' RETURNING 1
""")


def renew_lease(
    connection: Connection, worker_id: uuid.UUID, *, lease_seconds: float, models: Sequence[str], memory_bytes: int
) -> bool:
    """Extend a worker's lease, unless it has been given up already."""
    values = {"id": worker_id, "lease_seconds": lease_seconds, "models": list(models), "memory_bytes": memory_bytes}
    return connection.scalar(_RENEW, values) is not None


_HELD = text("""
SELECT id, attempt, status = 'in_progress' AS running, cancel_requested_at IS NOT NULL AS cancelled,
       coalesce(extract(epoch FROM now() - reserved_at), 0)::float8 AS reserved_seconds
FROM tasks WHERE worker_id = :id AND finished_at IS NULL
""")


def list_held(connection: Connection, worker_id: uuid.UUID) -> Sequence[Row[Any]]:
    """What is reserved for or run by a worker: id, attempt, running, cancelled, reserved_seconds."""
    return connection.execute(_HELD, {"id": worker_id}).all()


_EXPIRE = text("""
UPDATE workers SET state = 'gone'
WHERE id IN (
    SELECT id FROM workers
    WHERE state <> 'gone' AND lease_expires_at < now()
    AND pg_postmaster_start_time() < now() - make_interval(secs => :lease_seconds)
    FOR UPDATE SKIP LOCKED
)
RETURNING id, name
""")


def expire_workers(connection: Connection, *, lease_seconds: float) -> Sequence[Row[Any]]:
    """End the registration of workers whose lease is over; returns id and name."""
    return connection.execute(_EXPIRE, {"lease_seconds": lease_seconds}).all()


_RELEASE = text("""
WITH released AS (
    UPDATE tasks AS t SET
        status = CASE WHEN t.cancel_requested_at IS NULL THEN 'pending' ELSE 'cancelled' END::task_status,
        queue_state = CASE WHEN t.cancel_requested_at IS NULL THEN 'ready' END::task_queue_state,
        finished_at = CASE WHEN t.cancel_requested_at IS NOT NULL THEN now() END,
        error_code = CASE WHEN t.cancel_requested_at IS NOT NULL THEN 'cancelled' END,
        attempt = t.attempt + CASE WHEN old.status = 'in_progress' AND t.cancel_requested_at IS NULL THEN 1 ELSE 0 END,
        worker_id = NULL, reserved_at = NULL, updated_at = now()
    FROM (
        SELECT id, status, worker_id, started_at, attempt FROM tasks AS held
        WHERE worker_id IS NOT NULL AND finished_at IS NULL
        AND NOT EXISTS (SELECT FROM workers AS w WHERE w.id = held.worker_id AND w.state <> 'gone')
        FOR UPDATE SKIP LOCKED
    ) AS old
    WHERE t.id = old.id
    RETURNING t.id, t.type, t.agent_id, t.priority, t.queue_state,
              old.status AS old_status, old.worker_id, old.started_at, old.attempt
), lost AS (
    INSERT INTO attempts (task_id, attempt, worker_id, outcome, started_at)
    SELECT id, attempt, worker_id, CASE WHEN queue_state IS NULL THEN 'cancelled' ELSE 'lost' END, started_at
    FROM released WHERE old_status = 'in_progress'
), woken AS (
    INSERT INTO agent_queues AS q (type, agent_id, priority)
    SELECT DISTINCT type, agent_id, priority FROM released WHERE queue_state = 'ready'
    ON CONFLICT (type, agent_id, priority) DO UPDATE SET has_ready = true WHERE NOT q.has_ready
)
SELECT count(*) FROM released
""")


def release_tasks(connection: Connection) -> int:
    """Take back every task whose worker is gone; returns how many.

    A task that ran becomes ready as a new attempt, at no cost; one that was only reserved keeps its attempt. A row that
    another transaction holds (a late finish) is left for the next call.
    """
    return int(connection.scalar(_RELEASE) or 0)
