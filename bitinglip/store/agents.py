"""What is said of an agent: its share of the workers, and what it may ask for. One statement a function."""

from typing import Any

from sqlalchemy import Connection, Row, text

_FIELDS = "id, weight, max_priority, max_queued, max_running, daily_seconds, daily_tokens, paused, created_at"
_LIMITS = ("max_priority", "max_queued", "max_running", "daily_seconds", "daily_tokens")

_GET = text(f"SELECT {_FIELDS} FROM agents WHERE id = :id")


def get_agent(connection: Connection, agent_id: str) -> Row[Any] | None:
    """An agent: id, weight, its limits, paused, created_at; a limit is None where the settings decide, or nothing."""
    return connection.execute(_GET, {"id": agent_id}).one_or_none()


_SET = text(f"""
INSERT INTO agents AS a (id, weight, max_priority, max_queued, max_running, daily_seconds, daily_tokens, paused)
VALUES (:id, coalesce(:weight, 1), CAST(:max_priority AS task_priority), :max_queued, :max_running, :daily_seconds,
        :daily_tokens, coalesce(:paused, false))
ON CONFLICT (id) DO UPDATE SET
    weight = coalesce(:weight, a.weight),
    paused = coalesce(:paused, a.paused),
    {", ".join(f"{n} = CASE WHEN :sets_{n} THEN excluded.{n} ELSE a.{n} END" for n in _LIMITS)}
RETURNING {_FIELDS}
""")


def set_agent(connection: Connection, agent_id: str, **changes: Any) -> Row[Any]:
    """Change an agent, or make one that has not asked for anything yet; returns it as `get_agent` does.

    Args:
        connection: In a transaction.
        agent_id: The agent.
        **changes: weight, paused, and the limits: max_priority, max_queued, max_running, daily_seconds, daily_tokens; a
            limit of None is none of its own.
    """
    values = {name: changes.get(name) for name in ("weight", "paused", *_LIMITS)}
    given = {f"sets_{name}": name in changes for name in _LIMITS}
    return connection.execute(_SET, {"id": agent_id, **values, **given}).one()


_IN_FLIGHT = text("""
SELECT count(*) FROM tasks AS t JOIN workers AS w ON w.id = t.worker_id AND w.state <> 'pulling'
WHERE t.agent_id = :id AND t.worker_id IS NOT NULL AND t.finished_at IS NULL
""")


def count_in_flight(connection: Connection, agent_id: str) -> int:
    """Tasks of an agent that workers run or have been given; not those that it took itself."""
    return connection.scalar(_IN_FLIGHT, {"id": agent_id}) or 0


_HELD = """
    SELECT pool, count(*) FILTER (WHERE released IS NULL) + coalesce(sum(released), 0) AS tasks, sum(charged) AS charged
    FROM (
        SELECT w.pool, NULL AS released, t.charged FROM tasks AS t JOIN workers AS w ON w.id = t.worker_id
        WHERE t.agent_id = :id AND t.worker_id IS NOT NULL AND t.finished_at IS NULL AND t.charged IS NOT NULL
        UNION ALL SELECT pool, released, charged FROM settlements WHERE agent_id = :id
    ) AS each GROUP BY pool
"""
"""By pool, what an agent was charged for and what is not settled yet."""

_RECOUNT = text(f"""
WITH held AS ({_HELD})
UPDATE agent_shares AS s SET in_flight = coalesce((SELECT tasks FROM held WHERE held.pool = s.pool), 0)
WHERE s.agent_id = :id
""")


def recount_in_flight(connection: Connection, agent_id: str) -> None:
    """Count anew what an agent has in flight: processes of releases before 0.2 end tasks and count nothing down.

    Only under the dispatch lock.
    """
    connection.execute(_RECOUNT, {"id": agent_id})


_REWEIGH = text(f"""
WITH held AS ({_HELD}), stands AS (
    SELECT s.pool, least(1, a.weight / :weight) AS shrinks, coalesce(held.charged, 0) AS charged,
           s.virtual_time - coalesce(held.charged, 0) / a.weight AS settled,
           (SELECT min(l.virtual_time) FROM lanes AS l
            WHERE l.pool = s.pool AND l.closed IS NULL AND l.agent_id <> :id) AS least
    FROM agents AS a JOIN agent_shares AS s ON s.agent_id = a.id LEFT JOIN held ON held.pool = s.pool
    WHERE a.id = :id AND a.weight <> :weight
), moved AS (
    UPDATE agent_shares AS s SET virtual_time = charged / :weight
        + settled - (1 - shrinks) * greatest(0, settled - coalesce(least, settled))
    FROM stands WHERE s.pool = stands.pool AND s.agent_id = :id
    RETURNING s.pool, s.virtual_time
)
UPDATE lanes AS l SET virtual_time = moved.virtual_time FROM moved
WHERE l.pool = moved.pool AND l.agent_id = :id AND l.closed IS NULL
""")


def reweigh_agent(connection: Connection, agent_id: str, weight: float) -> None:
    """Before an agent is given another weight: have it stand where it would with that one.

    What is in flight counts by the new weight, by which it will be settled: else a smaller one would make a fortune of
    a refund. What it is ahead of the others shrinks with a greater one: else it would wait for hours until they have
    what it was charged before.

    Only under the dispatch lock.
    """
    connection.execute(_REWEIGH, {"id": agent_id, "weight": weight})


_COUNT_SPENT = text("""
UPDATE agents AS a SET spent_on = (now() AT TIME ZONE 'UTC')::date, spent_seconds = today.seconds,
                       spent_tokens = today.tokens
FROM (
    SELECT coalesce(sum(seconds), 0) AS seconds, coalesce(sum(tokens), 0)::bigint AS tokens
    FROM agent_usage WHERE agent_id = :id AND minute >= date_trunc('day', now(), 'UTC')
) AS today
WHERE a.id = :id
RETURNING a.spent_seconds, a.spent_tokens
""")


def count_spent(connection: Connection, agent_id: str) -> Row[Any]:
    """Record what an agent has used since midnight UTC, and return it: spent_seconds, spent_tokens.

    Only under the dispatch lock: settling adds to it.
    """
    return connection.execute(_COUNT_SPENT, {"id": agent_id}).one()


_CLOSE_LANES = text("UPDATE lanes SET closed = 'paused' WHERE agent_id = :id AND closed IS DISTINCT FROM 'paused'")


def close_lanes(connection: Connection, agent_id: str) -> None:
    """Offer nothing of a paused agent any more. Only under the dispatch lock."""
    connection.execute(_CLOSE_LANES, {"id": agent_id})
