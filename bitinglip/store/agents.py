"""What is said of an agent: its share of the workers, and what it may ask for. One statement a function."""

from typing import Any

from sqlalchemy import Connection, Row, text

_GET = text("SELECT id, weight, max_priority, max_queued, created_at FROM agents WHERE id = :id")


def get_agent(connection: Connection, agent_id: str) -> Row[Any] | None:
    """An agent: id, weight, max_priority, max_queued, created_at; a limit is None where the settings decide."""
    return connection.execute(_GET, {"id": agent_id}).one_or_none()


_SET = text("""
INSERT INTO agents AS a (id, weight, max_priority, max_queued)
VALUES (:id, coalesce(:weight, 1), CAST(:max_priority AS task_priority), :max_queued)
ON CONFLICT (id) DO UPDATE SET
    weight = coalesce(:weight, a.weight),
    max_priority = CASE WHEN :sets_max_priority THEN excluded.max_priority ELSE a.max_priority END,
    max_queued = CASE WHEN :sets_max_queued THEN excluded.max_queued ELSE a.max_queued END
RETURNING id, weight, max_priority, max_queued, created_at
""")


def set_agent(connection: Connection, agent_id: str, **changes: Any) -> Row[Any]:
    """Change an agent, or make one that has not asked for anything yet; returns it as `get_agent` does.

    Args:
        connection: In a transaction.
        agent_id: The agent.
        **changes: weight, max_priority, max_queued; a limit of None is none of its own.
    """
    values = {name: changes.get(name) for name in ("weight", "max_priority", "max_queued")}
    given = {f"sets_{name}": name in changes for name in ("max_priority", "max_queued")}
    return connection.execute(_SET, {"id": agent_id, **values, **given}).one()
