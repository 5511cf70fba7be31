"""The life of a task in PostgreSQL: insert, claim, finish, cancel. One statement a function, many tasks a statement.

Invariant: every write by a worker names `(id, attempt, worker_id)` and the status it found. A worker that no longer
owns the attempt changes no row, and the statement says so by not returning it.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from bitinglip.domain.task import TaskRequest
from bitinglip.store.jsonb import dump_storable
from bitinglip.store.statement import Statement

READY_CHANNEL = "bitinglip_ready"
"""NOTIFY channel on which dispatchers wait for work and for free slots."""

_INSERT = Statement(
    "insert_tasks",
    """
WITH input AS MATERIALIZED (
    SELECT * FROM ROWS FROM (jsonb_to_recordset(:rows) AS (
        id uuid, type text, priority task_priority, agent_id text, user_id text, channel_id text, model text,
        title text, description text, payload jsonb, metadata jsonb
    )) WITH ORDINALITY
), new_tasks AS (
    INSERT INTO tasks (id, type, priority, agent_id, user_id, channel_id, model, max_attempts, expires_at)
    SELECT id, type, priority, agent_id, user_id, channel_id, model, :max_attempts,
           now() + make_interval(secs => :ttl_seconds)
    FROM input ORDER BY ordinality
    ON CONFLICT DO NOTHING
), new_details AS (
    INSERT INTO task_details (task_id, title, description, payload, metadata)
    SELECT id, title, description, payload, metadata FROM input
    ON CONFLICT DO NOTHING
), new_agents AS (
    INSERT INTO agents (id)
    SELECT DISTINCT agent_id FROM input WHERE NOT EXISTS (SELECT FROM agents WHERE agents.id = input.agent_id)
    ORDER BY agent_id
    ON CONFLICT DO NOTHING
), woken_queues AS (
    INSERT INTO agent_queues AS q (type, agent_id, priority)
    SELECT DISTINCT type, agent_id, priority FROM input
    WHERE coalesce((
        -- Not a join: that would read every queue, because the planner expects a hundred tasks.
        SELECT NOT known.has_ready FROM agent_queues AS known
        WHERE (known.type, known.agent_id, known.priority) = (input.type, input.agent_id, input.priority)
    ), true)
    ORDER BY type, agent_id, priority
    ON CONFLICT (type, agent_id, priority) DO UPDATE SET has_ready = true WHERE NOT q.has_ready
    RETURNING 1
)
SELECT pg_notify(:channel, '') WHERE (SELECT count(*) FROM woken_queues) > 0
""",
    rows="jsonb",
    max_attempts="integer",
    ttl_seconds="float8",
    channel="text",
)


def insert_tasks(
    connection: Connection, requests: Sequence[TaskRequest], *, max_attempts: int, ttl_seconds: float
) -> None:
    """Record tasks, ready to run, in the order given. One that is recorded already is left as it is.

    So a submission whose reply was lost can be repeated. All make queues first and then agents, each by name, or two
    batches for the same new agents would wait for each other; counting the queues makes all of them first.

    The dispatchers are notified only when a queue turns from empty to non-empty: a NOTIFY takes a lock that all
    notifying commits share. A queue that a dispatcher empties at this very moment is found by its next sweep.
    """
    rows = json.dumps([_request_row(request) for request in requests])
    _INSERT.execute(connection, rows=rows, max_attempts=max_attempts, ttl_seconds=ttl_seconds, channel=READY_CHANNEL)


def _request_row(request: TaskRequest) -> dict[str, Any]:
    return {
        "id": str(request.id),
        "type": request.type,
        "priority": request.priority,
        "agent_id": request.agent_id,
        "user_id": request.user_id,
        "channel_id": request.channel_id,
        "model": request.model,
        "title": request.title,
        "description": request.description,
        "payload": request.payload.model_dump(mode="json", exclude_defaults=True),
        "metadata": request.metadata,
    }


@dataclass(frozen=True, slots=True)
class Doorbell:
    """One attempt at one task: all that a message carries."""

    task_id: uuid.UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class ClaimedTask:
    """What a worker needs to run an attempt that is now its own."""

    task_id: uuid.UUID
    attempt: int
    type: str
    model: str | None
    agent_id: str
    failures: int
    max_attempts: int
    payload: dict[str, Any]


_CLAIM = Statement(
    "claim_tasks",
    """
WITH not_durable AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
UPDATE tasks AS t
SET status = 'in_progress', queue_state = NULL, started_at = now(), updated_at = now()
FROM unnest(:ids, :attempts) AS c (id, attempt)
JOIN task_details AS d ON d.task_id = c.id
CROSS JOIN not_durable
WHERE t.id = c.id AND t.attempt = c.attempt AND t.worker_id = :worker_id AND t.cancel_requested_at IS NULL
AND (t.queue_state = 'reserved' OR t.status = 'in_progress')
RETURNING t.id, t.attempt, t.type, t.model, t.agent_id, t.failures, t.max_attempts, d.payload
""",
    ids="uuid[]",
    attempts="integer[]",
    worker_id="uuid",
)


def claim_tasks(connection: Connection, doorbells: Sequence[Doorbell], worker_id: uuid.UUID) -> list[ClaimedTask]:
    """Take the lease on those of the attempts that are reserved for this worker; the others are not returned.

    Not durable at once: a claim that a crash of PostgreSQL forgets leaves a reservation, which is claimed again.
    Idempotent for the same worker and attempt: a reply that was lost is asked for again.
    """
    rows: Iterable[Any] = _CLAIM.execute(
        connection,
        ids=[str(bell.task_id) for bell in doorbells],
        attempts=[bell.attempt for bell in doorbells],
        worker_id=worker_id,
    )
    return [ClaimedTask(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Ending:
    """How one attempt ended.

    Attributes:
        outcome: `completed`, `failed`, `cancelled` end the task; `retried` spends a failure and schedules the next
            attempt after `retry_seconds`.
        retry_seconds: Before a `retried` task is ready again.
    """

    task_id: uuid.UUID
    attempt: int
    outcome: str
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None
    retry_seconds: float = 0.0


_FINISH = Statement(
    "finish_tasks",
    """
WITH input AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(:rows) AS r (
        task_id uuid, attempt integer, outcome text, result jsonb, error jsonb, usage jsonb, retry_seconds float8
    )
), ended AS (
    UPDATE tasks AS t SET
        status = CASE WHEN i.outcome <> 'retried' THEN CAST(i.outcome AS task_status)
                      WHEN t.cancel_requested_at IS NULL THEN 'pending' ELSE 'cancelled' END,
        queue_state = CASE WHEN i.outcome = 'retried' AND t.cancel_requested_at IS NULL
                      THEN CAST('scheduled' AS task_queue_state) END,
        not_before = CASE i.outcome WHEN 'retried' THEN now() + make_interval(secs => i.retry_seconds)
                     ELSE t.not_before END,
        attempt = t.attempt + CASE WHEN i.outcome = 'retried' AND t.cancel_requested_at IS NULL THEN 1 ELSE 0 END,
        failures = t.failures + CASE WHEN i.outcome IN ('retried', 'failed') THEN 1 ELSE 0 END,
        worker_id = CASE WHEN i.outcome = 'retried' AND t.cancel_requested_at IS NULL THEN NULL ELSE t.worker_id END,
        progress = CASE WHEN i.outcome = 'completed' THEN 1 ELSE t.progress END,
        error_code = i.error ->> 'code',
        finished_at = CASE WHEN i.outcome = 'retried' AND t.cancel_requested_at IS NULL THEN NULL ELSE now() END,
        updated_at = now()
    FROM input AS i
    WHERE t.id = i.task_id AND t.attempt = i.attempt AND t.worker_id = :worker_id AND t.status = 'in_progress'
    RETURNING t.id, t.started_at, i.attempt, i.result, i.error, i.usage,
              CASE t.status WHEN 'pending' THEN 'retried' ELSE t.status::text END AS outcome
), new_attempts AS (
    INSERT INTO attempts (task_id, attempt, worker_id, outcome, error, usage, started_at)
    SELECT id, attempt, :worker_id, outcome, error, usage, started_at FROM ended
), new_details AS (
    UPDATE task_details AS d SET result = e.result, error = e.error, usage = e.usage
    FROM ended AS e WHERE d.task_id = e.id
), notified AS (
    SELECT pg_notify(:channel, '') WHERE EXISTS (SELECT FROM ended)
)
SELECT ended.id, ended.outcome FROM ended LEFT JOIN notified ON true
""",
    rows="jsonb",
    worker_id="uuid",
    channel="text",
)


def finish_tasks(connection: Connection, endings: Sequence[Ending], worker_id: uuid.UUID) -> dict[uuid.UUID, str]:
    """Record how attempts ended and return the outcomes by id; what was no longer this worker's is discarded.

    A task that was to be cancelled is not tried again: `retried` is recorded as `cancelled`.
    """
    rows = dump_storable(
        [
            {
                "task_id": str(ending.task_id),
                "attempt": ending.attempt,
                "outcome": ending.outcome,
                "result": ending.result,
                "error": ending.error,
                "usage": ending.usage,
                "retry_seconds": ending.retry_seconds,
            }
            for ending in endings
        ]
    )
    ended = _FINISH.execute(connection, rows=rows, worker_id=worker_id, channel=READY_CHANNEL)
    return {row.id: row.outcome for row in ended}


_CANCEL = Statement(
    "cancel_tasks",
    """
UPDATE tasks SET
    status = CASE WHEN status = 'pending' THEN 'cancelled' ELSE status END,
    queue_state = NULL,
    finished_at = CASE WHEN status = 'pending' THEN now() END,
    error_code = CASE WHEN status = 'pending' THEN 'cancelled' ELSE error_code END,
    cancel_requested_at = coalesce(cancel_requested_at, now()),
    updated_at = now()
WHERE id = ANY(:ids) AND status IN ('pending', 'in_progress')
RETURNING id, status = 'cancelled'
""",
    ids="uuid[]",
)


def cancel_tasks(connection: Connection, task_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, bool]:
    """Cancel pending tasks and flag running ones, in one decision each.

    Returns whether it is cancelled already, by id; a finished or unknown task is not in the answer: its result wins.
    """
    rows: Iterable[Any] = _CANCEL.execute(connection, ids=[str(task_id) for task_id in task_ids])
    return {row[0]: row[1] for row in rows}
