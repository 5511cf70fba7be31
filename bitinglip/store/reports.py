"""What each agent's tasks came to on a day, UTC. One statement a function.

A task is submitted on the day it was recorded; all else counts for the day it ended: its outcome, its tokens and engine
seconds, and how long it waited for its last attempt to begin.

Decision: no index on `finished_at`, which every task's end would have to write. What ended on a day can have been
recorded long before, so this reads `tasks` as a whole, once a night: 0.6 s for a million tasks. A day that is long over
spares the newer rows.
"""

from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlalchemy import Connection, Row, text

_NAMES = (
    "submitted",
    "completed",
    "failed",
    "cancelled",
    "prompt_tokens",
    "completion_tokens",
    "engine_seconds",
    "wait_p50_seconds",
    "wait_p95_seconds",
)
_COLUMNS = f"agent_id, {', '.join(_NAMES)}"

_FIGURES = """
SELECT agent_id,
       count(*) FILTER (WHERE is_new) AS submitted,
       count(*) FILTER (WHERE has_ended AND status = 'completed') AS completed,
       count(*) FILTER (WHERE has_ended AND status = 'failed') AS failed,
       count(*) FILTER (WHERE has_ended AND status = 'cancelled') AS cancelled,
       coalesce(sum((usage ->> 'prompt_tokens')::bigint), 0)::bigint AS prompt_tokens,
       coalesce(sum((usage ->> 'completion_tokens')::bigint), 0)::bigint AS completion_tokens,
       coalesce(sum((usage ->> 'engine_seconds')::float8), 0) AS engine_seconds,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY wait) FILTER (WHERE has_ended) AS wait_p50_seconds,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY wait) FILTER (WHERE has_ended) AS wait_p95_seconds
FROM (
    SELECT t.agent_id, t.status, d.usage, t.created_at >= day.began AS is_new,
           coalesce(t.finished_at >= day.began AND t.finished_at < day.ended, false) AS has_ended,
           extract(epoch FROM t.started_at - t.created_at)::float8 AS wait
    FROM (SELECT CAST(:day AS date) AT TIME ZONE 'UTC' AS began,
                 CAST(:day AS date) AT TIME ZONE 'UTC' + interval '1 day' AS ended) AS day
    JOIN tasks AS t ON t.created_at < day.ended
    AND (t.created_at >= day.began OR t.finished_at >= day.began AND t.finished_at < day.ended)
    LEFT JOIN task_details AS d ON d.task_id = t.id AND t.finished_at >= day.began AND t.finished_at < day.ended
    WHERE CAST(:agent_id AS text) IS NULL OR t.agent_id = :agent_id
) AS of_the_day
GROUP BY agent_id
"""

_COMPUTE = text(f"{_FIGURES} ORDER BY agent_id")


def compute_report(connection: Connection, day: date, agent_id: str | None = None) -> Sequence[Row[Any]]:
    """The day's figures as they are now, an agent a row: the columns of `agent_reports` from agent_id on."""
    return connection.execute(_COMPUTE, {"day": day, "agent_id": agent_id}).all()


_STORE = text(f"""
INSERT INTO agent_reports AS known (day, {_COLUMNS})
SELECT CAST(:day AS date), {_COLUMNS} FROM ({_FIGURES}) AS figures
ON CONFLICT (day, agent_id) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in _NAMES)}, created_at = now()
WHERE known.submitted + known.completed + known.failed + known.cancelled
   <= excluded.submitted + excluded.completed + excluded.failed + excluded.cancelled
RETURNING agent_id
""")


def store_report(connection: Connection, day: date) -> list[str]:
    """Compute and store the day's figures; returns the agents whose figures are new.

    Stored figures never shrink: what was purged or retried since has been counted.
    """
    return list(connection.scalars(_STORE, {"day": day, "agent_id": None}))


_LIST = text(f"""
SELECT {_COLUMNS} FROM agent_reports
WHERE day = :day AND (CAST(:agent_id AS text) IS NULL OR agent_id = :agent_id) ORDER BY agent_id
""")


def list_reports(connection: Connection, day: date, agent_id: str | None = None) -> Sequence[Row[Any]]:
    """The day's figures as they were stored, an agent a row, as `compute_report`."""
    return connection.execute(_LIST, {"day": day, "agent_id": agent_id}).all()


_DAYS = text("SELECT (now() AT TIME ZONE 'UTC')::date AS today, (SELECT max(day) FROM agent_reports) AS last_reported")


def find_days(connection: Connection) -> tuple[date, date | None]:
    """Today, UTC, and the last day that is stored."""
    row = connection.execute(_DAYS).one()
    return row.today, row.last_reported
