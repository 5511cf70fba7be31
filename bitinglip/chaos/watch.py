"""What PostgreSQL says while things break. One statement a function; each looks only at chaos' own tasks."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

AGENT = "chaos"
"""Who submits all of chaos' tasks."""


@dataclass(frozen=True)
class WorkerState:
    """A worker that may be given tasks.

    Attributes:
        models: What it holds, by its last heartbeat.
        worked_at: When it completed the latest of chaos' tasks.
    """

    id: uuid.UUID
    name: str
    node: str
    pid: int
    slots: int
    kinds: Sequence[str]
    models: Sequence[str]
    last_seen_at: datetime
    worked_at: datetime | None


_WORKERS = text("""
SELECT w.id, w.name, w.node, w.pid, w.slots, w.kinds, w.models, w.last_seen_at,
       (SELECT max(t.finished_at) FROM tasks AS t WHERE t.agent_id = :agent AND t.status = 'completed'
        AND t.worker_id = w.id) AS worked_at
FROM workers AS w WHERE w.state = 'ready' AND w.lease_expires_at > now() ORDER BY w.name
""")


def list_ready_workers(connection: Connection) -> list[WorkerState]:
    """The workers that may be given tasks."""
    return [WorkerState(*row) for row in connection.execute(_WORKERS, {"agent": AGENT})]


_NOW = text("SELECT clock_timestamp()")


def get_time(connection: Connection) -> datetime:
    """PostgreSQL's clock."""
    moment: datetime = connection.execute(_NOW).scalar_one()
    return moment


_OPEN = text("""
SELECT count(*) AS waiting, count(*) FILTER (WHERE suspect) AS suspects FROM tasks
WHERE agent_id = :agent AND status IN ('pending', 'in_progress')
""")


def count_open(connection: Connection) -> tuple[int, int]:
    """Tasks that have not ended, and how many of them may have ended an engine."""
    row = connection.execute(_OPEN, {"agent": AGENT}).one()
    return row.waiting, row.suspects


_RUNNING_ON = text("SELECT worker_id FROM tasks WHERE id = :id AND attempt = 1 AND status = 'in_progress'")


def find_first_worker(connection: Connection, task_id: uuid.UUID) -> uuid.UUID | None:
    """The worker that runs a task's first attempt now."""
    return connection.execute(_RUNNING_ON, {"id": task_id}).scalar_one_or_none()


_ENDED = text("SELECT finished_at IS NOT NULL FROM tasks WHERE id = :id")


def has_ended(connection: Connection, task_id: uuid.UUID) -> bool:
    """Whether a task has ended."""
    return bool(connection.execute(_ENDED, {"id": task_id}).scalar_one_or_none())


_STARTED_AGAIN = text("""
SELECT min(started_at) FROM (
    SELECT started_at FROM attempts WHERE task_id = :id AND attempt > 1
    UNION ALL
    SELECT started_at FROM tasks WHERE id = :id AND attempt > 1 AND status <> 'pending'
) AS later
""")


def find_second_start(connection: Connection, task_id: uuid.UUID) -> datetime | None:
    """When the attempt after a task's first one started."""
    return connection.execute(_STARTED_AGAIN, {"id": task_id}).scalar_one_or_none()


_STARTS = text("""
SELECT started_at FROM tasks WHERE agent_id = :agent AND started_at > :since ORDER BY started_at
""")


def list_starts(connection: Connection, since: datetime) -> list[datetime]:
    """When tasks were claimed, after a moment; each task counts once."""
    return list(connection.scalars(_STARTS, {"agent": AGENT, "since": since}))


_SPAN = text("""
SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM tasks WHERE id = ANY(CAST(:ids AS uuid[]))
""")


def get_span_seconds(connection: Connection, task_ids: Sequence[uuid.UUID]) -> float:
    """From the first claim of these tasks to the last of their ends."""
    return float(connection.execute(_SPAN, {"ids": [str(task_id) for task_id in task_ids]}).scalar_one())


_SERVER_START = text("SELECT pg_postmaster_start_time()")


def get_server_start(connection: Connection) -> datetime:
    """When this PostgreSQL came up."""
    moment: datetime = connection.execute(_SERVER_START).scalar_one()
    return moment


_TERMINATE = text("""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
""")


def terminate_backends(connection: Connection) -> int:
    """End every other connection to this database; returns how many there were."""
    return int(connection.execute(_TERMINATE).scalar_one())
