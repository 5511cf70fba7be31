"""The life of a task in PostgreSQL: claim, finish, cancel. One statement a function, many tasks a statement.

Invariant: every write by a worker names `(id, attempt, worker_id)` and the status it found. A worker that no longer
owns the attempt changes no row, and the statement says so by not returning it. Rows are locked in the order of their
ids, here and wherever else many are: or two statements would wait for each other.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from bitinglip.store.jsonb import dump_storable
from bitinglip.store.statement import Statement

READY_CHANNEL = "bitinglip_ready"
"""NOTIFY channel on which dispatchers wait for work and for free slots."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a statement made of a task, for those who listen."""

    task_id: uuid.UUID
    agent_id: str
    status: str
    attempt: int
    error_code: str | None = None
    worker_id: uuid.UUID | None = None


def read_changes(rows: Iterable[Any]) -> list[Change]:
    """The changes in rows of id, agent_id, status, attempt, error_code, worker_id."""
    return [Change(row.id, row.agent_id, row.status, row.attempt, row.error_code, row.worker_id) for row in rows]


@dataclass(frozen=True, slots=True)
class Doorbell:
    """One attempt at one task: all that a message carries."""

    task_id: uuid.UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class ClaimedTask:
    """What a worker needs to run an attempt that is now its own.

    Attributes:
        suspect: An engine died while it ran the task: it runs alone now.
    """

    task_id: uuid.UUID
    attempt: int
    type: str
    model: str | None
    agent_id: str
    failures: int
    max_attempts: int
    suspect: bool
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
RETURNING t.id, t.attempt, t.type, t.model, t.agent_id, t.failures, t.max_attempts, t.suspect, d.payload
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
    ordered = sorted(doorbells, key=lambda bell: bell.task_id)
    rows: Iterable[Any] = _CLAIM.execute(
        connection,
        ids=[str(bell.task_id) for bell in ordered],
        attempts=[bell.attempt for bell in ordered],
        worker_id=worker_id,
    )
    return [ClaimedTask(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Ending:
    """How one attempt ended.

    Attributes:
        outcome: `completed`, `failed`, `cancelled` end the task; `retried` spends a failure and schedules the next
            attempt after `retry_seconds`; `released` makes the task ready at once, at no cost.
        retry_seconds: Before a `retried` task is ready again.
        suspect: A `released` task may have killed its engine.
    """

    task_id: uuid.UUID
    attempt: int
    outcome: str
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None
    retry_seconds: float = 0.0
    suspect: bool = False


_FINISH = Statement(
    "finish_tasks",
    """
WITH input AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(:rows) AS r (
        task_id uuid, attempt integer, outcome text, result jsonb, error jsonb, usage jsonb, retry_seconds float8,
        suspect boolean
    )
), ended AS (
    UPDATE tasks AS t SET
        status = CASE WHEN i.outcome NOT IN ('retried', 'released') THEN CAST(i.outcome AS task_status)
                      WHEN t.cancel_requested_at IS NULL THEN 'pending' ELSE 'cancelled' END,
        queue_state = CASE WHEN t.cancel_requested_at IS NULL THEN
                      CAST(CASE i.outcome WHEN 'retried' THEN 'scheduled' WHEN 'released' THEN 'ready' END
                           AS task_queue_state) END,
        not_before = CASE i.outcome WHEN 'retried' THEN now() + make_interval(secs => i.retry_seconds)
                     ELSE t.not_before END,
        attempt = t.attempt + CASE WHEN i.outcome IN ('retried', 'released') AND t.cancel_requested_at IS NULL
                  THEN 1 ELSE 0 END,
        failures = t.failures + CASE WHEN i.outcome IN ('retried', 'failed') THEN 1 ELSE 0 END,
        worker_id = CASE WHEN i.outcome IN ('retried', 'released') AND t.cancel_requested_at IS NULL THEN NULL
                    ELSE t.worker_id END,
        reserved_at = NULL,
        suspect = i.suspect OR t.suspect AND i.outcome = 'released',
        progress = CASE WHEN i.outcome = 'completed' THEN 1 ELSE t.progress END,
        error_code = i.error ->> 'code',
        finished_at = CASE WHEN i.outcome IN ('retried', 'released') AND t.cancel_requested_at IS NULL THEN NULL
                      ELSE now() END,
        updated_at = now()
    FROM input AS i
    WHERE t.id = i.task_id AND t.attempt = i.attempt AND t.worker_id = :worker_id AND t.status = 'in_progress'
    RETURNING t.id, t.started_at, i.attempt, i.result, i.error, i.usage, t.type, t.agent_id, t.priority, t.queue_state,
              CASE WHEN t.status = 'pending' THEN i.outcome ELSE t.status::text END AS outcome
), new_attempts AS (
    INSERT INTO attempts (task_id, attempt, worker_id, outcome, error, usage, started_at)
    SELECT id, attempt, :worker_id, CASE outcome WHEN 'released' THEN 'lost' ELSE outcome END, error, usage, started_at
    FROM ended
), new_details AS (
    UPDATE task_details AS d SET result = e.result, error = e.error, usage = e.usage
    FROM ended AS e WHERE d.task_id = e.id
), woken_queues AS (
    INSERT INTO agent_queues AS q (type, agent_id, priority)
    SELECT DISTINCT type, agent_id, priority FROM ended WHERE queue_state = 'ready'
    ORDER BY type, agent_id, priority
    ON CONFLICT (type, agent_id, priority) DO UPDATE SET has_ready = true WHERE NOT q.has_ready
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

    A task that was to be cancelled is not tried again: `retried` and `released` are recorded as `cancelled`.
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
                "suspect": ending.suspect,
            }
            for ending in sorted(endings, key=lambda ending: ending.task_id)
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
WHERE id IN (
    SELECT id FROM tasks WHERE id = ANY(:ids) AND status IN ('pending', 'in_progress') ORDER BY id FOR NO KEY UPDATE
)
RETURNING id, agent_id, status, attempt, error_code, worker_id
""",
    ids="uuid[]",
)


def cancel_tasks(connection: Connection, task_ids: Sequence[uuid.UUID]) -> list[Change]:
    """Cancel pending tasks and flag running ones, in one decision each.

    A finished or unknown task is not in the answer: its result wins.
    """
    return read_changes(_CANCEL.execute(connection, ids=[str(task_id) for task_id in task_ids]))
