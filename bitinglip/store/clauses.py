"""Clauses that several statements share: what makes a queue known to dispatchers, and what gives a charge back."""


def wake_queues(rows: str, where: str = "queue_state = 'ready'") -> str:
    """An INSERT that says of the queues of ready tasks that they have some.

    Rows are made in one order everywhere, or two statements would wait for each other.

    Args:
        rows: A name in scope, with columns type, model, agent_id, priority and what `where` names.
        where: Which of them are ready.
    """
    return f"""
    INSERT INTO queues AS q (type, model, agent_id, priority)
    SELECT DISTINCT type, coalesce(model, ''), agent_id, priority FROM {rows} WHERE {where}
    ORDER BY 1, 2, 3, 4
    ON CONFLICT (type, model, agent_id, priority) DO UPDATE SET has_ready = true WHERE NOT q.has_ready
    """


def refund_charges(rows: str, where: str = "true") -> str:
    """An INSERT that gives back what agents were charged for tasks that their workers no longer hold.

    Args:
        rows: A name in scope, with columns held_by (the worker), charged, type, model, agent_id and what `where` names.
        where: Which of them were held.
    """
    return f"""
    INSERT INTO settlements (pool, type, model, agent_id, released, charged)
    SELECT w.pool, r.type, coalesce(r.model, ''), r.agent_id, count(*), sum(r.charged)
    FROM {rows} AS r JOIN workers AS w ON w.id = r.held_by
    WHERE r.charged IS NOT NULL AND ({where})
    GROUP BY 1, 2, 3, 4
    """
