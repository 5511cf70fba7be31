"""What waits for something else than a worker: a time, a parent, or its own expiry. One statement a function.

Each takes at most `BATCH` tasks and skips what another dispatcher holds: any number may run them at once.
"""

import uuid
from collections.abc import Sequence

from sqlalchemy import Connection, text

from bitinglip.store.clauses import wake_queues
from bitinglip.store.tasks import Change, read_changes

BATCH = 1_000

WHY_CHARACTERS = 500
"""Of a failed parent's message that its children are told."""

_DUE = text(f"""
WITH due AS (
    UPDATE tasks SET queue_state = 'ready', updated_at = now()
    WHERE id IN (
        SELECT id FROM tasks WHERE queue_state = 'scheduled' AND not_before <= now()
        ORDER BY not_before LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    RETURNING type, model, agent_id, priority
), woken AS ({wake_queues("due", "true")}
)
SELECT count(*) FROM due
""")


def wake_scheduled(connection: Connection) -> int:
    """Make tasks ready whose time has come; returns how many."""
    return int(connection.scalar(_DUE, {"batch": BATCH}) or 0)


_EXPIRE = text("""
WITH expired AS (
    UPDATE tasks SET status = 'failed', queue_state = NULL, error_code = 'expired', finished_at = now(),
                     updated_at = now()
    WHERE id IN (
        SELECT id FROM tasks
        WHERE queue_state IS NOT NULL AND started_at IS NULL AND expires_at < now() AND queue_state <> 'reserved'
        ORDER BY expires_at LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    RETURNING id, agent_id, status, attempt, error_code, worker_id, ttl_seconds
), details AS (
    UPDATE task_details AS d SET error = jsonb_build_object(
        'code', 'expired', 'retryable', false,
        'message', format('waited longer than its TTL of %s s; retry it, or submit with a longer one', e.ttl_seconds))
    FROM expired AS e WHERE d.task_id = e.id
)
SELECT * FROM expired
""")


def expire_tasks(connection: Connection) -> list[Change]:
    """Fail tasks that have waited longer than they may. One that was ever started, or is about to be, is left alone."""
    return read_changes(connection.execute(_EXPIRE, {"batch": BATCH}))


_ENDED_PARENTS = text("""
SELECT id FROM tasks WHERE has_children AND finished_at IS NOT NULL LIMIT :batch FOR UPDATE SKIP LOCKED
""")


def lock_ended_parents(connection: Connection) -> list[uuid.UUID]:
    """Tasks that have ended and whose children have not been told; nobody adds a child to them now.

    A statement of its own: a child that was added until then is seen by the next one.
    """
    return list(connection.scalars(_ENDED_PARENTS, {"batch": BATCH}))


_SETTLE = text(f"""
WITH settled AS (
    UPDATE tasks SET has_children = false WHERE id = ANY(CAST(:parents AS uuid[]))
), children AS MATERIALIZED (
    SELECT d.child_id AS id, bool_and(p.status = 'completed') AS free,
           (array_agg(p.id ORDER BY p.seq) FILTER (WHERE p.status IN ('failed', 'cancelled')))[1] AS culprit
    FROM dependencies AS d JOIN tasks AS p ON p.id = d.parent_id
    WHERE d.child_id IN (SELECT child_id FROM dependencies WHERE parent_id = ANY(CAST(:parents AS uuid[])))
    GROUP BY d.child_id ORDER BY d.child_id
), moved AS (
    UPDATE tasks AS t SET
        status = CASE WHEN c.culprit IS NULL THEN t.status ELSE 'failed' END,
        queue_state = CASE WHEN c.culprit IS NULL THEN
            CAST(CASE WHEN t.not_before > now() THEN 'scheduled' ELSE 'ready' END AS task_queue_state) END,
        error_code = CASE WHEN c.culprit IS NOT NULL THEN 'dependency_failed' END,
        finished_at = CASE WHEN c.culprit IS NOT NULL THEN now() END,
        expires_at = greatest(now(), t.not_before) + make_interval(secs => t.ttl_seconds),
        updated_at = now()
    FROM children AS c
    WHERE t.id = c.id AND t.queue_state = 'blocked' AND (c.free OR c.culprit IS NOT NULL)
    RETURNING t.id, t.type, t.model, t.agent_id, t.priority, t.status, t.queue_state, t.attempt, t.error_code,
              t.worker_id, c.culprit
), details AS (
    UPDATE task_details AS d SET error = jsonb_build_object(
        'code', 'dependency_failed', 'retryable', false,
        'message', format('task %s, which it depends on, %s', m.culprit,
                          CASE p.status WHEN 'failed' THEN format('failed%s; retry that one, then this', ': ' || why)
                          ELSE 'was cancelled; submit both again' END))
    FROM moved AS m JOIN tasks AS p ON p.id = m.culprit CROSS JOIN LATERAL (
        -- Bounded: a child's own message holds it, and its child's that one.
        SELECT left(error ->> 'message', :why_characters) AS why FROM task_details WHERE task_id = m.culprit
    ) AS parent
    WHERE d.task_id = m.id
), woken AS ({wake_queues("moved")}
)
SELECT id, agent_id, status, attempt, error_code, worker_id FROM moved
""")


def settle_parents(connection: Connection, parents: Sequence[uuid.UUID]) -> list[Change]:
    """Decide on the children of tasks that have ended: ready once all parents completed, failed once one did not.

    Only for what `lock_ended_parents` gave in this transaction.
    A parent counts from its own commit on, so of two dispatchers that settle two parents of one child, both see both.
    """
    values = {"parents": [str(parent) for parent in parents], "why_characters": WHY_CHARACTERS}
    return read_changes(connection.execute(_SETTLE, values))
