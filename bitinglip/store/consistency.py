"""What should follow from something else and does not: drift, each kind with what finds it and what repairs it.

Each finding is one statement and so one moment: a round changes all of this in one transaction. What somebody is about
to put right (a sweep, a settling) is no drift until it is a minute old. A repair finds anew what it repairs, and
belongs under the dispatch lock.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from bitinglip.store.clauses import refund_charges, wake_queues
from bitinglip.store.queues import DEPTH, DISPATCH_LOCK, RECHECK_SECONDS

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that must hold.

    Attributes:
        code: Names what is wrong where it does not.
        meaning: Says it in words.
        find: A SELECT of what is wrong; its column `example` shows it.
        repair: What puts `drift`, the rows of `find`, right; empty where a function elsewhere does.
    """

    code: str
    meaning: str
    find: str
    repair: str


@dataclass(frozen=True, slots=True)
class Drift:
    """What was found against one rule: how often, and a few of them."""

    code: str
    meaning: str
    count: int
    examples: list[str]


_QUEUE = "type, model, agent_id, priority"
_SHOW_QUEUE = "concat_ws(' ', {0}.agent_id, {0}.type, nullif({0}.model, ''), {0}.priority)"
_LOOK_AGAIN = "UPDATE lanes SET closed = 'again' WHERE agent_id IN (SELECT {0}) AND closed IN ('{1}')"
"""What was closed because of a number that was wrong is looked at by the next round."""
_SETTLED_LONG_AGO = f"now() - interval '{RECHECK_SECONDS} s'"

_FORGOTTEN_QUEUE = Rule(
    "queue_forgotten",
    "tasks are ready and their queue does not say so: no dispatcher looks at them",
    f"""
    SELECT {_QUEUE}, {_SHOW_QUEUE.format("ready")} AS example
    FROM (SELECT DISTINCT type, coalesce(model, '') AS model, agent_id, priority FROM tasks
          WHERE queue_state = 'ready') AS ready
    LEFT JOIN queues AS q USING ({_QUEUE})
    WHERE NOT coalesce(q.has_ready, false) AND coalesce(q.emptied_at < {_SETTLED_LONG_AGO}, true)
    """,
    wake_queues("drift", "true"),
)

_EMPTY_QUEUE = Rule(
    "queue_empty",
    "a queue says that it has ready tasks, and has none",
    f"""
    SELECT {_QUEUE}, {_SHOW_QUEUE.format("q")} AS example FROM queues AS q
    WHERE has_ready AND NOT EXISTS (
        SELECT FROM tasks AS t WHERE t.queue_state = 'ready' AND t.type = q.type
        AND coalesce(t.model, '') = q.model AND t.agent_id = q.agent_id AND t.priority = q.priority
    ) AND NOT EXISTS (
        SELECT FROM tasks AS t WHERE t.agent_id = q.agent_id AND t.type = q.type
        AND coalesce(t.model, '') = q.model AND t.priority = q.priority AND t.updated_at > {_SETTLED_LONG_AGO}
    ) AND EXISTS (
        -- Looked at only by a round that has room for it, and by none while it is closed.
        SELECT FROM workers AS w
        WHERE w.state = 'ready' AND w.lease_expires_at > now() AND q.type = ANY(w.kinds) AND {DEPTH} * w.slots > (
            SELECT count(*) FROM tasks AS t WHERE t.worker_id = w.id AND t.finished_at IS NULL)
        AND NOT EXISTS (
            SELECT FROM lanes AS l WHERE l.closed IS NOT NULL AND
            (l.pool, l.type, l.model, l.agent_id, l.priority) = (w.pool, q.type, q.model, q.agent_id, q.priority))
    )
    """,
    f"""
    , emptied AS (
        UPDATE queues AS q SET has_ready = false, listed = false, emptied_at = now()
        FROM drift AS d WHERE (q.type, q.model, q.agent_id, q.priority) = (d.type, d.model, d.agent_id, d.priority)
        RETURNING q.type, q.model, q.agent_id, q.priority
    )
    DELETE FROM lanes WHERE ({_QUEUE}) IN (SELECT {_QUEUE} FROM emptied)
    """,
)

_MISSING_LANE = Rule(
    "lane_missing",
    "a queue counts as listed, and a pool that serves it has no lane of it",
    f"""
    SELECT p.name AS pool, {_QUEUE}, concat_ws(' ', p.name, {_SHOW_QUEUE.format("q")}) AS example
    FROM queues AS q JOIN pools AS p ON q.type = ANY(p.kinds)
    WHERE q.has_ready AND q.listed AND NOT EXISTS (
        SELECT FROM lanes AS l
        WHERE (l.pool, l.type, l.model, l.agent_id, l.priority) = (p.name, q.type, q.model, q.agent_id, q.priority))
    """,
    f"""
    INSERT INTO lanes (pool, {_QUEUE}, virtual_time, closed) SELECT pool, {_QUEUE}, 0, 'again' FROM drift
    ON CONFLICT DO NOTHING
    """,
)

_LEFT_LANE = Rule(
    "lane_left_over",
    "a lane is of a queue that is empty or not listed, or of a pool that does not serve it",
    f"""
    SELECT l.pool, {_QUEUE}, concat_ws(' ', l.pool, {_SHOW_QUEUE.format("l")}) AS example
    FROM lanes AS l LEFT JOIN queues AS q USING ({_QUEUE}) LEFT JOIN pools AS p ON p.name = l.pool
    WHERE NOT coalesce(q.has_ready AND q.listed AND l.type = ANY(p.kinds), false)
    """,
    f"DELETE FROM lanes WHERE (pool, {_QUEUE}) IN (SELECT pool, {_QUEUE} FROM drift)",
)

_LANE_TIME = Rule(
    "lane_time",
    "a lane has another virtual time than its agent",
    f"""
    SELECT l.pool, {_QUEUE},
           concat_ws(' ', l.pool, {_SHOW_QUEUE.format("l")}, l.virtual_time, 'for', s.virtual_time) AS example
    FROM lanes AS l LEFT JOIN agent_shares AS s USING (pool, agent_id)
    WHERE l.closed IS NULL
    AND coalesce(abs(l.virtual_time - s.virtual_time) > 1e-9 * greatest(1, abs(s.virtual_time)), true)
    """,
    # As if new: the next round gives it the agent's.
    f"UPDATE lanes SET closed = 'again' WHERE (pool, {_QUEUE}) IN (SELECT pool, {_QUEUE} FROM drift)",
)

_IN_FLIGHT = Rule(
    "in_flight",
    "an agent counts as having more or fewer tasks with workers than they hold",
    """
    SELECT pool, agent_id, coalesce(s.in_flight, 0) AS counted, coalesce(held.tasks, 0) AS tasks,
           concat_ws(' ', pool, agent_id, coalesce(s.in_flight, 0), 'for', coalesce(held.tasks, 0)) AS example
    FROM agent_shares AS s FULL JOIN (
        SELECT pool, agent_id, sum(tasks)::integer AS tasks FROM (
            SELECT w.pool, t.agent_id, 1 AS tasks FROM tasks AS t JOIN workers AS w ON w.id = t.worker_id
            WHERE t.worker_id IS NOT NULL AND t.finished_at IS NULL AND t.charged IS NOT NULL
            UNION ALL SELECT pool, agent_id, released FROM settlements
        ) AS each GROUP BY pool, agent_id
    ) AS held USING (pool, agent_id)
    WHERE coalesce(s.in_flight, 0) <> coalesce(held.tasks, 0)
    """,
    f"""
    , counted AS (
        INSERT INTO agent_shares AS s (pool, agent_id, in_flight, virtual_time)
        SELECT pool, agent_id, tasks, coalesce((SELECT virtual_time FROM pools WHERE name = pool), 0) FROM drift
        ON CONFLICT (pool, agent_id) DO UPDATE SET in_flight = excluded.in_flight
    ) {_LOOK_AGAIN.format("agent_id FROM drift", "max_running', 'daily_budget")}
    """,
)

_HELD_BY_NOBODY = Rule(
    "held_by_nobody",
    "a task is reserved for or run by a worker that has been gone for more than a minute",
    f"""
    SELECT t.id, concat_ws(' ', t.id, t.worker_id) AS example
    FROM tasks AS t LEFT JOIN workers AS w ON w.id = t.worker_id
    WHERE t.worker_id IS NOT NULL AND t.finished_at IS NULL AND coalesce(w.state = 'gone', true)
    AND coalesce(w.lease_expires_at < {_SETTLED_LONG_AGO}, true)
    """,
    # `workers.release_tasks`
    "",
)

_UNTOLD_PARENT = Rule(
    "parent_unmarked",
    "a task that others wait for does not know it, and will not tell them of its end",
    """
    SELECT DISTINCT p.id, p.id::text AS example
    FROM dependencies AS d JOIN tasks AS c ON c.id = d.child_id AND c.queue_state = 'blocked'
    JOIN tasks AS p ON p.id = d.parent_id WHERE NOT p.has_children AND p.status <> 'completed'
    """,
    "UPDATE tasks SET has_children = true WHERE id IN (SELECT id FROM drift)",
)

_BLOCKED_BY_NOTHING = Rule(
    "blocked_by_nothing",
    "a task is blocked, and all that it waited for has completed",
    """
    SELECT c.id, c.id::text AS example FROM tasks AS c
    WHERE c.queue_state = 'blocked' AND NOT EXISTS (
        SELECT FROM dependencies AS d JOIN tasks AS p ON p.id = d.parent_id
        WHERE d.child_id = c.id AND (p.has_children OR p.status <> 'completed'))
    """,
    f"""
    , freed AS (
        UPDATE tasks AS t SET
            queue_state = CAST(CASE WHEN not_before > now() THEN 'scheduled' ELSE 'ready' END AS task_queue_state),
            expires_at = greatest(now(), not_before) + make_interval(secs => ttl_seconds), updated_at = now()
        FROM drift AS d WHERE t.id = d.id AND t.queue_state = 'blocked'
        RETURNING t.type, t.model, t.agent_id, t.priority, t.queue_state
    ) {wake_queues("freed")}
    """,
)

_WITHOUT_DETAILS = Rule(
    "details_missing",
    "what a task asks for is lost: it can never be run",
    """
    SELECT t.id, t.id::text AS example FROM tasks AS t LEFT JOIN task_details AS d ON d.task_id = t.id
    WHERE d.task_id IS NULL
    """,
    f"""
    , failed AS (
        UPDATE tasks AS t SET status = 'failed', queue_state = NULL, error_code = 'details_lost', finished_at = now(),
                              updated_at = now()
        FROM (SELECT id, queue_state = 'reserved' AS was_reserved FROM tasks WHERE id IN (SELECT id FROM drift)) AS old
        WHERE t.id = old.id AND t.status = 'pending'
        RETURNING t.id, t.type, t.model, t.agent_id, t.charged, t.worker_id AS held_by, old.was_reserved
    ), refunded AS ({refund_charges("failed", "r.was_reserved")}
    )
    INSERT INTO task_details (task_id, title, payload, error)
    SELECT d.id, 'lost', '{{}}', CASE WHEN f.id IS NOT NULL THEN jsonb_build_object(
        'code', 'details_lost', 'retryable', false, 'message', 'what it asked for is lost; submit it again') END
    FROM drift AS d LEFT JOIN failed AS f USING (id)
    ON CONFLICT DO NOTHING
    """,
)

_SPENT = Rule(
    "budget_spent",
    "what counts against an agent's daily budget is not what it has used today",
    """
    SELECT a.id, seconds, tokens,
           concat_ws(' ', a.id, spent_seconds, 'for', seconds, spent_tokens, 'for', tokens) AS example
    FROM (
        SELECT id, CASE WHEN is_today THEN spent_seconds ELSE 0 END AS spent_seconds,
               CASE WHEN is_today THEN spent_tokens ELSE 0 END AS spent_tokens
        FROM agents CROSS JOIN LATERAL (
            SELECT spent_on IS NOT DISTINCT FROM (now() AT TIME ZONE 'UTC')::date AS is_today) AS day
        WHERE daily_seconds IS NOT NULL OR daily_tokens IS NOT NULL
    ) AS a CROSS JOIN LATERAL (
        SELECT coalesce(sum(u.seconds), 0) AS seconds, coalesce(sum(u.tokens), 0)::bigint AS tokens
        FROM agent_usage AS u WHERE u.agent_id = a.id AND u.minute >= date_trunc('day', now(), 'UTC')
    ) AS used
    WHERE abs(spent_seconds - seconds) > 1e-6 * greatest(1, seconds) OR spent_tokens <> tokens
    """,
    f"""
    , counted AS (
        UPDATE agents AS a SET spent_on = (now() AT TIME ZONE 'UTC')::date, spent_seconds = d.seconds,
                               spent_tokens = d.tokens
        FROM drift AS d WHERE a.id = d.id
    ) {_LOOK_AGAIN.format("id FROM drift", "daily_budget")}
    """,
)

RULES = (
    _HELD_BY_NOBODY,
    _WITHOUT_DETAILS,
    _UNTOLD_PARENT,
    _BLOCKED_BY_NOTHING,
    _FORGOTTEN_QUEUE,
    _EMPTY_QUEUE,
    _LEFT_LANE,
    _MISSING_LANE,
    _LANE_TIME,
    _IN_FLIGHT,
    _SPENT,
)
"""In the order in which they are repaired: tasks, their queues, what dispatchers make of these."""


def find_drift(connection: Connection, rule: Rule) -> Drift:
    """What is wrong by one rule. Reads whole tables."""
    sql = f"SELECT count(*) AS found, (array_agg(example))[1:{EXAMPLES}] AS examples FROM ({rule.find}) AS drift"
    row = connection.exec_driver_sql(sql).one()
    return Drift(rule.code, rule.meaning, row.found, row.examples or [])


def repair_drift(connection: Connection, rule: Rule) -> None:
    """Put right what is wrong by one rule. Under the dispatch lock."""
    connection.exec_driver_sql(f"WITH drift AS MATERIALIZED ({rule.find}) {rule.repair}")


_LOCK = text("SELECT pg_advisory_xact_lock(:key)")


def stop_dispatch(connection: Connection) -> None:
    """Keep dispatchers waiting until the transaction ends.

    Unlike `lock_dispatch` it leaves PostgreSQL every kind of plan: whole tables are read here.
    """
    connection.execute(_LOCK, {"key": DISPATCH_LOCK})
