"""The queue in PostgreSQL, as the dispatcher reads and reserves it. One statement a function.

`queues` has a row for each agent, type, model and band that ever had a task, and `has_ready` is a hint: the tasks in
the partial index `tasks_ready` are the truth, and a sweep corrects the hint. What dispatchers make of it is in `lanes`.
"""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, text

from bitinglip.store.lanes import LaneKey
from bitinglip.store.statement import Statement
from bitinglip.store.tasks import READY_CHANNEL

DISPATCH_LOCK = 0x62697402
"""Key of the advisory lock under which a round is planned and reserved."""

DEPTH = 2
"""Tasks that a worker is given, per slot."""

RECHECK_SECONDS = 60


_ROUND_SETTINGS = {
    "synchronous_commit": "off",
    # Every statement of a round finds a few rows by index. Statistics would say otherwise of tables that were empty or
    # full a moment ago, and a plan made then is kept.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    # It would not mark what is dead in an index, and read it again in each round (measured: ten entries for one).
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_SET = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _ROUND_SETTINGS.items())
LOCK_DISPATCH = f"SELECT {_SET}, pg_advisory_xact_lock({DISPATCH_LOCK})"
"""`lock_dispatch` as a statement to run before another, in one round trip."""


def lock_dispatch(connection: Connection) -> None:
    """Wait until no other dispatcher plans. Released with the transaction, which does not wait for the disk."""
    connection.exec_driver_sql(LOCK_DISPATCH)


_WORKERS = Statement(
    "list_open_workers",
    """
SELECT w.id, w.name, w.node, w.pool, w.kinds, w.slots, w.models, w.model_bytes, w.engine_up, w.yields, w.speed,
       w.charge,
       w.memory_limit_bytes * greatest(1, jsonb_array_length(w.gpus)) AS memory_bytes,
       w.allowed_models, w.allowed_agents, held.count AS held, held.models AS in_use, held.unclaimed, held.urgent,
       (SELECT coalesce(array_agg(model), '{}') FROM load_failures AS f
        WHERE f.worker_name = w.name AND f.retry_at > now()) AS avoids
FROM workers AS w CROSS JOIN LATERAL (
    SELECT count(*), coalesce(array_agg(DISTINCT model) FILTER (WHERE model IS NOT NULL), '{}') AS models,
           count(*) FILTER (WHERE queue_state = 'reserved') AS unclaimed,
           count(*) FILTER (WHERE queue_state = 'reserved' AND priority = 'critical') AS urgent
    FROM tasks AS t WHERE t.worker_id = w.id AND t.finished_at IS NULL
) AS held
WHERE w.state = 'ready' AND w.lease_expires_at > now()
ORDER BY w.name
""",
)


def list_open_workers(connection: Connection) -> Sequence[Row[Any]]:
    """Workers that take tasks, by name.

    Returns:
        Rows of id, name, node, pool, kinds, slots, models (loaded), model_bytes (by model), memory_bytes (that all its
        GPUs together may hold), engine_up, yields, speed, charge, allowed_models, allowed_agents, held (reserved and
        running), in_use (models of these), unclaimed (reserved), urgent (of the unclaimed), avoids (models that failed
        to load there).
    """
    return _WORKERS.execute(connection).all()


_SIZES = Statement(
    "list_sizes",
    "SELECT name, coalesce(held_bytes, weight_bytes) AS size FROM models WHERE weight_bytes > 0 OR held_bytes > 0",
)


def list_sizes(connection: Connection) -> dict[str, int]:
    """Bytes that models take on a GPU, measured or else of their files, by name."""
    return {row.name: row.size for row in _SIZES.execute(connection)}


_POOLS = Statement("list_pools", "SELECT name, kinds, grants, workers_digest FROM pools")


def list_pools(connection: Connection) -> dict[str, Row[Any]]:
    """Pools that there have been: name, kinds (that they ever served), grants, workers_digest; by name."""
    return {row.name: row for row in _POOLS.execute(connection)}


_SET_POOL = text("""
WITH pool AS (
    INSERT INTO pools AS p (name, kinds, workers_digest) VALUES (:name, :kinds, :digest)
    ON CONFLICT (name) DO UPDATE SET kinds = excluded.kinds, workers_digest = excluded.workers_digest
)
INSERT INTO lanes (pool, type, model, agent_id, priority, virtual_time, closed)
SELECT :name, type, model, agent_id, priority, 0, 'again' FROM queues
WHERE has_ready AND listed AND type = ANY(:new_kinds)
ON CONFLICT DO NOTHING
""")


def set_pool(connection: Connection, name: str, *, kinds: Sequence[str], new_kinds: Sequence[str], digest: str) -> None:
    """Record which kinds a pool serves, and what its workers are like; it gets lanes for the tasks of its new kinds."""
    values = {"name": name, "kinds": list(kinds), "new_kinds": list(new_kinds), "digest": digest}
    connection.execute(_SET_POOL, values)


_HEADS = Statement(
    "list_heads",
    """
SELECT l.ordinality - 1 AS lane, t.id, t.attempt, t.seq
FROM unnest(:types, :models, :agents, :priorities)
     WITH ORDINALITY AS l (type, model, agent_id, priority, ordinality)
CROSS JOIN LATERAL (
    SELECT id, attempt, seq FROM tasks
    WHERE queue_state = 'ready' AND type = l.type AND coalesce(model, '') = l.model AND agent_id = l.agent_id
    -- Not `=`: else it would look promising to read all tasks in their order until enough are found.
    AND priority BETWEEN l.priority AND l.priority
    ORDER BY priority, seq LIMIT :depth
) AS t
ORDER BY l.ordinality, t.seq
""",
    types="text[]",
    models="text[]",
    agents="text[]",
    priorities="task_priority[]",
    depth="integer",
)


def list_heads(connection: Connection, lanes: Sequence[LaneKey], depth: int) -> Sequence[Row[Any]]:
    """The first `depth` ready tasks of each lane: lane's index, id, attempt, seq."""
    return _HEADS.execute(
        connection,
        types=[lane.type for lane in lanes],
        models=[lane.model for lane in lanes],
        agents=[lane.agent_id for lane in lanes],
        priorities=[lane.priority for lane in lanes],
        depth=depth,
    ).all()


class Reservation(NamedTuple):
    """A task promised to a worker, and what its agent is charged for it."""

    task_id: uuid.UUID
    worker_id: uuid.UUID
    charge: float


_RESERVE = Statement(
    "reserve_tasks",
    """
UPDATE tasks AS t
SET queue_state = 'reserved', worker_id = r.worker_id, charged = r.charge, reserved_at = now(), updated_at = now()
FROM (
    SELECT r.* FROM unnest(:ids, :workers, :charges) AS r (id, worker_id, charge) JOIN tasks AS free ON free.id = r.id
    WHERE free.queue_state = 'ready' FOR NO KEY UPDATE OF free SKIP LOCKED
) AS r
WHERE t.id = r.id
RETURNING t.id
""",
    ids="uuid[]",
    workers="uuid[]",
    charges="float8[]",
)


def reserve_tasks(connection: Connection, reservations: Iterable[Reservation]) -> set[uuid.UUID]:
    """Promise tasks to workers; returns the ids that were still ready.

    One that somebody holds is left for the next round: he may go on to its queue, which this round has.
    """
    ordered = sorted(reservations)
    rows = _RESERVE.execute(
        connection,
        ids=[str(item.task_id) for item in ordered],
        workers=[str(item.worker_id) for item in ordered],
        charges=[item.charge for item in ordered],
    )
    return {row[0] for row in rows}


_SET_YIELDING = text("""
UPDATE workers SET yields = id = ANY(CAST(:ids AS uuid[])) WHERE id IN (
    SELECT id FROM workers WHERE id = ANY(CAST(:changed AS uuid[])) FOR NO KEY UPDATE SKIP LOCKED)
""")


def set_yielding(connection: Connection, yielding: Iterable[uuid.UUID], changed: Iterable[uuid.UUID]) -> None:
    """Say of the workers that changed whether their reservations give way to urgent tasks.

    One whose row somebody holds is left for the next round: whoever gives back what it has goes on to the queues, and
    would wait for this round.
    """
    values = {"ids": [str(worker) for worker in yielding], "changed": [str(worker) for worker in changed]}
    connection.execute(_SET_YIELDING, values)


_RECHECK = text("""
UPDATE queues AS q SET has_ready = true
FROM (
    SELECT type, model, agent_id, priority FROM queues AS emptied
    WHERE NOT has_ready AND emptied_at > now() - make_interval(secs => :seconds)
    AND EXISTS (
        SELECT FROM tasks AS t WHERE t.queue_state = 'ready' AND t.type = emptied.type
        AND coalesce(t.model, '') = emptied.model AND t.agent_id = emptied.agent_id AND t.priority = emptied.priority
    )
    ORDER BY type, model, agent_id, priority FOR NO KEY UPDATE
) AS filled
WHERE (q.type, q.model, q.agent_id, q.priority) = (filled.type, filled.model, filled.agent_id, filled.priority)
""")


def recheck_emptied(connection: Connection) -> int:
    """Give the hint back to queues that a task entered while they were being emptied; returns how many.

    A submitter that read `has_ready` before it was taken commits within `RECHECK_SECONDS`.
    """
    return connection.execute(_RECHECK, {"seconds": RECHECK_SECONDS}).rowcount


def notify_dispatchers(connection: Connection) -> None:
    """Wake every dispatcher when this transaction commits."""
    connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": READY_CHANNEL})
