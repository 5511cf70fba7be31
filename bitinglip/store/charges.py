"""Charges are settled: what agents were charged for tasks that have ended becomes what these have cost.

Invariant: exactly once. Whatever takes a task from its worker (`tasks`, `workers`) records in the same statement what
is to be settled, and this takes the record away in the transaction that applies it, under the dispatch lock.
"""

from sqlalchemy import Connection

from bitinglip.store.statement import Statement

MEMORY = 0.9
"""Weight that a mean keeps with each new measurement: about the last ten count."""


def _drop_dust(number: str) -> str:
    """A number, or 0 if it is next to nothing: what shrinks for ever comes to what PostgreSQL refuses to multiply."""
    return f"CASE WHEN abs({number}) < 1e-9 THEN 0 ELSE {number} END"


def _mix(mean: str) -> str:
    """A mean with as many new measurements as there are samples."""
    new, old = f"excluded.{mean}", _drop_dust(f"(c.{mean} - excluded.{mean})")
    return _drop_dust(f"({new} + power(:memory, least(excluded.samples, 1000)) * {old})")


_SETTLE = Statement(
    "settle_charges",
    f"""
WITH taken AS MATERIALIZED (
    -- Through the index: the table is full of rows that are gone.
    DELETE FROM settlements WHERE id > 0 RETURNING *
), by_agent AS MATERIALIZED (
    SELECT t.pool, t.agent_id, sum(released) AS released, sum(cost - charged) / coalesce(min(a.weight), 1) AS change,
           sum(cost) AS cost, sum(seconds) AS seconds, sum(tokens) AS tokens, sum(measured) AS tasks
    FROM taken AS t LEFT JOIN agents AS a ON a.id = t.agent_id GROUP BY t.pool, t.agent_id
), shares AS (
    UPDATE agent_shares AS s SET virtual_time = s.virtual_time + b.change, in_flight = s.in_flight - b.released
    FROM by_agent AS b WHERE s.pool = b.pool AND s.agent_id = b.agent_id
), open_lanes AS (
    UPDATE lanes AS l SET virtual_time = l.virtual_time + b.change
    FROM by_agent AS b
    -- Not plain `closed`: the indexes of all open or closed lanes would seem as good as that of the agent's.
    WHERE l.agent_id = b.agent_id AND l.pool = b.pool AND coalesce(l.closed, '') = '' AND b.change <> 0
), reopened AS (
    UPDATE lanes AS l SET closed = 'again' FROM (SELECT DISTINCT agent_id FROM by_agent) AS b
    WHERE l.agent_id = b.agent_id AND coalesce(l.closed, '') IN ('max_running', 'daily_budget')
), means AS (
    INSERT INTO costs AS c (pool, type, model, agent_id, samples, cost, running_seconds, peak_seconds, peak_tokens)
    SELECT pool, type, model, coalesce(agent_id, ''), sum(measured), sum(measured_cost) / sum(measured),
           sum(running_seconds) / sum(measured), max(peak_seconds), max(peak_tokens)
    FROM taken GROUP BY GROUPING SETS ((pool, type, model, agent_id), (pool, type, model))
    HAVING sum(measured) > 0
    ON CONFLICT (pool, type, model, agent_id) DO UPDATE SET
        samples = c.samples + excluded.samples,
        cost = {_mix("cost")},
        running_seconds = {_mix("running_seconds")},
        -- A peak is forgotten slowly: a budget is reserved by it.
        peak_seconds = greatest(excluded.peak_seconds, 0.99 * {_drop_dust("c.peak_seconds")}),
        peak_tokens = greatest(excluded.peak_tokens, 0.99 * {_drop_dust("c.peak_tokens")}),
        updated_at = now()
), used AS (
    INSERT INTO agent_usage AS u (minute, pool, agent_id, tasks, cost, seconds, tokens)
    SELECT date_trunc('minute', now()), pool, agent_id, tasks, cost, seconds, tokens FROM by_agent
    WHERE cost > 0 OR seconds > 0 OR tasks > 0
    ON CONFLICT (minute, pool, agent_id) DO UPDATE SET tasks = u.tasks + excluded.tasks,
        cost = u.cost + excluded.cost, seconds = u.seconds + excluded.seconds, tokens = u.tokens + excluded.tokens
), spent AS (
    UPDATE agents AS a SET
        spent_on = today,
        spent_seconds = b.seconds + CASE WHEN a.spent_on = today THEN a.spent_seconds ELSE 0 END,
        spent_tokens = b.tokens + CASE WHEN a.spent_on = today THEN a.spent_tokens ELSE 0 END
    FROM (SELECT agent_id, sum(seconds) AS seconds, sum(tokens) AS tokens FROM by_agent GROUP BY agent_id) AS b
    CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS calendar
    WHERE a.id = b.agent_id AND (a.daily_seconds IS NOT NULL OR a.daily_tokens IS NOT NULL)
)
SELECT count(*) FROM taken
""",
    memory="float8",
)


def settle_charges(connection: Connection, *, before: str = "") -> int:
    """Apply what is to be settled and forget it; returns how many records there were. Under the dispatch lock.

    Args:
        connection: Where.
        before: A statement to run first, in the same round trip: the one that takes the lock.
    """
    return int(_SETTLE.execute(connection, before=before, memory=MEMORY).scalar_one())
