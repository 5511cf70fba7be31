"""The queue in PostgreSQL, as the dispatcher reads and reserves it. One statement a function.

A lane is one agent's queue of one type in one band: a row of `agent_queues`, its tasks in the partial index
`tasks_ready`. `has_ready` is a hint that makes idle lanes cost nothing; the tasks are the truth, and a sweep corrects
the hint.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from bitinglip.store.statement import Statement
from bitinglip.store.tasks import READY_CHANNEL

DISPATCH_LOCK = 0x62697402
"""Key of the advisory lock under which a round is planned and reserved."""

LANES_PER_ROUND = 64
RECHECK_SECONDS = 60


def lock_dispatch(connection: Connection) -> None:
    """Wait until no other dispatcher plans. Released with the transaction, which does not wait for the disk."""
    sql = "SELECT set_config('synchronous_commit', 'off', true), pg_advisory_xact_lock(:key)"
    connection.execute(text(sql), {"key": DISPATCH_LOCK})


_WORKERS = Statement(
    "list_open_workers",
    """
SELECT w.id, w.name, w.pool, w.kinds, w.models, w.slots, w.engine_up,
       (SELECT count(*) FROM tasks AS t WHERE t.worker_id = w.id AND t.finished_at IS NULL) AS held
FROM workers AS w WHERE w.state = 'ready' AND w.lease_expires_at > now()
""",
)


def list_open_workers(connection: Connection) -> Sequence[Row[Any]]:
    """Workers that take tasks: id, name, pool, kinds, models, slots, engine_up, held (reserved and running)."""
    return _WORKERS.execute(connection).all()


_LANES = Statement(
    "list_lanes",
    """
SELECT q.type, q.agent_id, q.priority, coalesce(s.virtual_time, 0) AS virtual_time, coalesce(a.weight, 1) AS weight,
       coalesce((SELECT virtual_time FROM pools WHERE name = :pool), 0) AS clock
FROM agent_queues AS q
LEFT JOIN agents AS a ON a.id = q.agent_id
LEFT JOIN agent_shares AS s ON s.pool = :pool AND s.agent_id = q.agent_id
WHERE q.has_ready AND q.type = ANY(:types)
ORDER BY q.priority, virtual_time, q.agent_id
LIMIT :limit
""",
    pool="text",
    types="text[]",
    limit="integer",
)


def list_lanes(connection: Connection, pool: str, types: Sequence[str]) -> Sequence[Row[Any]]:
    """The lanes to serve next in a pool, most urgent band and least virtual time first."""
    return _LANES.execute(connection, pool=pool, types=list(types), limit=LANES_PER_ROUND).all()


_HEADS = Statement(
    "list_heads",
    """
SELECT l.ordinality - 1 AS lane, t.id, t.attempt, t.model
FROM unnest(:types, :agents, :priorities)
     WITH ORDINALITY AS l (type, agent_id, priority, ordinality)
CROSS JOIN LATERAL (
    SELECT id, attempt, model, seq FROM tasks
    WHERE queue_state = 'ready' AND type = l.type AND agent_id = l.agent_id AND priority = l.priority
    ORDER BY seq LIMIT :depth
) AS t
ORDER BY l.ordinality, t.seq
""",
    types="text[]",
    agents="text[]",
    priorities="task_priority[]",
    depth="integer",
)


def list_heads(connection: Connection, lanes: Sequence[tuple[str, str, str]], depth: int) -> Sequence[Row[Any]]:
    """The first `depth` ready tasks of each lane (type, agent, priority): lane's index, id, attempt, model."""
    return _HEADS.execute(
        connection,
        types=[lane[0] for lane in lanes],
        agents=[lane[1] for lane in lanes],
        priorities=[lane[2] for lane in lanes],
        depth=depth,
    ).all()


_RESERVE = Statement(
    "reserve_tasks",
    """
UPDATE tasks AS t
SET queue_state = 'reserved', worker_id = r.worker_id, reserved_at = now(), updated_at = now()
FROM unnest(:ids, :workers) AS r (id, worker_id)
WHERE t.id = r.id AND t.queue_state = 'ready'
RETURNING t.id
""",
    ids="uuid[]",
    workers="uuid[]",
)


def reserve_tasks(connection: Connection, assignments: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> set[uuid.UUID]:
    """Promise tasks to workers (task id, worker id); returns the ids that were still ready."""
    ordered = sorted(assignments)
    rows = _RESERVE.execute(
        connection, ids=[str(task) for task, _ in ordered], workers=[str(worker) for _, worker in ordered]
    )
    return {row[0] for row in rows}


_CHARGE = Statement(
    "set_virtual_times",
    """
WITH clock AS (
    INSERT INTO pools (name, virtual_time) VALUES (:pool, :clock)
    ON CONFLICT (name) DO UPDATE SET virtual_time = excluded.virtual_time
)
INSERT INTO agent_shares (pool, agent_id, virtual_time)
SELECT :pool, c.agent_id, c.virtual_time
FROM unnest(:agents, :times) AS c (agent_id, virtual_time)
ON CONFLICT (pool, agent_id) DO UPDATE SET virtual_time = excluded.virtual_time
""",
    pool="text",
    clock="float8",
    agents="text[]",
    times="float8[]",
)


def set_virtual_times(connection: Connection, pool: str, clock: float, times: Mapping[str, float]) -> None:
    """Write a pool's clock and the virtual times of the agents just served. Only under the dispatch lock."""
    _CHARGE.execute(connection, pool=pool, clock=clock, agents=list(times), times=list(times.values()))


_EMPTIED = Statement(
    "mark_emptied",
    """
UPDATE agent_queues AS q SET has_ready = false, emptied_at = now()
FROM (
    SELECT type, agent_id, priority FROM agent_queues
    WHERE (type, agent_id, priority) IN (SELECT * FROM unnest(:types, :agents, :priorities))
    ORDER BY type, agent_id, priority FOR NO KEY UPDATE
) AS l
WHERE (q.type, q.agent_id, q.priority) = (l.type, l.agent_id, l.priority)
AND NOT EXISTS (
    SELECT FROM tasks AS t WHERE t.queue_state = 'ready'
    AND t.type = l.type AND t.agent_id = l.agent_id AND t.priority = l.priority
)
""",
    types="text[]",
    agents="text[]",
    priorities="task_priority[]",
)


def mark_emptied(connection: Connection, lanes: Sequence[tuple[str, str, str]]) -> None:
    """Take the hint from lanes (type, agent, priority) that have no ready task left."""
    _EMPTIED.execute(
        connection,
        types=[lane[0] for lane in lanes],
        agents=[lane[1] for lane in lanes],
        priorities=[lane[2] for lane in lanes],
    )


_RECHECK = text("""
UPDATE agent_queues AS q SET has_ready = true
FROM (
    SELECT type, agent_id, priority FROM agent_queues AS emptied
    WHERE NOT has_ready AND emptied_at > now() - make_interval(secs => :seconds)
    AND EXISTS (
        SELECT FROM tasks AS t WHERE t.queue_state = 'ready'
        AND t.type = emptied.type AND t.agent_id = emptied.agent_id AND t.priority = emptied.priority
    )
    ORDER BY type, agent_id, priority FOR NO KEY UPDATE
) AS filled
WHERE (q.type, q.agent_id, q.priority) = (filled.type, filled.agent_id, filled.priority)
""")


def recheck_emptied(connection: Connection) -> int:
    """Give the hint back to lanes that a task entered while they were being emptied; returns how many.

    A submitter that read `has_ready` before it was taken commits within `RECHECK_SECONDS`.
    """
    return connection.execute(_RECHECK, {"seconds": RECHECK_SECONDS}).rowcount


def notify_dispatchers(connection: Connection) -> None:
    """Wake every dispatcher when this transaction commits."""
    connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": READY_CHANNEL})
