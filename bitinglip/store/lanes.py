"""What a dispatcher keeps of the queues between its rounds. One statement a function, all under the dispatch lock.

A lane is an agent's tasks of one type for one model in one band, as one pool sees them: a row of `lanes` with the
agent's virtual time, in the order in which lanes are served. So a round reads the few lanes that are next, not all that
wait.

A lane is there while `queues` says that it has ready tasks; `queues.listed` says that lanes were made of it. One that
is closed is not served, and one that is closed to be looked at again comes back like one that is new. Rows of `queues`
are locked here only where nobody else holds them: a dispatcher never waits for a submitter, who may wait for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, text

from bitinglip.store.statement import Statement

LANES_PER_ROUND = 64
"""Of each model: as many lanes as a round looks at."""

NEW_PER_ROUND = 1_000

ELDERS_PER_ROUND = 8
"""Of each type and band: as many of the oldest tasks as a round looks at, at most."""


class LaneKey(NamedTuple):
    """What identifies a lane in its pool; the model is empty for a type that needs none."""

    type: str
    model: str
    agent_id: str
    priority: str


def _split(keys: Iterable[LaneKey]) -> dict[str, Any]:
    listed = list(keys)
    return {
        "types": [key.type for key in listed],
        "models": [key.model for key in listed],
        "agents": [key.agent_id for key in listed],
        "priorities": [key.priority for key in listed],
    }


_KEY_TYPES = {"types": "text[]", "models": "text[]", "agents": "text[]", "priorities": "task_priority[]"}

_LIST_NEW = Statement(
    "list_new_lanes",
    """
WITH new AS (
    UPDATE queues AS q SET listed = true
    FROM (
        SELECT type, model, agent_id, priority FROM queues
        WHERE has_ready AND NOT listed AND type = ANY(:kinds)
        LIMIT :batch FOR NO KEY UPDATE SKIP LOCKED
    ) AS new
    WHERE (q.type, q.model, q.agent_id, q.priority) = (new.type, new.model, new.agent_id, new.priority)
    RETURNING q.type, q.model, q.agent_id, q.priority
)
SELECT NULL AS pool, * FROM new
UNION ALL
(SELECT pool, type, model, agent_id, priority FROM lanes
 WHERE pool = ANY(:pools) AND closed = 'again' LIMIT :batch)
""",
    pools="text[]",
    kinds="text[]",
    batch="integer",
)


def list_new_lanes(
    connection: Connection, pools: Sequence[str], kinds: Sequence[str]
) -> list[tuple[str | None, LaneKey]]:
    """Queues of these types that have tasks and no lanes yet (in no pool), and lanes to be looked at again (in theirs).

    From now on the queues count as listed.
    """
    rows = _LIST_NEW.execute(connection, pools=list(pools), kinds=list(kinds), batch=NEW_PER_ROUND)
    return [(row.pool, LaneKey(row.type, row.model, row.agent_id, row.priority)) for row in rows]


_OFFERED = "coalesce(l.closed, '') = ''"
"""Of a lane that is found by its agent or key: by `closed IS NULL` the index of all open lanes would seem as good."""

_PAIRS = """
    -- The few (type, model) there are, a step of the index each; a condition on the type would make it a walk.
    (SELECT type, model FROM lanes WHERE pool = :pool AND closed IS NULL ORDER BY type, model LIMIT 1)
    UNION ALL
    SELECT next.* FROM pairs CROSS JOIN LATERAL (
        SELECT type, model FROM lanes WHERE pool = :pool AND closed IS NULL
        AND (type, model) > (pairs.type, pairs.model) ORDER BY type, model LIMIT 1
    ) AS next
"""

_ARRIVALS = Statement(
    "list_arrivals",
    f"""
WITH RECURSIVE pairs AS ({_PAIRS}), firsts AS (
    SELECT first.virtual_time
    FROM pairs CROSS JOIN unnest(enum_range(CAST(NULL AS task_priority))) AS band CROSS JOIN LATERAL (
        SELECT virtual_time FROM lanes
        WHERE pool = :pool AND closed IS NULL AND (type, model, priority) = (pairs.type, pairs.model, band)
        ORDER BY virtual_time LIMIT 1
    ) AS first
)
SELECT a.agent_id, coalesce(s.virtual_time, 0) AS virtual_time, coalesce(s.in_flight, 0) AS in_flight,
       coalesce((
           SELECT true FROM lanes AS l WHERE l.agent_id = a.agent_id AND l.pool = :pool AND {_OFFERED} LIMIT 1
       ), false) AS is_active,
       (SELECT min(virtual_time) FROM firsts) AS least,
       coalesce((SELECT virtual_time FROM pools WHERE name = :pool), 0) AS clock
FROM unnest(:agents) AS a (agent_id)
LEFT JOIN agent_shares AS s ON s.pool = :pool AND s.agent_id = a.agent_id
""",
    pool="text",
    agents="text[]",
)


def list_arrivals(connection: Connection, pool: str, agent_ids: Iterable[str]) -> Sequence[Row[Any]]:
    """Agents whose lanes are to be opened: agent_id, virtual_time when last seen, in_flight, is_active (it has open
    lanes), least (virtual time of the active agents; None: there are none), clock (of the agent served last).
    """  # noqa: D205
    return _ARRIVALS.execute(connection, pool=pool, agents=list(agent_ids)).all()


_OPEN = Statement(
    "open_lanes",
    """
WITH shares AS (
    INSERT INTO agent_shares AS s (pool, agent_id, virtual_time)
    SELECT DISTINCT :pool, agent_id, virtual_time FROM unnest(:agents, :times) AS n (agent_id, virtual_time)
    ON CONFLICT (pool, agent_id) DO UPDATE SET virtual_time = excluded.virtual_time
    WHERE s.virtual_time <> excluded.virtual_time
)
INSERT INTO lanes (pool, type, model, agent_id, priority, virtual_time)
SELECT :pool, n.* FROM unnest(:types, :models, :agents, :priorities, :times) AS n
ON CONFLICT (pool, type, model, agent_id, priority) DO UPDATE SET closed = NULL, virtual_time = excluded.virtual_time
""",
    pool="text",
    **_KEY_TYPES,
    times="float8[]",
)


def open_lanes(connection: Connection, pool: str, keys: Sequence[LaneKey], times: Mapping[str, float]) -> None:
    """Make lanes, with the virtual times of their agents."""
    _OPEN.execute(connection, pool=pool, **_split(keys), times=[times[key.agent_id] for key in keys])


_LANES = Statement(
    "list_lanes",
    f"""
WITH RECURSIVE pairs AS ({_PAIRS}), chosen AS (
    SELECT l.* FROM pairs CROSS JOIN LATERAL (
        SELECT * FROM lanes AS l
        WHERE l.pool = :pool AND closed IS NULL AND l.type = pairs.type AND l.model = pairs.model
        ORDER BY priority, virtual_time LIMIT :depth
    ) AS l
    WHERE pairs.type = ANY(:kinds)
    UNION
    SELECT l.* FROM unnest(CAST(ARRAY['high', 'medium', 'low'] AS task_priority[])) AS lower (priority)
    CROSS JOIN unnest(:kinds) AS kind
    CROSS JOIN LATERAL (
        SELECT type, coalesce(model, '') AS model, agent_id, priority FROM tasks
        -- Not `=`: else it would look promising to read all tasks in their order until enough are found.
        WHERE queue_state = 'ready' AND type = kind AND priority BETWEEN lower.priority AND lower.priority
        ORDER BY priority, seq LIMIT :elders
    ) AS elder
    CROSS JOIN LATERAL (
        SELECT * FROM lanes AS l WHERE (l.pool, l.type, l.model, l.agent_id, l.priority)
            = (:pool, elder.type, elder.model, elder.agent_id, elder.priority) AND {_OFFERED} LIMIT 1
    ) AS l
    UNION
    -- The oldest may all be of lanes that are closed: one that is not, of each band.
    SELECT l.* FROM pairs CROSS JOIN unnest(CAST(ARRAY['high', 'medium', 'low'] AS task_priority[])) AS lower (priority)
    CROSS JOIN LATERAL (
        SELECT * FROM lanes WHERE pool = :pool AND closed IS NULL AND type = pairs.type AND model = pairs.model
        AND priority = lower.priority ORDER BY virtual_time LIMIT least(:elders, 1)
    ) AS l WHERE pairs.type = ANY(:kinds)
)
SELECT c.type, c.model, c.agent_id, c.priority, c.virtual_time, coalesce(a.weight, 1) AS weight,
       extract(epoch FROM now() - c.passed_at)::float8 AS passed_seconds,
       coalesce(s.in_flight, 0) AS in_flight, coalesce(a.paused, false) AS paused,
       a.max_running, a.daily_seconds, a.daily_tokens,
       CASE WHEN a.spent_on = (now() AT TIME ZONE 'UTC')::date THEN a.spent_seconds ELSE 0 END AS spent_seconds,
       CASE WHEN a.spent_on = (now() AT TIME ZONE 'UTC')::date THEN a.spent_tokens ELSE 0 END AS spent_tokens,
       CASE WHEN a.max_running IS NOT NULL OR a.daily_seconds IS NOT NULL OR a.daily_tokens IS NOT NULL THEN (
           -- Not a join: that could begin with the shares, and read them all.
           SELECT sum((SELECT in_flight FROM agent_shares AS o WHERE o.pool = p.name AND o.agent_id = c.agent_id))
           FROM pools AS p
       ) END AS in_flight_anywhere,
       own.cost IS NOT NULL AS measured,
       coalesce(own.cost, (
           SELECT cost FROM costs AS anyone
           WHERE (anyone.pool, anyone.type, anyone.model, anyone.agent_id) = (c.pool, c.type, c.model, '')
       ), 1) AS cost,
       own.peak_seconds, own.peak_tokens
FROM chosen AS c
LEFT JOIN agents AS a ON a.id = c.agent_id
LEFT JOIN agent_shares AS s ON s.pool = c.pool AND s.agent_id = c.agent_id
LEFT JOIN costs AS own
    ON (own.pool, own.type, own.model, own.agent_id) = (c.pool, c.type, c.model, c.agent_id)
""",
    pool="text",
    kinds="text[]",
    depth="integer",
    elders="integer",
)


def list_lanes(
    connection: Connection, pool: str, kinds: Sequence[str], *, depth: int, elders: int
) -> Sequence[Row[Any]]:
    """The lanes to serve next, of each model up to `depth`: most urgent band and least virtual time first.

    Args:
        connection: Under the dispatch lock.
        pool: Whose.
        kinds: Types that its workers do.
        depth: At most `LANES_PER_ROUND`.
        elders: Also those of so many of the oldest tasks in each band, up to `ELDERS_PER_ROUND`, and the next of each.

    Returns:
        Rows of type, model, agent_id, priority, virtual_time, weight, passed_seconds, in_flight (here),
        in_flight_anywhere (where a limit needs it), paused, max_running, daily_seconds, daily_tokens, spent_seconds,
        spent_tokens, measured, cost, peak_seconds, peak_tokens.
    """
    limit = min(depth, LANES_PER_ROUND)
    old = min(elders, ELDERS_PER_ROUND)
    return _LANES.execute(connection, pool=pool, kinds=list(kinds), depth=limit, elders=old).all()


_SERVE = Statement(
    "record_grants",
    f"""
WITH pool AS (
    INSERT INTO pools AS p (name, virtual_time, grants) VALUES (:pool, :clock, :grants)
    ON CONFLICT (name) DO UPDATE SET
        virtual_time = greatest(p.virtual_time, excluded.virtual_time), grants = excluded.grants
), served AS (
    SELECT * FROM unnest(:agents, :times, :counts) AS s (agent_id, virtual_time, granted)
), shares AS (
    INSERT INTO agent_shares AS s (pool, agent_id, virtual_time, in_flight)
    SELECT :pool, agent_id, virtual_time, granted FROM served
    ON CONFLICT (pool, agent_id) DO UPDATE SET
        virtual_time = excluded.virtual_time, in_flight = s.in_flight + excluded.in_flight
)
UPDATE lanes AS l SET virtual_time = served.virtual_time FROM served
WHERE l.agent_id = served.agent_id AND l.pool = :pool AND {_OFFERED}
""",
    pool="text",
    clock="float8",
    grants="bigint",
    agents="text[]",
    times="float8[]",
    counts="integer[]",
)


def record_grants(
    connection: Connection,
    pool: str,
    *,
    clock: float,
    grants: int,
    served: Mapping[str, tuple[float, int]],
) -> None:
    """Charge what was granted.

    Args:
        connection: Under the dispatch lock.
        pool: Whose.
        clock: Virtual time of the agent served last.
        grants: The pool's count.
        served: New virtual time and number of grants, by agent.
    """
    _SERVE.execute(
        connection,
        pool=pool,
        clock=clock,
        grants=grants,
        agents=list(served),
        times=[time for time, _ in served.values()],
        counts=[count for _, count in served.values()],
    )


_FOUND_PLACE = Statement(
    "note_places",
    """
UPDATE lanes AS l SET passed_at = NULL FROM unnest(:types, :models) AS p (type, model)
WHERE l.passed_at IS NOT NULL AND (l.pool, l.type, l.model) = (:pool, p.type, p.model)
""",
    pool="text",
    types="text[]",
    models="text[]",
)


def note_places(connection: Connection, pool: str, placed: Iterable[tuple[str, str]]) -> None:
    """Say of all lanes of these types and models that they are passed over no more: their models have a place."""
    pairs = list(placed)
    _FOUND_PLACE.execute(connection, pool=pool, types=[pair[0] for pair in pairs], models=[pair[1] for pair in pairs])


_MARK = Statement(
    "mark_lanes",
    """
UPDATE lanes AS l SET closed = n.closed, passed_at = CASE WHEN n.closed IS NULL THEN coalesce(passed_at, now()) END
FROM unnest(:types, :models, :agents, :priorities, :reasons) AS n (type, model, agent_id, priority, closed)
WHERE (l.pool, l.type, l.model, l.agent_id, l.priority) = (:pool, n.type, n.model, n.agent_id, n.priority)
""",
    pool="text",
    **_KEY_TYPES,
    reasons="text[]",
)


def mark_lanes(connection: Connection, pool: str, reasons: Mapping[LaneKey, str | None]) -> None:
    """Say of lanes why they are closed; None: they were passed over, and since when."""
    _MARK.execute(connection, pool=pool, **_split(reasons), reasons=list(reasons.values()))


_EMPTIED = Statement(
    "mark_emptied",
    """
WITH emptied AS (
    UPDATE queues AS q SET has_ready = false, listed = false, emptied_at = now()
    FROM (
        SELECT type, model, agent_id, priority FROM queues
        WHERE (type, model, agent_id, priority) IN (SELECT * FROM unnest(:types, :models, :agents, :priorities))
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS l
    WHERE (q.type, q.model, q.agent_id, q.priority) = (l.type, l.model, l.agent_id, l.priority)
    AND NOT EXISTS (
        SELECT FROM tasks AS t WHERE t.queue_state = 'ready' AND t.type = l.type
        AND coalesce(t.model, '') = l.model AND t.agent_id = l.agent_id AND t.priority = l.priority
    )
    RETURNING q.type, q.model, q.agent_id, q.priority
)
DELETE FROM lanes AS l USING emptied AS e, pools AS p
WHERE (l.pool, l.type, l.model, l.agent_id, l.priority) = (p.name, e.type, e.model, e.agent_id, e.priority)
""",
    **_KEY_TYPES,
)


def mark_emptied(connection: Connection, keys: Iterable[LaneKey]) -> None:
    """Take away lanes that have no ready task left; one whose queue somebody is changing stays for now."""
    _EMPTIED.execute(connection, **_split(keys))


_REOPEN = "UPDATE lanes SET closed = 'again' WHERE closed <> 'again' AND {where}"

_REOPEN_AGENT = text(_REOPEN.format(where="agent_id = :agent_id"))
_REOPEN_UNPLACED = text(_REOPEN.format(where="closed = 'no_worker' AND pool = :pool"))
_REOPEN_NEW_DAY = text(
    _REOPEN.format(
        where="closed = 'daily_budget' AND agent_id IN ("
        "SELECT id FROM agents WHERE spent_on IS DISTINCT FROM (now() AT TIME ZONE 'UTC')::date)"
    )
)


def reopen_agent(connection: Connection, agent_id: str) -> None:
    """Have an agent's closed lanes looked at afresh: something was said of it."""
    connection.execute(_REOPEN_AGENT, {"agent_id": agent_id})


def reopen_unplaced(connection: Connection, pool: str) -> None:
    """Have those lanes looked at afresh that no worker could serve: the workers have changed."""
    connection.execute(_REOPEN_UNPLACED, {"pool": pool})


def reopen_new_day(connection: Connection) -> int:
    """Have those lanes looked at afresh whose agents had spent a former day's budget; returns how many."""
    return connection.execute(_REOPEN_NEW_DAY).rowcount


_PASS_ON = text("""
WITH old AS (
    UPDATE agent_queues SET has_ready = false, emptied_at = CASE WHEN has_ready THEN now() ELSE emptied_at END
    WHERE has_ready OR emptied_at > now() - interval '1 minute'
    RETURNING type, agent_id, priority
)
INSERT INTO queues AS q (type, model, agent_id, priority)
SELECT DISTINCT t.type, coalesce(t.model, ''), t.agent_id, t.priority FROM old JOIN tasks AS t
    ON t.queue_state = 'ready' AND (t.type, t.agent_id, t.priority) = (old.type, old.agent_id, old.priority)
ORDER BY 1, 2, 3, 4
ON CONFLICT (type, model, agent_id, priority) DO UPDATE SET has_ready = true WHERE NOT q.has_ready
""")


def pass_on_old_queues(connection: Connection) -> None:
    """Take over what processes of releases before 0.2 made ready."""
    connection.execute(_PASS_ON)
