"""Record tasks within the limits of their agents and channels. One statement a function, many tasks a statement.

Invariant: no submission takes an agent or a channel past its limit, whoever else submits at the same time, and nobody
writes a counter. (Tasks that are tried again come back whatever the limit.) Submissions of one agent take an advisory
lock: shared while there is room for everyone who may be connected, exclusive for the last places and for batches. The
lock is a statement of its own in the same round trip, so that what is counted under it is counted by a snapshot taken
after it.
"""

import json
import uuid
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from bitinglip.domain.task import TaskRequest
from bitinglip.store.statement import Statement
from bitinglip.store.tasks import READY_CHANNEL

_LOCK_CLASS = 0x62697403
_LOCK_BUCKETS = 64
"""Locks for all agents, and as many for all channels: a transaction may hold few locks, not a thousand."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait at once, where the agent's own row says nothing else."""

    agent_tasks: int
    channel_tasks: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing of a batch was recorded.

    Attributes:
        scope: `agent`, `channel` or `priority`.
        limit: Tasks, or the most urgent priority allowed.
        waiting: Tasks, or the priority asked for.
    """

    scope: str
    name: str
    limit: str
    waiting: str


_INSERT = Statement(
    "insert_tasks",
    """
WITH input AS MATERIALIZED (
    SELECT * FROM ROWS FROM (jsonb_to_recordset(:rows) AS (
        id uuid, type text, priority task_priority, agent_id text, user_id text, channel_id text, model text,
        max_attempts smallint, ttl_seconds integer, not_before timestamptz, idempotency_key text, has_children boolean,
        title text, description text, payload jsonb, metadata jsonb, depends_on uuid[]
    )) WITH ORDINALITY
), new AS MATERIALIZED (
    -- Not joins: those would read every task and every queue, because the planner expects a hundred rows.
    SELECT * FROM input
    WHERE coalesce((SELECT false FROM tasks WHERE tasks.id = input.id), true)
    AND (idempotency_key IS NULL OR coalesce((
        SELECT false FROM tasks AS known
        WHERE known.agent_id = input.agent_id AND known.idempotency_key = input.idempotency_key), true))
), margin AS MATERIALIZED (
    SELECT CASE WHEN :exact THEN 0 ELSE current_setting('max_connections')::bigint END AS places
), agents_asking AS MATERIALIZED (
    SELECT agent_id, count(*) AS asked, min(priority) AS priority,
           coalesce((SELECT max_queued FROM agents WHERE id = agent_id), :agent_limit) AS bound,
           (SELECT max_priority FROM agents WHERE id = agent_id) AS max_priority
    FROM new GROUP BY agent_id
), channels_asking AS MATERIALIZED (
    SELECT channel_id, count(*) AS asked FROM new WHERE channel_id IS NOT NULL GROUP BY channel_id
), refusals AS MATERIALIZED (
    SELECT 'agent' AS scope, agent_id AS name, bound::text AS bound, waiting::text AS waiting
    FROM agents_asking CROSS JOIN margin CROSS JOIN LATERAL (
        SELECT CASE
            -- No more can wait than were numbered since the oldest that waits: most often that is proof enough.
            WHEN (SELECT last_value FROM tasks_seq_seq) - coalesce((
                SELECT seq FROM tasks WHERE tasks.agent_id = agents_asking.agent_id AND status = 'pending'
                ORDER BY seq LIMIT 1), (SELECT last_value FROM tasks_seq_seq)) + 1 + asked + places <= bound
            THEN 0
            ELSE (SELECT count(*) FROM (
                SELECT FROM tasks WHERE tasks.agent_id = agents_asking.agent_id AND status = 'pending'
                LIMIT bound + 1) AS counted)
        END AS waiting
    ) AS depth
    WHERE waiting + asked + places > bound
    UNION ALL
    SELECT 'channel', channel_id, CAST(:channel_limit AS text), waiting::text
    FROM channels_asking CROSS JOIN margin CROSS JOIN LATERAL (
        SELECT count(*) AS waiting FROM (
            SELECT FROM tasks WHERE tasks.channel_id = channels_asking.channel_id AND status = 'pending'
            LIMIT :channel_limit + 1) AS counted
    ) AS depth
    WHERE waiting + asked + places > :channel_limit
    UNION ALL
    SELECT 'priority', agent_id, max_priority::text, priority::text FROM agents_asking WHERE priority < max_priority
), accepted AS MATERIALIZED (
    SELECT * FROM new WHERE NOT EXISTS (SELECT FROM refusals)
), new_tasks AS (
    INSERT INTO tasks (id, type, queue_state, priority, agent_id, user_id, channel_id, model, max_attempts,
                       ttl_seconds, not_before, expires_at, idempotency_key, has_children)
    SELECT id, type,
           CAST(CASE WHEN depends_on <> '{}' THEN 'blocked' WHEN not_before > now() THEN 'scheduled' ELSE 'ready' END
                AS task_queue_state),
           priority, agent_id, user_id, channel_id, model, max_attempts, ttl_seconds, not_before,
           -- A blocked task begins to wait when nothing blocks it.
           CASE WHEN depends_on = '{}'
                THEN greatest(now(), not_before) + make_interval(secs => ttl_seconds) END,
           idempotency_key, has_children
    FROM accepted ORDER BY ordinality
    ON CONFLICT DO NOTHING
    RETURNING id, queue_state
), new_details AS (
    INSERT INTO task_details (task_id, title, description, payload, metadata, depends_on)
    SELECT id, title, description, payload, metadata, depends_on FROM accepted JOIN new_tasks USING (id)
), new_dependencies AS (
    INSERT INTO dependencies (child_id, parent_id)
    SELECT id, parent_id FROM accepted JOIN new_tasks USING (id) CROSS JOIN unnest(depends_on) AS parent_id
), new_agents AS (
    INSERT INTO agents (id)
    SELECT DISTINCT agent_id FROM accepted
    WHERE NOT EXISTS (SELECT FROM agents WHERE agents.id = accepted.agent_id)
    ORDER BY agent_id
    ON CONFLICT DO NOTHING
), woken AS (
    -- Not `wake_queues`: a queue that is known to have tasks is not even locked.
    INSERT INTO queues AS q (type, model, agent_id, priority)
    SELECT DISTINCT type, coalesce(model, ''), agent_id, priority FROM accepted
    WHERE coalesce((
        SELECT NOT known.has_ready FROM queues AS known
        WHERE (known.type, known.model, known.agent_id, known.priority)
            = (accepted.type, coalesce(accepted.model, ''), accepted.agent_id, accepted.priority)
    ), true)
    ORDER BY 1, 2, 3, 4
    ON CONFLICT (type, model, agent_id, priority) DO UPDATE SET has_ready = true WHERE NOT q.has_ready
    RETURNING 1
)
SELECT scope, name, bound, waiting, NULL AS notified FROM refusals
UNION ALL
SELECT NULL, NULL, NULL, NULL, pg_notify(:channel, '')::text
WHERE (SELECT count(*) FROM woken) > 0 OR EXISTS (SELECT FROM new_tasks WHERE queue_state = 'blocked')
""",
    rows="jsonb",
    exact="boolean",
    agent_limit="bigint",
    channel_limit="bigint",
    channel="text",
)


def insert_tasks(
    connection: Connection,
    requests: Sequence[TaskRequest],
    *,
    limits: Limits,
    max_attempts: int,
    ttl_seconds: int,
    exact: bool,
) -> list[Refusal]:
    """Record tasks in the order given, or none of them and why. One that is recorded already is left as it is.

    So a submission whose reply was lost can be repeated. All make queues first and then agents, each by name, or two
    batches for the same new agents would wait for each other; counting the queues makes all of them first.

    The dispatchers are notified only when a queue turns from empty to non-empty: a NOTIFY takes a lock that all
    notifying commits share. A queue that a dispatcher empties at this very moment is found by its next sweep.

    Args:
        connection: In a transaction, or of a lone statement.
        requests: Parents before their children.
        limits: For agents without limits of their own.
        max_attempts: For those whose kind says nothing else.
        ttl_seconds: For those that say nothing else.
        exact: Take the locks alone, so that the last places can be given; otherwise a refusal may only mean that the
            limit is near.
    """
    parents = {parent for request in requests for parent in request.depends_on}
    rows = json.dumps(
        [
            _request_row(
                request,
                max_attempts=request.max_attempts or max_attempts,
                ttl_seconds=request.ttl or ttl_seconds,
                has_children=request.id in parents,
            )
            for request in requests
        ]
    )
    refusals = _INSERT.execute(
        connection,
        before=_lock(requests, exclusive=exact),
        rows=rows,
        exact=exact,
        agent_limit=limits.agent_tasks,
        channel_limit=limits.channel_tasks,
        channel=READY_CHANNEL,
    )
    return [Refusal(row.scope, row.name, row.bound, row.waiting) for row in refusals if row.scope is not None]


def _request_row(request: TaskRequest, *, max_attempts: int, ttl_seconds: int, has_children: bool) -> dict[str, Any]:
    return {
        "id": str(request.id),
        "type": request.type,
        "priority": request.priority,
        "agent_id": request.agent_id,
        "user_id": request.user_id,
        "channel_id": request.channel_id,
        "model": request.model,
        "max_attempts": max_attempts,
        "ttl_seconds": ttl_seconds,
        "not_before": request.not_before.isoformat() if request.not_before else None,
        "idempotency_key": request.idempotency_key,
        "has_children": has_children,
        "title": request.title,
        "description": request.description,
        "payload": request.payload.model_dump(mode="json", exclude_defaults=True),
        "metadata": request.metadata,
        "depends_on": [str(parent) for parent in dict.fromkeys(request.depends_on)],
    }


def lock_submitters(connection: Connection, requests: Iterable[TaskRequest], others: Iterable[str] = ()) -> None:
    """Wait until nobody else submits for these agents and channels; it stays so until the transaction ends.

    Args:
        connection: In a transaction.
        requests: What is to be recorded.
        others: Agents besides theirs.
    """
    connection.exec_driver_sql(_lock(requests, others, exclusive=True))


def _lock(requests: Iterable[TaskRequest], others: Iterable[str] = (), *, exclusive: bool) -> str:
    """A statement that waits for the locks of every agent and channel, in one order for all."""
    keys = {zlib.crc32(agent_id.encode()) % _LOCK_BUCKETS for agent_id in others}
    for request in requests:
        keys.add(zlib.crc32(request.agent_id.encode()) % _LOCK_BUCKETS)
        if request.channel_id:
            keys.add(_LOCK_BUCKETS + zlib.crc32(request.channel_id.encode()) % _LOCK_BUCKETS)
    function = "pg_advisory_xact_lock" if exclusive else "pg_advisory_xact_lock_shared"
    return f"SELECT {', '.join(f'{function}({_LOCK_CLASS}, {key})' for key in sorted(keys))}"


@dataclass(frozen=True, slots=True)
class Parent:
    """A task that others depend on."""

    agent_id: str
    type: str


_MARK_PARENTS = Statement(
    "mark_parents",
    """
UPDATE tasks AS t SET has_children = true
FROM (SELECT id FROM tasks WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE) AS parent
WHERE t.id = parent.id
RETURNING t.id, t.agent_id, t.type
""",
    ids="uuid[]",
)


def mark_parents(connection: Connection, task_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Parent]:
    """Say of tasks that others depend on them, and return what they are by id.

    In the transaction that inserts the children: until it ends no parent can, and whoever ends one then sees the mark.
    """
    rows = _MARK_PARENTS.execute(connection, ids=sorted(str(task_id) for task_id in task_ids))
    return {row.id: Parent(row.agent_id, row.type) for row in rows}


_KEYED = Statement(
    "find_keyed",
    """
SELECT t.id, t.agent_id, t.idempotency_key, t.type, t.model, d.payload
FROM unnest(:agents, :keys) AS asked (agent_id, key)
JOIN tasks AS t ON t.agent_id = asked.agent_id AND t.idempotency_key = asked.key
JOIN task_details AS d ON d.task_id = t.id
""",
    agents="text[]",
    keys="text[]",
)


def find_keyed(connection: Connection, keys: Sequence[tuple[str, str]]) -> Sequence[Row[Any]]:
    """The tasks of (agent, idempotency key): id, agent_id, idempotency_key, type, model, payload."""
    return _KEYED.execute(connection, agents=[agent for agent, _ in keys], keys=[key for _, key in keys]).all()
