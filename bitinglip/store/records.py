"""What people change in records: try again, edit, delete. One statement a function."""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from bitinglip.store.clauses import wake_queues
from bitinglip.store.jsonb import dump_storable
from bitinglip.store.tasks import READY_CHANNEL, Change, read_changes

_RETRY = text(f"""
WITH retried AS (
    UPDATE tasks AS t SET
        status = 'pending', finished_at = NULL, error_code = NULL, failures = 0, suspect = false, progress = 0,
        attempt = attempt + CASE WHEN started_at IS NULL THEN 0 ELSE 1 END,
        worker_id = NULL, started_at = NULL, not_before = NULL, cancel_requested_at = NULL,
        has_children = EXISTS (SELECT FROM dependencies AS d WHERE d.parent_id = failed_id),
        queue_state = CAST(CASE WHEN has_open_parents THEN 'blocked' ELSE 'ready' END AS task_queue_state),
        expires_at = CASE WHEN NOT has_open_parents THEN now() + make_interval(secs => ttl_seconds) END,
        updated_at = now()
    FROM (
        SELECT id AS failed_id, EXISTS (
            SELECT FROM dependencies AS d JOIN tasks AS p ON p.id = d.parent_id
            WHERE d.child_id = failed.id AND p.status <> 'completed'
        ) AS has_open_parents
        FROM tasks AS failed WHERE id = ANY(CAST(:ids AS uuid[])) AND status = 'failed'
        FOR UPDATE
    ) AS failed
    WHERE t.id = failed_id
    RETURNING t.id, t.type, t.model, t.agent_id, t.priority, t.status, t.queue_state, t.attempt, t.error_code,
              t.worker_id
), details AS (
    UPDATE task_details SET error = NULL, result = NULL, usage = NULL WHERE task_id IN (SELECT id FROM retried)
), marked AS (
    UPDATE tasks SET has_children = true WHERE id IN (
        SELECT parent_id FROM dependencies JOIN retried ON retried.id = child_id WHERE retried.queue_state = 'blocked')
    AND id NOT IN (SELECT id FROM retried)
), woken AS ({wake_queues("retried")}
), notified AS MATERIALIZED (
    SELECT pg_notify(:channel, '') WHERE EXISTS (SELECT FROM retried)
)
SELECT id, agent_id, status, attempt, error_code, worker_id FROM retried LEFT JOIN notified ON true
""")


_LOCK_FAILED = text("""
WITH failed AS MATERIALIZED (
    SELECT id FROM tasks WHERE id = ANY(CAST(:ids AS uuid[])) AND status = 'failed'
)
SELECT id FROM tasks WHERE id IN (
    SELECT id FROM failed UNION SELECT parent_id FROM dependencies JOIN failed ON failed.id = child_id
) ORDER BY id FOR NO KEY UPDATE
""")


def lock_failed(connection: Connection, task_ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    """Those of the tasks that have failed; they, and what they depend on, stay until the transaction ends."""
    locked = set(connection.scalars(_LOCK_FAILED, {"ids": [str(task_id) for task_id in task_ids]}))
    return [task_id for task_id in task_ids if task_id in locked]


def retry_tasks(connection: Connection, task_ids: Sequence[uuid.UUID]) -> list[Change]:
    """Make failed tasks ready again, with all their attempts before them; others are not in the answer."""
    values = {"ids": [str(task_id) for task_id in task_ids], "channel": READY_CHANNEL}
    return read_changes(connection.execute(_RETRY, values))


_UPDATE = text(f"""
WITH changed AS (
    UPDATE tasks SET priority = coalesce(CAST(:priority AS task_priority), priority), updated_at = now()
    WHERE id = :id AND (
        CAST(:priority AS task_priority) IS NULL OR queue_state IS NOT NULL AND queue_state <> 'reserved')
    RETURNING id, type, model, agent_id, priority, status, queue_state, attempt, error_code, worker_id
), details AS (
    UPDATE task_details SET
        title = coalesce(:title, title),
        description = coalesce(:description, description),
        metadata = metadata || CAST(:metadata AS jsonb)
    WHERE task_id IN (SELECT id FROM changed)
), woken AS ({wake_queues("changed")}
), notified AS MATERIALIZED (
    SELECT pg_notify(:channel, '') FROM changed WHERE queue_state = 'ready'
)
SELECT id, agent_id, status, attempt, error_code, worker_id FROM changed LEFT JOIN notified ON true
""")


def update_task(
    connection: Connection,
    task_id: uuid.UUID,
    *,
    title: str | None,
    description: str | None,
    priority: str | None,
    metadata: dict[str, Any],
) -> Change | None:
    """Change what is given, merging the metadata; None if there is no such task, or it waits no more for a priority."""
    changes = read_changes(
        connection.execute(
            _UPDATE,
            {
                "id": task_id,
                "title": title,
                "description": description,
                "priority": priority,
                "metadata": dump_storable(metadata),
                "channel": READY_CHANNEL,
            },
        )
    )
    return changes[0] if changes else None


_LOCK = text("SELECT FROM tasks WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE")


def lock_tasks(connection: Connection, task_ids: Sequence[uuid.UUID]) -> None:
    """Keep tasks as they are, and without new children, until the transaction ends."""
    connection.execute(_LOCK, {"ids": [str(task_id) for task_id in task_ids]})


_DELETABLE = text("""
SELECT id, status FROM tasks AS t
WHERE id = ANY(CAST(:ids AS uuid[])) AND NOT EXISTS (
    SELECT FROM dependencies AS d JOIN tasks AS c ON c.id = d.child_id
    WHERE d.parent_id = t.id AND c.queue_state = 'blocked' AND c.id <> ALL(CAST(:ids AS uuid[]))
)
""")


def list_deletable(connection: Connection, task_ids: Sequence[uuid.UUID]) -> list[tuple[uuid.UUID, str]]:
    """Those of the tasks, with their statuses, that no others than themselves wait for."""
    rows = connection.execute(_DELETABLE, {"ids": [str(task_id) for task_id in task_ids]})
    return [(row.id, row.status) for row in rows]


_DELETE = text("""
DELETE FROM tasks WHERE id = ANY(CAST(:ids AS uuid[])) AND finished_at IS NOT NULL
RETURNING id, agent_id, status, attempt, error_code, worker_id
""")


def delete_tasks(connection: Connection, task_ids: Sequence[uuid.UUID]) -> list[Change]:
    """Delete finished tasks with their attempts; others are not in the answer.

    Only what `list_deletable` gave under `lock_tasks`: a child would wait for nothing.
    """
    return read_changes(connection.execute(_DELETE, {"ids": [str(task_id) for task_id in task_ids]}))


_PURGE = text("""
DELETE FROM tasks WHERE id IN (
    SELECT id FROM tasks
    WHERE created_at < now() - make_interval(days => :days) AND finished_at < now() - make_interval(days => :days)
    AND NOT has_children
    LIMIT :batch FOR UPDATE SKIP LOCKED
)
RETURNING id, agent_id, status, attempt, error_code, worker_id
""")


def purge_finished(connection: Connection, *, days: int, batch: int) -> list[Change]:
    """Delete one batch of tasks that finished so many days ago."""
    return read_changes(connection.execute(_PURGE, {"days": days, "batch": batch}))
