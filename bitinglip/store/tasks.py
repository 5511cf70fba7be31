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

from bitinglip.store.clauses import refund_charges, wake_queues
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
    f"""
WITH not_durable AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)
), asked AS MATERIALIZED (
    SELECT c.id, c.attempt, coalesce((SELECT yields FROM workers WHERE workers.id = :worker_id), false) AS yields
    FROM unnest(:ids, :attempts) AS c (id, attempt)
), gave_way AS (
    UPDATE tasks AS t SET queue_state = 'ready', worker_id = NULL, reserved_at = NULL, updated_at = now()
    FROM asked AS c
    WHERE c.yields AND t.id = c.id AND t.attempt = c.attempt AND t.worker_id = :worker_id
    AND t.queue_state = 'reserved' AND t.priority <> 'critical' AND t.cancel_requested_at IS NULL
    RETURNING t.type, t.model, t.agent_id, t.priority, t.charged, CAST(:worker_id AS uuid) AS held_by
), woken AS ({wake_queues("gave_way", "true")}
), refunded AS ({refund_charges("gave_way")}
), notified AS MATERIALIZED (
    SELECT pg_notify('{READY_CHANNEL}', '') WHERE EXISTS (SELECT FROM gave_way)
)
UPDATE tasks AS t
SET status = 'in_progress', queue_state = NULL, started_at = now(), updated_at = now()
FROM asked AS c
JOIN task_details AS d ON d.task_id = c.id
CROSS JOIN not_durable
LEFT JOIN notified ON true
WHERE t.id = c.id AND t.attempt = c.attempt AND t.worker_id = :worker_id AND t.cancel_requested_at IS NULL
AND (t.queue_state = 'reserved' AND (t.priority = 'critical' OR NOT c.yields) OR t.status = 'in_progress')
RETURNING t.id, t.attempt, t.type, t.model, t.agent_id, t.failures, t.max_attempts, t.suspect, d.payload
""",
    ids="uuid[]",
    attempts="integer[]",
    worker_id="uuid",
)


def claim_tasks(connection: Connection, doorbells: Sequence[Doorbell], worker_id: uuid.UUID) -> list[ClaimedTask]:
    """Take the lease on those of the attempts that are reserved for this worker; the others are not returned.

    On a worker that yields, what is not urgent goes back to its queue, so that an urgent task can have the slot.
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
    f"""
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
    RETURNING t.id, t.started_at, i.attempt, i.result, i.error, i.usage, t.type, t.model, t.agent_id, t.priority,
              t.queue_state, t.charged, i.outcome AS ran,
              CASE WHEN t.status = 'pending' THEN i.outcome ELSE t.status::text END AS outcome
), new_attempts AS (
    INSERT INTO attempts (task_id, attempt, worker_id, outcome, error, usage, started_at)
    SELECT id, attempt, :worker_id, CASE outcome WHEN 'released' THEN 'lost' ELSE outcome END, error, usage, started_at
    FROM ended
), new_details AS (
    UPDATE task_details AS d SET result = e.result, error = e.error, usage = e.usage
    FROM ended AS e WHERE d.task_id = e.id
), woken AS ({wake_queues("ended")}
), measured AS (
    SELECT w.pool, e.type, coalesce(e.model, '') AS model, e.agent_id, e.charged, seconds, tokens,
           e.ran = 'completed' AS is_typical,
           -- A failure, or a worker's or engine's end, is charged to nobody.
           e.ran IN ('completed', 'cancelled') OR e.error ->> 'code' = 'time_limit' AS is_charged,
           -- At least a millisecond: whose tasks cost nothing would always be next.
           CASE w.charge WHEN 'seconds' THEN greatest(seconds, 0.001) * w.speed WHEN 'tokens' THEN tokens
                ELSE 1 END AS cost,
           extract(epoch FROM now() - e.started_at) AS running_seconds
    FROM ended AS e JOIN workers AS w ON w.id = :worker_id CROSS JOIN LATERAL (
        -- Bounded: what an engine says wrongly must not stop every dispatcher that counts on with it.
        SELECT least(greatest(coalesce((e.usage ->> 'engine_seconds')::float8, 0), 0), 1e9) AS seconds,
               least(greatest(coalesce((e.usage ->> 'total_tokens')::numeric, 0), 0), 1e12)::bigint AS tokens
    ) AS used
    WHERE e.charged IS NOT NULL
), settled AS (
    INSERT INTO settlements (pool, type, model, agent_id, released, charged, cost, seconds, tokens, measured,
                             measured_cost, running_seconds, peak_seconds, peak_tokens)
    SELECT pool, type, model, agent_id, count(*), sum(charged), coalesce(sum(cost) FILTER (WHERE is_charged), 0),
           coalesce(sum(seconds) FILTER (WHERE is_charged), 0), coalesce(sum(tokens) FILTER (WHERE is_charged), 0),
           count(*) FILTER (WHERE is_typical), coalesce(sum(cost) FILTER (WHERE is_typical), 0),
           coalesce(sum(running_seconds) FILTER (WHERE is_typical), 0),
           coalesce(max(seconds) FILTER (WHERE is_charged), 0), coalesce(max(tokens) FILTER (WHERE is_charged), 0)
    FROM measured GROUP BY pool, type, model, agent_id
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
    f"""
WITH cancelled AS (
    UPDATE tasks AS t SET
        status = CASE WHEN t.status = 'pending' THEN 'cancelled' ELSE t.status END,
        queue_state = NULL,
        finished_at = CASE WHEN t.status = 'pending' THEN now() END,
        error_code = CASE WHEN t.status = 'pending' THEN 'cancelled' ELSE error_code END,
        cancel_requested_at = coalesce(cancel_requested_at, now()),
        updated_at = now()
    FROM (
        SELECT id, queue_state = 'reserved' AS was_reserved FROM tasks
        WHERE id = ANY(:ids) AND status IN ('pending', 'in_progress') ORDER BY id FOR NO KEY UPDATE
    ) AS old
    WHERE t.id = old.id
    RETURNING t.id, t.agent_id, t.status, t.attempt, t.error_code, t.worker_id, t.type, t.model, t.charged,
              t.worker_id AS held_by, old.was_reserved
), refunded AS ({refund_charges("cancelled", "r.was_reserved")}
)
SELECT id, agent_id, status, attempt, error_code, worker_id FROM cancelled
""",
    ids="uuid[]",
)


def cancel_tasks(connection: Connection, task_ids: Sequence[uuid.UUID]) -> list[Change]:
    """Cancel pending tasks and flag running ones, in one decision each.

    A finished or unknown task is not in the answer: its result wins.
    """
    return read_changes(_CANCEL.execute(connection, ids=[str(task_id) for task_id in task_ids]))
