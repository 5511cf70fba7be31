"""Registration and leases of workers. One statement a function.

Invariant: only PostgreSQL's clock expires a lease, and none within one full lease after PostgreSQL itself came back.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text

from bitinglip.store.clauses import refund_charges, wake_queues
from bitinglip.store.tasks import Change, read_changes


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a worker says of itself when it starts.

    Attributes:
        id: New at every start, so that a predecessor of the same name is fenced off.
        name: Stable; names its Celery queue.
        state: `ready`; `pulling` if it takes its tasks itself and is given none; `draining` if it takes no more.
        problem: What is wrong with it.
        gpus: One object each: index, uuid, name, memory_bytes.
        engine_up: Whether its engine can begin at once.
        memory_limit_bytes: What its engine may hold; None: no limit known.
        model_bytes: What each of its models takes.
        speed: How much work a second of its engine is, relative to the other workers of its pool.
        charge: What agents are charged by: `seconds`, `tokens` or `tasks`.
        allowed_models: None: all.
        allowed_agents: None: all.
        pulls: Patterns of the models that may be fetched from the hub for its tasks.
        artifact_store: Id of the store that it sees; None: its tasks make no files.
    """

    id: uuid.UUID
    name: str
    node: str
    pool: str
    kinds: Sequence[str]
    slots: int
    pid: int
    version: str
    state: str = "ready"
    gpus: Sequence[dict[str, Any]] = field(default_factory=list)
    models: Sequence[str] = field(default_factory=list)
    engine_up: bool = True
    problem: str | None = None
    memory_limit_bytes: int | None = None
    model_bytes: Mapping[str, int] = field(default_factory=dict)
    speed: float = 1.0
    charge: str = "seconds"
    allowed_models: Sequence[str] | None = None
    allowed_agents: Sequence[str] | None = None
    pulls: Sequence[str] = ()
    artifact_store: uuid.UUID | None = None


_REGISTER = text("""
INSERT INTO workers (id, name, node, pool, state, kinds, slots, gpus, models, model_bytes, engine_up,
                     memory_limit_bytes, speed, charge, allowed_models, allowed_agents, pulls, artifact_store, pid,
                     version, problem, lease_expires_at)
VALUES (:id, :name, :node, :pool, :state, :kinds, :slots, CAST(:gpus AS jsonb), :models, CAST(:model_bytes AS jsonb),
        :engine_up, :memory_limit_bytes, :speed, :charge, CAST(:allowed_models AS text[]),
        CAST(:allowed_agents AS text[]), CAST(:pulls AS text[]), :artifact_store, :pid, :version, :problem,
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
            "state": worker.state,
            "kinds": list(worker.kinds),
            "slots": worker.slots,
            "gpus": json.dumps(list(worker.gpus)),
            "models": list(worker.models),
            "engine_up": worker.engine_up,
            "problem": worker.problem,
            "memory_limit_bytes": worker.memory_limit_bytes,
            "model_bytes": json.dumps(dict(worker.model_bytes)),
            "speed": worker.speed,
            "charge": worker.charge,
            "allowed_models": None if worker.allowed_models is None else list(worker.allowed_models),
            "allowed_agents": None if worker.allowed_agents is None else list(worker.allowed_agents),
            "pulls": list(worker.pulls),
            "artifact_store": worker.artifact_store,
            "pid": worker.pid,
            "version": worker.version,
            "lease_seconds": lease_seconds,
        },
    )


_OTHER_STORES = text("""
SELECT DISTINCT node FROM workers
WHERE state <> 'gone' AND lease_expires_at > now() AND artifact_store <> :store_id ORDER BY node
""")


def list_nodes_elsewhere(connection: Connection, store_id: uuid.UUID) -> list[str]:
    """The nodes whose live workers see another store of artifacts."""
    return list(connection.scalars(_OTHER_STORES, {"store_id": store_id}))


_RETIRE_NAME = text("UPDATE workers SET state = 'gone' WHERE name = :name AND state <> 'gone' RETURNING id")


def retire_name(connection: Connection, name: str) -> list[uuid.UUID]:
    """End the registration of whoever holds the name; returns the ids."""
    return list(connection.scalars(_RETIRE_NAME, {"name": name}))


_RETIRE = text("UPDATE workers SET state = 'gone', lease_expires_at = now() WHERE id = :id")


def retire_worker(connection: Connection, worker_id: uuid.UUID) -> None:
    """End a registration: its worker leaves."""
    connection.execute(_RETIRE, {"id": worker_id})


_DELETE_GONE = text("""
DELETE FROM workers AS w WHERE state = 'gone' AND last_seen_at < now() - make_interval(days => :days)
AND NOT EXISTS (SELECT FROM tasks AS t WHERE t.worker_id = w.id AND t.worker_id IS NOT NULL AND t.finished_at IS NULL)
""")


def delete_gone(connection: Connection, *, days: int) -> int:
    """Delete registrations that ended so many days ago and hold nothing; returns how many."""
    return connection.execute(_DELETE_GONE, {"days": days}).rowcount


_RETIRE_DEAD = text("""
UPDATE workers SET state = 'gone', lease_expires_at = now()
WHERE name = :name AND node = :node AND pid = :pid AND state <> 'gone'
""")


def retire_dead(connection: Connection, *, name: str, node: str, pid: int) -> bool:
    """End the registration of a process that is known to be dead; False if it has none (any more)."""
    return connection.execute(_RETIRE_DEAD, {"name": name, "node": node, "pid": pid}).rowcount > 0


_DRAIN = text("""
UPDATE workers SET state = 'draining', problem = coalesce(:problem, problem)
WHERE id = :id AND state IN ('ready', 'draining')
""")


def drain_worker(connection: Connection, worker_id: uuid.UUID, problem: str | None = None) -> None:
    """Give a worker no more tasks, and say why if something is wrong with it."""
    connection.execute(_DRAIN, {"id": worker_id, "problem": problem})


_FIND_NAME = text("SELECT id, state FROM workers WHERE name = :name AND state <> 'gone'")


def find_worker(connection: Connection, name: str) -> Row[Any] | None:
    """The registration that holds a name: id, state."""
    return connection.execute(_FIND_NAME, {"name": name}).one_or_none()


_RETURN_RESERVED = text(f"""
WITH returned AS (
    UPDATE tasks SET queue_state = 'ready', worker_id = NULL, reserved_at = NULL, updated_at = now()
    WHERE worker_id = :id AND finished_at IS NULL AND queue_state = 'reserved'
    RETURNING type, model, agent_id, priority, charged, CAST(:id AS uuid) AS held_by
), refunded AS ({refund_charges("returned")}
)
{wake_queues("returned", "true")}
""")


def return_reserved(connection: Connection, worker_id: uuid.UUID) -> None:
    """Make ready again what a worker has not begun; each keeps its attempt."""
    connection.execute(_RETURN_RESERVED, {"id": worker_id})


_RENEW = text("""
UPDATE workers SET lease_expires_at = now() + make_interval(secs => :lease_seconds), last_seen_at = now(),
                   models = :models, model_bytes = CAST(:model_bytes AS jsonb), memory_bytes = :memory_bytes,
                   engine_up = :engine_up
WHERE id = :id AND state <> 'gone' RETURNING state
""")


def renew_lease(
    connection: Connection,
    worker_id: uuid.UUID,
    *,
    lease_seconds: float,
    model_bytes: Mapping[str, int],
    memory_bytes: int,
    engine_up: bool,
) -> str | None:
    """Extend a worker's lease and return its state, or None if it has been given up already."""
    values = {
        "id": worker_id,
        "lease_seconds": lease_seconds,
        "models": sorted(model_bytes),
        "model_bytes": json.dumps(dict(model_bytes)),
        "memory_bytes": memory_bytes,
        "engine_up": engine_up,
    }
    state: str | None = connection.scalar(_RENEW, values)
    return state


_MARK_ENGINE_DOWN = text("""
UPDATE workers SET engine_up = false, models = '{}', model_bytes = '{}', memory_bytes = 0 WHERE id = :id
""")


def mark_engine_down(connection: Connection, worker_id: uuid.UUID) -> None:
    """Say that a worker has to start its engine before it can begin anything."""
    connection.execute(_MARK_ENGINE_DOWN, {"id": worker_id})


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


_NEXT_EXPIRY = text("""
SELECT extract(epoch FROM min(lease_expires_at) - now())::float8 FROM workers WHERE state <> 'gone'
""")


def find_next_expiry(connection: Connection) -> float | None:
    """Seconds until the first lease runs out if nobody renews it; None without workers."""
    seconds: float | None = connection.scalar(_NEXT_EXPIRY)
    return seconds


MAX_LOSSES = 20
"""How often a task may be lost with its worker before it counts as the cause."""

_RELEASE = text(f"""
WITH orphans AS MATERIALIZED (
    SELECT id, worker_id FROM tasks AS held
    WHERE worker_id IS NOT NULL AND finished_at IS NULL
    AND NOT EXISTS (SELECT FROM workers AS w WHERE w.id = held.worker_id AND w.state <> 'gone')
), released AS (
    UPDATE tasks AS t SET
        status = old.next_status,
        queue_state = CASE WHEN old.next_status = 'pending' THEN CAST('ready' AS task_queue_state) END,
        finished_at = CASE WHEN old.next_status <> 'pending' THEN now() END,
        error_code = CASE old.next_status WHEN 'cancelled' THEN 'cancelled' WHEN 'failed' THEN 'lost_too_often' END,
        attempt = t.attempt + CASE WHEN old.status = 'in_progress' AND old.next_status = 'pending' THEN 1 ELSE 0 END,
        worker_id = NULL, reserved_at = NULL, updated_at = now()
    FROM (
        SELECT held.id, status, held.worker_id, started_at, attempt,
               CAST(CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                         WHEN status = 'in_progress' AND attempt > :max_losses AND :max_losses <= (
                             SELECT count(*) FROM attempts
                             WHERE task_id = held.id AND outcome = 'lost' AND error IS NULL) THEN 'failed'
                         ELSE 'pending' END AS task_status) AS next_status
        FROM orphans JOIN tasks AS held
            -- Looked at again once it is locked: another rescuer may have given it to a living worker meanwhile.
            ON held.id = orphans.id AND held.worker_id = orphans.worker_id AND held.finished_at IS NULL
        LIMIT :batch FOR UPDATE OF held SKIP LOCKED
    ) AS old
    WHERE t.id = old.id
    RETURNING t.id, t.type, t.model, t.agent_id, t.priority, t.status, t.queue_state, t.error_code, t.attempt,
              t.charged, old.worker_id, old.worker_id AS held_by, old.status AS old_status, old.started_at,
              old.attempt AS old_attempt
), lost AS (
    INSERT INTO attempts (task_id, attempt, worker_id, outcome, started_at)
    SELECT id, old_attempt, worker_id, CASE status WHEN 'cancelled' THEN 'cancelled' ELSE 'lost' END, started_at
    FROM released WHERE old_status = 'in_progress'
), details AS (
    UPDATE task_details AS d SET error = jsonb_build_object(
        'code', 'lost_too_often', 'retryable', false,
        'message', 'it lost its worker again and again; see the logs of the workers, then retry it')
    FROM released AS r WHERE d.task_id = r.id AND r.status = 'failed'
), refunded AS ({refund_charges("released")}
), woken AS ({wake_queues("released")}
)
SELECT id, agent_id, status, attempt, error_code, worker_id FROM released
""")

RELEASE_BATCH = 5_000


def release_tasks(connection: Connection) -> list[Change]:
    """Take back tasks whose worker is gone, up to `RELEASE_BATCH`.

    A task that ran becomes ready as a new attempt, at no cost; one that was only reserved keeps its attempt; one that
    was to be cancelled is. A row that another transaction holds (a late finish) is left for the next call.
    """
    values = {"max_losses": MAX_LOSSES, "batch": RELEASE_BATCH}
    return read_changes(connection.execute(_RELEASE, values))
