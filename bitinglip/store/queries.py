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

_GET = text(f"SELECT {_TASK_COLUMNS} FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id WHERE t.id = :id")  # noqa: S608


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
        f"SELECT {_TASK_COLUMNS} FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id "  # noqa: S608 - own text
        f"WHERE {where.sql} ORDER BY t.seq DESC LIMIT :limit"
    )
    rows = connection.execute(statement, {**where.values, "limit": min(limit, MAX_PAGE)})
    return [Task.model_validate(row._mapping) for row in rows]


def list_ids(connection: Connection, *, limit: int, **filters: Any) -> list[tuple[uuid.UUID, int]]:
    """Ids and sequence numbers of tasks that match, newest first; the filters are those of `list_tasks`."""
    where = _Filters(**filters)
    join = "JOIN task_details AS d ON d.task_id = t.id" if filters.get("metadata") else ""
    statement = text(
        f"SELECT t.id, t.seq FROM tasks AS t {join} WHERE {where.sql} ORDER BY t.seq DESC LIMIT :limit"  # noqa: S608
    )
    return [(row.id, row.seq) for row in connection.execute(statement, {**where.values, "limit": limit})]


_ATTEMPTS = text("""
SELECT a.attempt, w.name AS worker_name, a.started_at, a.finished_at, a.outcome, a.error, a.usage
FROM attempts AS a LEFT JOIN workers AS w ON w.id = a.worker_id
WHERE a.task_id = :id ORDER BY a.attempt
""")


def list_attempts(connection: Connection, task_id: uuid.UUID) -> list[Attempt]:
    """The attempts at a task that have ended, first to last."""
    return [Attempt.model_validate(row._mapping) for row in connection.execute(_ATTEMPTS, {"id": task_id})]


_QUEUES = text("""
SELECT q.agent_id, q.priority, q.type,
       (SELECT count(*) FROM (
           SELECT FROM tasks AS t WHERE t.queue_state = 'ready' AND t.type = q.type AND t.agent_id = q.agent_id
           AND t.priority = q.priority LIMIT :bound) AS bounded) AS ready,
       held.reserved, held.running,
       (SELECT extract(epoch FROM now() - min(t.created_at))::float8 FROM tasks AS t
        WHERE t.queue_state = 'ready' AND t.type = q.type AND t.agent_id = q.agent_id AND t.priority = q.priority
        AND q.has_ready) AS longest_wait_seconds
FROM agent_queues AS q
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE t.status = 'pending') AS reserved,
           count(*) FILTER (WHERE t.status = 'in_progress') AS running
    FROM tasks AS t WHERE t.worker_id IS NOT NULL AND t.finished_at IS NULL
    AND t.type = q.type AND t.agent_id = q.agent_id AND t.priority = q.priority
) AS held ON true
WHERE CAST(:agent_id AS text) IS NULL OR q.agent_id = :agent_id
ORDER BY q.agent_id, q.priority, q.type
""")

DEPTH_BOUND = 10_000


def list_queues(connection: Connection, agent_id: str | None = None) -> Sequence[Row[Any]]:
    """Each agent's queues: agent_id, priority, type, ready (counted up to `DEPTH_BOUND`), reserved, running,
    longest_wait_seconds.
    """  # noqa: D205
    return connection.execute(_QUEUES, {"agent_id": agent_id, "bound": DEPTH_BOUND}).all()


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


_AGENTS = text("""
SELECT a.id, a.weight, a.max_priority, a.max_queued, a.created_at,
       counts.pending, counts.in_progress, counts.completed, counts.failed, counts.cancelled
FROM agents AS a
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE t.status = 'pending') AS pending,
           count(*) FILTER (WHERE t.status = 'in_progress') AS in_progress,
           count(*) FILTER (WHERE t.status = 'completed') AS completed,
           count(*) FILTER (WHERE t.status = 'failed') AS failed,
           count(*) FILTER (WHERE t.status = 'cancelled') AS cancelled
    FROM tasks AS t WHERE t.agent_id = a.id
) AS counts ON true
ORDER BY a.id
""")


def list_agents(connection: Connection) -> Sequence[Row[Any]]:
    """Agents: id, weight, max_priority, max_queued, created_at, and how many of their tasks have each status."""
    return connection.execute(_AGENTS).all()


_STATS = text("""
SELECT
    (SELECT coalesce(json_object_agg(status, n), '{}') FROM (
        SELECT status, count(*) AS n FROM tasks GROUP BY status) AS s) AS tasks,
    (SELECT count(*) FROM agents) AS agents,
    (SELECT count(*) FROM workers WHERE state IN ('ready', 'draining') AND lease_expires_at > now()) AS workers,
    (SELECT coalesce(sum(slots), 0) FROM workers
     WHERE state IN ('ready', 'draining') AND lease_expires_at > now()) AS slots,
    recent.finished AS finished_last_hour,
    recent.tokens AS tokens_last_hour,
    recent.engine_seconds AS engine_seconds_last_hour,
    recent.wait_p50 AS wait_p50_seconds,
    recent.wait_p95 AS wait_p95_seconds
FROM (
    SELECT count(*) AS finished,
           coalesce(sum((d.usage ->> 'completion_tokens')::bigint), 0) AS tokens,
           coalesce(sum((d.usage ->> 'engine_seconds')::float8), 0) AS engine_seconds,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM t.started_at - t.created_at)) AS wait_p50,
           percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM t.started_at - t.created_at)) AS wait_p95
    FROM tasks AS t JOIN task_details AS d ON d.task_id = t.id
    WHERE t.created_at > now() - interval '1 hour' AND t.status = 'completed'
) AS recent
""")


def get_stats(connection: Connection) -> Mapping[str, Any]:
    """Counts by status, agents, workers, slots, and the last hour's tokens, engine seconds and waits in seconds."""
    return dict(connection.execute(_STATS).one()._mapping)


_OFFERED = text("""
SELECT DISTINCT unnest(models) AS model FROM workers WHERE state <> 'gone' AND lease_expires_at > now() ORDER BY 1
""")


def list_offered_models(connection: Connection) -> list[str]:
    """Models that a live worker holds."""
    return list(connection.scalars(_OFFERED))
