"""What is asked to explain a wait: one task's standing, its lanes, and who goes before it. One statement a function.

Nothing here reads all tasks: depths are counted over the ready index up to a bound, and of many lanes a sample is.
"""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from bitinglip.store.lanes import LaneKey
from bitinglip.store.statement import Statement

DEPTH_BOUND = 1_000
"""Tasks that are counted of one lane, at most."""

RIVALS_BOUND = 10_000
"""Lanes that are looked at, of the more urgent bands and of the same."""

RIVALS_COUNTED = 60
"""Lanes whose tasks are counted, of the more urgent bands and of the same; the others count like these."""

TASKS_COUNTED = 10_000
"""Tasks that are counted of those lanes together."""

_STANDING = text("""
SELECT t.id, t.seq, t.type, coalesce(t.model, '') AS model, t.agent_id, t.priority, t.status, t.queue_state, t.attempt,
       t.failures, t.max_attempts, t.progress, t.not_before, t.started_at, t.finished_at, t.error_code,
       t.cancel_requested_at, d.error ->> 'message' AS error_message,
       extract(epoch FROM t.not_before - now())::float8 AS due_seconds,
       extract(epoch FROM now() - t.started_at)::float8 AS running_seconds,
       w.name AS worker_name, w.engine_up, w.slots, w.problem,
       w.state <> 'gone' AND w.lease_expires_at > now() AS worker_alive,
       held.running, held.reserved_before
FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id LEFT JOIN workers AS w ON w.id = t.worker_id
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE o.status = 'in_progress') AS running,
           count(*) FILTER (WHERE o.status = 'pending' AND (o.reserved_at, o.seq) < (t.reserved_at, t.seq))
               AS reserved_before
    FROM tasks AS o WHERE o.worker_id = t.worker_id AND o.finished_at IS NULL
) AS held ON t.queue_state = 'reserved'
WHERE t.id = :id
""")


def get_standing(connection: Connection, task_id: uuid.UUID) -> Row[Any] | None:
    """Where a task stands: its scheduling columns, its worker, and what that worker does before it."""
    return connection.execute(_STANDING, {"id": task_id}).one_or_none()


_PARENTS = text("""
SELECT p.id, p.type, p.status, p.queue_state FROM dependencies AS d JOIN tasks AS p ON p.id = d.parent_id
WHERE d.child_id = :id AND p.status <> 'completed' ORDER BY p.seq
""")


def list_open_parents(connection: Connection, task_id: uuid.UUID) -> Sequence[Row[Any]]:
    """The tasks that a task depends on and that have not completed: id, type, status, queue_state."""
    return connection.execute(_PARENTS, {"id": task_id}).all()


_DOWNLOADS = text("""
SELECT m.download_task_id AS id, m.name AS model, m.total_bytes, (
    SELECT max(c.done_bytes) FROM model_copies AS c WHERE c.model = m.name AND c.state IN ('downloading', 'verifying')
) AS done_bytes
FROM models AS m WHERE m.download_task_id = ANY(CAST(:ids AS uuid[]))
""")


def find_downloads(connection: Connection, task_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Row[Any]]:
    """What tasks of type `download` fetch: model, total_bytes, and done_bytes; the two are None while not known."""
    rows = connection.execute(_DOWNLOADS, {"ids": [str(task_id) for task_id in task_ids]})
    return {row.id: row for row in rows}


_LIMITS = text("""
SELECT a.id, a.weight, a.paused, a.max_running, a.daily_seconds, a.daily_tokens, a.max_priority, a.max_queued,
       CASE WHEN a.spent_on = today THEN a.spent_seconds ELSE 0 END AS spent_seconds,
       CASE WHEN a.spent_on = today THEN a.spent_tokens ELSE 0 END AS spent_tokens,
       coalesce((SELECT sum(s.in_flight) FROM pools AS p
                 JOIN agent_shares AS s ON s.pool = p.name AND s.agent_id = a.id), 0)::integer AS in_flight,
       (today + 1)::timestamp AT TIME ZONE 'UTC' AS day_ends_at
FROM agents AS a CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS calendar
WHERE a.id = :id
""")


def get_limits(connection: Connection, agent_id: str) -> Row[Any] | None:
    """An agent's weight and limits, what it used of them today, and when the day ends."""
    return connection.execute(_LIMITS, {"id": agent_id}).one_or_none()


_LANES = text("""
SELECT pool, closed, extract(epoch FROM now() - passed_at)::float8 AS passed_seconds FROM lanes
WHERE type = :type AND model = :model AND agent_id = :agent_id AND priority = CAST(:priority AS task_priority)
ORDER BY pool
""")


def list_lanes_of(connection: Connection, key: LaneKey) -> Sequence[Row[Any]]:
    """What dispatchers say of a lane, in each pool: pool, closed, passed_seconds."""
    return connection.execute(_LANES, key._asdict()).all()


_FAILURES = text("""
SELECT worker_name, failures, message, retry_at, extract(epoch FROM retry_at - now())::float8 AS retry_seconds
FROM load_failures WHERE model = :model AND retry_at > now()
""")


def list_load_waits(connection: Connection, model: str) -> dict[str, Row[Any]]:
    """Where a model is not tried for now: failures, message, retry_at, retry_seconds, by worker's name."""
    return {row.worker_name: row for row in connection.execute(_FAILURES, {"model": model})}


_DRAINING = text("SELECT count(*) FROM workers WHERE state = 'draining' AND lease_expires_at > now()")


def count_draining(connection: Connection) -> int:
    """Workers that are alive and take no more tasks."""
    return connection.scalar(_DRAINING) or 0


_TURN = Statement(
    "get_turn",
    """
WITH pairs AS (
    SELECT p.type, p.model, coalesce(own.cost, anyone.cost, 1) AS cost,
           coalesce(own.running_seconds, anyone.running_seconds, 1) AS running_seconds,
           coalesce(own.cost, anyone.cost) IS NOT NULL AS measured
    FROM unnest(:types, :models) AS p (type, model)
    LEFT JOIN costs AS own ON (own.pool, own.type, own.model, own.agent_id) = (:pool, p.type, p.model, :agent_id)
    LEFT JOIN costs AS anyone
        ON (anyone.pool, anyone.type, anyone.model, anyone.agent_id) = (:pool, p.type, p.model, '')
), older AS (
    SELECT coalesce(sum(n), 0)::integer AS tasks, coalesce(sum(n * cost), 0)::float8 AS cost,
           coalesce(sum(n * running_seconds), 0)::float8 AS seconds
    FROM pairs CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (
            SELECT FROM tasks AS t WHERE t.queue_state = 'ready' AND t.type = pairs.type
            AND coalesce(t.model, '') = pairs.model AND t.agent_id = :agent_id AND t.priority = :priority
            AND t.seq < :seq LIMIT :bound) AS bounded) AS counted
), urgent AS (
    SELECT coalesce(sum(n * cost), 0)::float8 AS cost
    FROM pairs CROSS JOIN unnest(enum_range(NULL::task_priority)) AS band (priority) CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (
            SELECT FROM tasks AS t WHERE t.queue_state = 'ready' AND t.type = pairs.type
            AND coalesce(t.model, '') = pairs.model AND t.agent_id = :agent_id AND t.priority = band.priority
            LIMIT :bound) AS bounded) AS counted
    WHERE band.priority < :priority
)
SELECT asked.cost, asked.running_seconds, asked.measured, older.tasks AS own, older.seconds AS own_seconds,
       older.cost + urgent.cost AS own_cost
FROM pairs AS asked CROSS JOIN older CROSS JOIN urgent
WHERE (asked.type, asked.model) = (:type, :model)
""",
    pool="text",
    type="text",
    model="text",
    agent_id="text",
    priority="task_priority",
    seq="bigint",
    types="text[]",
    models="text[]",
    bound="integer",
)


def get_turn(connection: Connection, pool: str, key: LaneKey, seq: int, pairs: Sequence[tuple[str, str]]) -> Row[Any]:
    """What an agent's turn in a pool depends on.

    Args:
        connection: In a transaction.
        pool: Where.
        key: The lane of the task that is asked about.
        seq: Of that task.
        pairs: Types and models that compete for the same workers, with that lane's.

    Returns:
        cost and running_seconds (what such a task is expected to take), measured (whether any was), own (the agent's
        older tasks in the band, whatever their types), own_seconds (what these run), own_cost (what the agent is
        charged for these and for its tasks in more urgent bands).
    """
    return _TURN.execute(
        connection,
        pool=pool,
        **key._asdict(),
        seq=seq,
        types=[type_ for type_, _ in pairs],
        models=[model for _, model in pairs],
        bound=DEPTH_BOUND,
    ).one()


_RIVALS = Statement(
    "list_rivals",
    """
WITH ahead AS (
    SELECT l.*, false AS is_urgent FROM unnest(:types, :models) AS pairs (type, model) CROSS JOIN LATERAL (
        SELECT type, model, agent_id, priority, virtual_time FROM lanes AS l
        WHERE l.pool = :pool AND closed IS NULL AND l.type = pairs.type AND l.model = pairs.model
        AND l.priority = :priority AND l.virtual_time <= :start AND l.agent_id <> :agent_id
        ORDER BY virtual_time LIMIT :most) AS l
    UNION ALL
    SELECT l.*, true FROM unnest(:types, :models) AS pairs (type, model) CROSS JOIN LATERAL (
        SELECT type, model, agent_id, priority, virtual_time FROM lanes AS l
        WHERE l.pool = :pool AND closed IS NULL AND l.type = pairs.type AND l.model = pairs.model
        AND l.priority < :priority
        ORDER BY priority, virtual_time LIMIT :most) AS l
), numbered AS (
    SELECT *, row_number() OVER (PARTITION BY is_urgent ORDER BY hashtext(agent_id), agent_id) AS number,
           count(*) OVER (PARTITION BY is_urgent) AS lanes, min(virtual_time) OVER (PARTITION BY is_urgent) AS least,
           -- The more lanes there are, the less each may cost.
           least(:bound, :budget / least(:counted, count(*) OVER (PARTITION BY is_urgent)))::integer AS bound
    FROM ahead
), priced AS (
    SELECT n.*, coalesce(g.weight, 1) AS weight, coalesce(own.cost, anyone.cost, 1) AS cost,
           coalesce(own.running_seconds, anyone.running_seconds, 1) AS running_seconds
    FROM (SELECT * FROM numbered WHERE number <= :counted) AS n LEFT JOIN agents AS g ON g.id = n.agent_id
    LEFT JOIN costs AS own ON (own.pool, own.type, own.model, own.agent_id) = (:pool, n.type, n.model, n.agent_id)
    LEFT JOIN costs AS anyone
        ON (anyone.pool, anyone.type, anyone.model, anyone.agent_id) = (:pool, n.type, n.model, '')
)
SELECT p.agent_id, p.is_urgent, p.virtual_time, p.weight, p.cost, p.running_seconds, p.lanes, p.least, p.bound,
       head.seq AS head_seq, counted.depth
FROM priced AS p
LEFT JOIN LATERAL (
    SELECT seq FROM tasks AS t WHERE t.queue_state = 'ready' AND t.type = p.type AND coalesce(t.model, '') = p.model
    AND t.agent_id = p.agent_id AND t.priority = p.priority ORDER BY seq LIMIT 1
) AS head ON true
CROSS JOIN LATERAL (
    SELECT count(*) AS depth FROM (
        SELECT FROM tasks AS t WHERE t.queue_state = 'ready' AND t.type = p.type AND coalesce(t.model, '') = p.model
        AND t.agent_id = p.agent_id AND t.priority = p.priority
        -- No further than its share until then goes.
        LIMIT CASE WHEN p.is_urgent OR p.cost <= 0 THEN p.bound
              ELSE least(p.bound, 2 + (:start - p.virtual_time) * p.weight / p.cost)::integer END) AS bounded
) AS counted
""",
    pool="text",
    agent_id="text",
    priority="task_priority",
    start="float8",
    types="text[]",
    models="text[]",
    most="integer",
    counted="integer",
    bound="integer",
    budget="integer",
)


def list_rivals(
    connection: Connection, pool: str, key: LaneKey, start: float, pairs: Sequence[tuple[str, str]]
) -> Sequence[Row[Any]]:
    """Lanes of which tasks may go before a task: those of more urgent bands, and of others in its own.

    Args:
        connection: In a transaction.
        pool: Where.
        key: The lane of the task that is asked about.
        start: The virtual time at which it has its turn.
        pairs: Types and models that compete for the same workers.

    Returns:
        Rows of agent_id, is_urgent, virtual_time, weight, cost, running_seconds, lanes (how many there are like it: of
        few enough all are given, else some that the hashes of their agents choose), least (virtual time of all these),
        bound (as far as its tasks may be counted), depth (as far as it matters), head_seq (of its oldest task).
    """
    return _RIVALS.execute(
        connection,
        pool=pool,
        agent_id=key.agent_id,
        priority=key.priority,
        start=start,
        types=[type_ for type_, _ in pairs],
        models=[model for _, model in pairs],
        most=max(20, RIVALS_BOUND // len(pairs)),
        counted=RIVALS_COUNTED,
        bound=DEPTH_BOUND,
        budget=TASKS_COUNTED,
    ).all()


_PAIRS = Statement(
    "list_open_pairs",
    """
WITH RECURSIVE pairs AS (
    (SELECT type, model FROM lanes WHERE pool = :pool AND closed IS NULL ORDER BY type, model LIMIT 1)
    UNION ALL
    SELECT next.* FROM pairs CROSS JOIN LATERAL (
        SELECT type, model FROM lanes WHERE pool = :pool AND closed IS NULL
        AND (type, model) > (pairs.type, pairs.model) ORDER BY type, model LIMIT 1
    ) AS next
)
SELECT type, model FROM pairs LIMIT :most
""",
    pool="text",
    most="integer",
)

PAIRS_BOUND = 200


def list_open_pairs(connection: Connection, pool: str) -> list[tuple[str, str]]:
    """The types and models that have open lanes in a pool, up to `PAIRS_BOUND`."""
    rows = _PAIRS.execute(connection, pool=pool, most=PAIRS_BOUND)
    return [(row.type, row.model) for row in rows]


_CHARGE = text("""
SELECT charge, avg(speed)::float8 AS speed FROM workers
WHERE pool = :pool AND state = 'ready' AND lease_expires_at > now() GROUP BY charge ORDER BY count(*) DESC LIMIT 1
""")


def get_pool_charge(connection: Connection, pool: str) -> Row[Any] | None:
    """What a pool's agents are charged by (charge), and its workers' mean speed."""
    return connection.execute(_CHARGE, {"pool": pool}).one_or_none()
