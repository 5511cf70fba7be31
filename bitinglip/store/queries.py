"""What people ask: one task, lists, queues, workers, counts. One statement a function; each reads an index."""

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from bitinglip.domain.task import Attempt, Status, Task

MAX_PAGE = 1_000

_TASK_COLUMNS = """
    t.id, t.seq, t.type, d.title, d.description, t.status, t.queue_state, t.priority, t.agent_id, t.user_id,
    t.channel_id, t.model, d.payload, d.metadata, d.result, d.error, d.usage, t.progress, t.attempt, t.failures,
    t.max_attempts, t.worker_id, t.not_before, t.expires_at, d.depends_on, t.idempotency_key, t.cancel_requested_at,
    t.created_at, t.updated_at, t.started_at, t.finished_at
"""

_GET = text(f"SELECT {_TASK_COLUMNS} FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id WHERE t.id = :id")


def get_task(connection: Connection, task_id: uuid.UUID) -> Task | None:
    """The record of a task."""
    row = connection.execute(_GET, {"id": task_id}).one_or_none()
    return None if row is None else Task.model_validate(row._mapping)


class _Filters:
    """The conditions that are given, as SQL and its values."""

    def __init__(
        self,
        *,
        statuses: Sequence[str] = (),
        priorities: Sequence[str] = (),
        agent_id: str | None = None,
        channel_id: str | None = None,
        type_: str | None = None,
        model: str | None = None,
        error_code: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        since: datetime | None = None,
        before_seq: int | None = None,
    ) -> None:
        # The index by priority begins with the status.
        wanted = statuses or (list(Status) if priorities else ())
        conditions: list[tuple[object, str]] = [
            (wanted, "t.status = ANY(CAST(:statuses AS task_status[]))"),
            (priorities, "t.priority = ANY(CAST(:priorities AS task_priority[]))"),
            (agent_id, "t.agent_id = :agent_id"),
            (channel_id, "t.channel_id = :channel_id"),
            (type_, "t.type = :type"),
            (model, "t.model = :model"),
            (error_code, "t.error_code = :error_code"),
            (metadata, "d.metadata @> CAST(:metadata AS jsonb) AND d.metadata <> '{}'"),
            (since, "t.created_at >= :since"),
            (before_seq, "t.seq < :before_seq"),
        ]
        self.sql = " AND ".join(sql for given, sql in conditions if given) or "true"
        self.values = {
            "statuses": list(wanted),
            "priorities": list(priorities),
            "agent_id": agent_id,
            "channel_id": channel_id,
            "type": type_,
            "model": model,
            "error_code": error_code,
            "metadata": json.dumps(metadata),
            "since": since,
            "before_seq": before_seq,
        }


def list_tasks(connection: Connection, *, limit: int = 50, **filters: Any) -> list[Task]:
    """Tasks that match every filter given, newest first.

    Args:
        connection: An open transaction.
        limit: At most, up to `MAX_PAGE`.
        **filters: statuses and priorities (any of these; empty: all), agent_id, channel_id, type_, model, error_code,
            metadata (contained in the task's), since (created at or after), before_seq (older: the next page).
    """
    where = _Filters(**filters)
    statement = text(
        f"SELECT {_TASK_COLUMNS} FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id "
        f"WHERE {where.sql} ORDER BY t.seq DESC LIMIT :limit"
    )
    rows = connection.execute(statement, {**where.values, "limit": min(limit, MAX_PAGE)})
    return [Task.model_validate(row._mapping) for row in rows]


def list_ids(connection: Connection, *, limit: int, **filters: Any) -> list[tuple[uuid.UUID, int]]:
    """Ids and sequence numbers of tasks that match, newest first; the filters are those of `list_tasks`."""
    where = _Filters(**filters)
    join = "JOIN task_details AS d ON d.task_id = t.id" if filters.get("metadata") else ""
    statement = text(f"SELECT t.id, t.seq FROM tasks AS t {join} WHERE {where.sql} ORDER BY t.seq DESC LIMIT :limit")
    return [(row.id, row.seq) for row in connection.execute(statement, {**where.values, "limit": limit})]


_ATTEMPTS = text("""
SELECT a.attempt, w.name AS worker_name, a.started_at, a.finished_at, a.outcome, a.error, a.usage
FROM attempts AS a LEFT JOIN workers AS w ON w.id = a.worker_id
WHERE a.task_id = :id ORDER BY a.attempt
""")


def list_attempts(connection: Connection, task_id: uuid.UUID) -> list[Attempt]:
    """The attempts at a task that have ended, first to last."""
    return [Attempt.model_validate(row._mapping) for row in connection.execute(_ATTEMPTS, {"id": task_id})]


_SHARES = """
used AS MATERIALIZED (
    SELECT agent_id, sum(cost) AS cost FROM agent_usage WHERE minute > now() - interval '1 hour' GROUP BY agent_id
), held AS MATERIALIZED (
    SELECT t.agent_id, t.type, coalesce(t.model, '') AS model, t.priority,
           count(*) FILTER (WHERE t.status = 'pending') AS reserved,
           count(*) FILTER (WHERE t.status = 'in_progress') AS running
    FROM tasks AS t WHERE t.worker_id IS NOT NULL AND t.finished_at IS NULL GROUP BY 1, 2, 3, 4
), active AS MATERIALIZED (
    SELECT agent_id FROM used UNION SELECT agent_id FROM held UNION SELECT agent_id FROM lanes
), shares AS MATERIALIZED (
    SELECT agent_id, used.cost / nullif(sum(used.cost) OVER (), 0) AS share,
           coalesce(a.weight, 1) / sum(coalesce(a.weight, 1)) OVER () AS due_share
    FROM active LEFT JOIN used USING (agent_id) LEFT JOIN agents AS a ON a.id = agent_id
)
"""
"""Agents that used or wait for anything in the last hour: their part of what was used, and the part that is due.

What is used is counted in each pool's own unit: between pools that charge by different things the parts say little.
"""

_CLOSED = "CASE WHEN bool_and(l.closed <> 'again') THEN min(l.closed) END"
"""Why none of some lanes is offered; an open one has no reason, which makes all of it null."""


def _count(where: str) -> str:
    """A bounded count of a queue's tasks."""
    return f"""(SELECT count(*) FROM (
        SELECT FROM tasks AS t WHERE {where} AND t.type = q.type AND coalesce(t.model, '') = q.model
        AND t.agent_id = q.agent_id AND t.priority = q.priority LIMIT :bound) AS bounded)"""


_OLDEST = """
    SELECT greatest(t.created_at, t.not_before) AS since FROM tasks AS t
    WHERE t.queue_state = 'ready' AND t.type = q.type AND coalesce(t.model, '') = q.model AND t.agent_id = q.agent_id
    AND t.priority = q.priority ORDER BY t.seq LIMIT 1
"""

_QUEUES = text(f"""
WITH {_SHARES}
SELECT q.agent_id, q.priority, q.type, nullif(q.model, '') AS model,
       {_count("t.queue_state = 'ready'")} AS ready,
       {_count("t.queue_state IN ('scheduled', 'blocked')")} AS later,
       coalesce(held.reserved, 0) AS reserved, coalesce(held.running, 0) AS running,
       coalesce(a.weight, 1) AS weight, coalesce(shares.share, 0)::float8 AS share,
       shares.due_share::float8 AS due_share,
       extract(epoch FROM now() - oldest.since)::float8 AS longest_wait_seconds,
       CASE WHEN a.paused THEN 'paused' ELSE (
           SELECT {_CLOSED} FROM lanes AS l
           WHERE (l.type, l.model, l.agent_id, l.priority) = (q.type, q.model, q.agent_id, q.priority)) END AS closed
FROM (
    SELECT * FROM queues WHERE CAST(:agent_id AS text) IS NULL OR agent_id = :agent_id
    ORDER BY agent_id, priority, type, model LIMIT :limit
) AS q
LEFT JOIN agents AS a ON a.id = q.agent_id
LEFT JOIN held USING (agent_id, type, model, priority)
LEFT JOIN shares USING (agent_id)
LEFT JOIN LATERAL ({_OLDEST}) AS oldest ON true
ORDER BY q.agent_id, q.priority, q.type, q.model
""")

DEPTH_BOUND = 1_000
"""Tasks that are counted of a queue, and of an agent in each status, at most."""


def list_queues(connection: Connection, agent_id: str | None = None, *, limit: int = MAX_PAGE) -> Sequence[Row[Any]]:
    """The agents' queues, by agent.

    Args:
        connection: In a transaction.
        agent_id: This agent's only.
        limit: At most.

    Returns:
        Rows of agent_id, priority, type, model, ready and later (scheduled or blocked; counted up to `DEPTH_BOUND`),
        reserved, running, weight, share (of all that was used in the last hour), due_share (of it; None: the agent
        asked for nothing), longest_wait_seconds, closed (why it is not served; None: it is).
    """
    values = {"agent_id": agent_id, "bound": DEPTH_BOUND, "limit": limit}
    return connection.execute(_QUEUES, values).all()


_WORKERS = text("""
SELECT w.id, w.name, w.node, w.pool, w.state, w.kinds, w.slots, w.gpus, w.models, w.memory_bytes,
       w.memory_limit_bytes, w.pid, w.version, w.started_at, w.last_seen_at,
       w.state <> 'gone' AND w.lease_expires_at > now() AS alive,
       (SELECT count(*) FROM tasks AS t WHERE t.worker_id = w.id AND t.finished_at IS NULL
        AND t.status = 'in_progress') AS running,
       (SELECT count(*) FROM tasks AS t WHERE t.worker_id = w.id AND t.finished_at IS NULL
        AND t.status = 'pending') AS reserved
FROM workers AS w WHERE :all OR w.state <> 'gone' ORDER BY w.name, w.started_at
""")


def list_workers(connection: Connection, *, include_gone: bool = False) -> Sequence[Row[Any]]:
    """Workers: their registration, whether their lease holds (alive), and how many tasks they run and hold."""
    return connection.execute(_WORKERS, {"all": include_gone}).all()


def _count_status(status: Status) -> str:
    """A bounded count of an agent's tasks."""
    return f"""(SELECT count(*) FROM (
        SELECT FROM tasks AS t WHERE t.agent_id = a.id AND t.status = '{status}' ORDER BY t.seq LIMIT :bound
    ) AS bounded) AS {status}"""


_AGENTS = text(f"""
WITH {_SHARES}
SELECT a.id, a.weight, a.max_priority, a.max_queued, a.max_running, a.daily_seconds, a.daily_tokens,
       CASE WHEN a.spent_on = (now() AT TIME ZONE 'UTC')::date THEN a.spent_seconds ELSE 0 END AS spent_seconds,
       CASE WHEN a.spent_on = (now() AT TIME ZONE 'UTC')::date THEN a.spent_tokens ELSE 0 END AS spent_tokens,
       CASE WHEN a.paused THEN 'paused' ELSE (SELECT {_CLOSED} FROM lanes AS l WHERE l.agent_id = a.id) END AS closed,
       coalesce((SELECT sum(reserved) FROM held WHERE agent_id = a.id), 0)::integer AS reserved,
       coalesce(shares.share, 0)::float8 AS share, shares.due_share::float8 AS due_share,
       (SELECT extract(epoch FROM now() - min(oldest.since))::float8 FROM queues AS q
        CROSS JOIN LATERAL ({_OLDEST}) AS oldest WHERE q.agent_id = a.id AND q.has_ready) AS longest_wait_seconds,
       a.created_at, counts.*
FROM (SELECT * FROM agents ORDER BY id LIMIT :limit) AS a
LEFT JOIN shares ON shares.agent_id = a.id
CROSS JOIN LATERAL (SELECT {", ".join(map(_count_status, Status))}) AS counts
ORDER BY a.id
""")


def list_agents(connection: Connection, *, limit: int = MAX_PAGE) -> Sequence[Row[Any]]:
    """Agents by id.

    Args:
        connection: In a transaction.
        limit: At most.

    Returns:
        Rows of id, weight, max_priority, max_queued, max_running, daily_seconds, daily_tokens, spent_seconds and
        spent_tokens (today), closed (why nothing of it is served), reserved, share and due_share (as in `list_queues`),
        longest_wait_seconds, created_at, and how many of its tasks have each status, counted up to `DEPTH_BOUND`.
    """
    return connection.execute(_AGENTS, {"limit": limit, "bound": DEPTH_BOUND}).all()


STATUS_BOUND = 100_000
"""Tasks that are counted of each status, at most."""

_STATS = text("""
SELECT
    (SELECT coalesce(json_object_agg(status, n), '{}') FROM (
        SELECT known.status, (SELECT count(*) FROM (
            SELECT FROM tasks AS t WHERE t.status = known.status ORDER BY t.priority, t.seq LIMIT :bound
        ) AS bounded) AS n
        FROM unnest(enum_range(NULL::task_status)) AS known (status)) AS counted WHERE n > 0) AS tasks,
    (SELECT count(*) FROM agents) AS agents,
    (SELECT count(*) FROM workers WHERE state IN ('ready', 'draining') AND lease_expires_at > now()) AS workers,
    (SELECT coalesce(sum(slots), 0) FROM workers
     WHERE state IN ('ready', 'draining') AND lease_expires_at > now()) AS slots,
    used.finished AS finished_last_hour,
    used.tokens AS tokens_last_hour,
    used.engine_seconds AS engine_seconds_last_hour,
    recent.wait_p50 AS wait_p50_seconds,
    recent.wait_p95 AS wait_p95_seconds
FROM (
    SELECT coalesce(sum(tasks), 0)::bigint AS finished, coalesce(sum(tokens), 0)::bigint AS tokens,
           coalesce(sum(seconds), 0) AS engine_seconds
    FROM agent_usage WHERE minute > now() - interval '1 hour'
) AS used, (
    SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY wait) AS wait_p50,
           percentile_cont(0.95) WITHIN GROUP (ORDER BY wait) AS wait_p95
    FROM unnest(enum_range(NULL::task_priority)) AS band (priority) CROSS JOIN LATERAL (
        SELECT extract(epoch FROM t.started_at - t.created_at) AS wait, t.created_at FROM tasks AS t
        WHERE t.status = 'completed' AND t.priority = band.priority ORDER BY t.seq DESC LIMIT :sample
    ) AS newest
    WHERE newest.created_at > now() - interval '1 hour'
) AS recent
""")


def get_stats(connection: Connection) -> Mapping[str, Any]:
    """Counts by status (up to `STATUS_BOUND`), agents, workers, slots, and the last hour at the workers.

    That is: completed tasks, tokens and engine seconds, and the waits, in seconds, of the newest of each priority.
    """
    return dict(connection.execute(_STATS, {"bound": STATUS_BOUND, "sample": MAX_PAGE}).one()._mapping)


_OFFERED = text("""
SELECT unnest(models) AS model FROM workers WHERE state <> 'gone' AND lease_expires_at > now()
UNION SELECT name FROM models ORDER BY 1
""")


def list_offered_models(connection: Connection) -> list[str]:
    """Models that a live worker holds, or that some worker has measured."""
    return list(connection.scalars(_OFFERED))
