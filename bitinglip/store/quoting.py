"""What was foretold of waits, and what became of it. One statement a function."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

_SAMPLE = text("""
SELECT t.id, t.seq, t.type, coalesce(t.model, '') AS model, t.agent_id, t.priority
FROM (SELECT DISTINCT unnest(kinds) AS kind FROM pools) AS served
CROSS JOIN unnest(enum_range(NULL::task_priority)) AS band (priority)
CROSS JOIN LATERAL (
    -- The newest, from the end of the index of the oldest. An equal priority would let the order by it be left out, and
    -- the index of all tasks be read.
    SELECT * FROM tasks WHERE queue_state = 'ready' AND type = kind
    AND tasks.priority >= band.priority AND tasks.priority <= band.priority
    ORDER BY tasks.priority DESC, seq DESC LIMIT 1
) AS t
WHERE NOT EXISTS (SELECT FROM quotes WHERE made_at > now() - make_interval(secs => :every))
AND t.created_at > now() - make_interval(secs => :every) AND t.attempt = 1
AND NOT EXISTS (SELECT FROM quotes WHERE task_id = t.id)
ORDER BY random() LIMIT :most
""")


def list_unquoted(connection: Connection, *, every_seconds: float, most: int) -> Sequence[Row[Any]]:
    """Some of the newest ready tasks of the types and bands, if nothing was quoted for so long and they are as new.

    Returns:
        Rows of id, seq, type, model, agent_id, priority.
    """
    return connection.execute(_SAMPLE, {"every": every_seconds, "most": most}).all()


_RECORD = text("""
INSERT INTO quotes (task_id, wait_p50_seconds, wait_p90_seconds, engine_seconds)
SELECT id, :p50, :p90, :engine_seconds FROM tasks WHERE id = :id AND started_at IS NULL
ON CONFLICT DO NOTHING
""")


def record_quote(connection: Connection, task_id: uuid.UUID, *, p50: float, p90: float, engine_seconds: float) -> None:
    """Note what is foretold of a task that has not begun."""
    connection.execute(_RECORD, {"id": task_id, "p50": p50, "p90": p90, "engine_seconds": engine_seconds})


_COMPARE = text("""
WITH truth AS (
    SELECT q.*, started - q.made_at IS NOT NULL AS has_started,
           -- One that still waits has at least waited so long.
           extract(epoch FROM coalesce(started, now()) - q.made_at)::float8 AS waited,
           CASE WHEN t.status = 'completed' THEN (d.usage ->> 'engine_seconds')::float8 END AS engine_truth
    FROM quotes AS q
    -- Not joins: those would read every task where PostgreSQL knows nothing of the quotes yet.
    CROSS JOIN LATERAL (SELECT * FROM tasks WHERE id = q.task_id LIMIT 1) AS t
    CROSS JOIN LATERAL (SELECT usage FROM task_details WHERE task_id = q.task_id LIMIT 1) AS d
    CROSS JOIN LATERAL (
        SELECT coalesce((SELECT min(a.started_at) FROM attempts AS a WHERE a.task_id = t.id), t.started_at) AS started
        OFFSET 0
    ) AS first
    WHERE q.made_at > now() - interval '1 day' AND (started IS NOT NULL OR t.status = 'pending')
)
SELECT count(*) AS quotes,
       count(*) FILTER (WHERE has_started) AS started,
       avg((waited <= wait_p50_seconds)::int) FILTER (WHERE has_started OR waited > wait_p50_seconds) AS within_p50,
       avg((waited <= wait_p90_seconds)::int) FILTER (WHERE has_started OR waited > wait_p90_seconds) AS within_p90,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(waited - wait_p50_seconds)) FILTER (WHERE has_started)
           AS median_error_seconds,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY engine_seconds / engine_truth) FILTER (WHERE engine_truth > 0)
           AS median_engine_ratio
FROM truth
""")


def compare_quotes(connection: Connection) -> Mapping[str, Any]:
    """The last day's quotes against the truth.

    Returns:
        quotes and started (how many), within_p50 and within_p90 (shares of those of which it is known, that began in
        time), median_error_seconds (of the wait, against P50), median_engine_ratio (foretold over used).
    """
    row = connection.execute(_COMPARE).one()._mapping
    return {name: value if value is None or isinstance(value, int) else float(value) for name, value in row.items()}


_FORGET = (
    text("DELETE FROM quotes WHERE made_at < now() - make_interval(days => :days)"),
    text("DELETE FROM agent_usage WHERE minute < now() - make_interval(days => :days)"),
)


def forget_measures(connection: Connection, *, days: int) -> None:
    """Delete quotes and the use of each minute that are so old."""
    for statement in _FORGET:
        connection.execute(statement, {"days": days})
