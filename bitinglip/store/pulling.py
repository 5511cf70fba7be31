"""Tasks that agents take themselves. One statement a function."""

import uuid

from sqlalchemy import Connection, text

from bitinglip.store.jsonb import dump_storable
from bitinglip.store.tasks import Doorbell, Ending

_TAKE = text("""
UPDATE tasks SET status = 'in_progress', queue_state = NULL, worker_id = :worker_id, started_at = now(),
                 updated_at = now()
WHERE id = (
    SELECT id FROM tasks
    WHERE queue_state = 'ready' AND type = :type AND coalesce(model, '') = '' AND agent_id = :agent_id
    AND (CAST(:channel_id AS text) IS NULL OR channel_id = :channel_id)
    AND (expires_at IS NULL OR expires_at > now() OR started_at IS NOT NULL)
    ORDER BY priority, seq LIMIT 1 FOR UPDATE SKIP LOCKED
) AND EXISTS (SELECT FROM workers AS w WHERE w.id = :worker_id AND w.state <> 'gone' AND w.lease_expires_at > now())
RETURNING id, attempt
""")


def take_task(
    connection: Connection, worker_id: uuid.UUID, *, type_: str, agent_id: str, channel_id: str | None
) -> Doorbell | None:
    """Take the lease on an agent's most urgent, oldest ready task of a kind; None if there is none, or no lease."""
    values = {"worker_id": worker_id, "type": type_, "agent_id": agent_id, "channel_id": channel_id}
    row = connection.execute(_TAKE, values).one_or_none()
    return None if row is None else Doorbell(row.id, row.attempt)


_IS_RECORDED = text("""
SELECT EXISTS (
    SELECT FROM attempts AS a JOIN task_details AS d ON d.task_id = a.task_id
    WHERE a.task_id = :id AND a.attempt = :attempt AND a.worker_id = :worker_id AND a.outcome = :outcome
    AND d.result IS NOT DISTINCT FROM CAST(:result AS jsonb))
""")


def is_recorded(connection: Connection, ending: Ending, worker_id: uuid.UUID) -> bool:
    """Whether this very ending has been recorded before."""
    values = {
        "id": ending.task_id,
        "attempt": ending.attempt,
        "worker_id": worker_id,
        "outcome": ending.outcome,
        "result": None if ending.result is None else dump_storable(ending.result),
    }
    return bool(connection.scalar(_IS_RECORDED, values))
