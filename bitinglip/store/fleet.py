"""The workers as a submitter sees them: what could be done here at all. One statement."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

REMEMBERED_SECONDS = 600
"""How long a worker that left still counts: longer than a machine takes to start again."""

_FLEET = text("""
SELECT w.kinds, w.models, w.allowed_models, w.allowed_agents,
       w.memory_limit_bytes * greatest(1, jsonb_array_length(w.gpus)) AS memory_bytes,
       w.state <> 'gone' AND w.lease_expires_at > now() AS is_alive
FROM workers AS w
WHERE w.state <> 'pulling' AND (
    w.state <> 'gone' AND w.lease_expires_at > now()
    OR w.last_seen_at > now() - make_interval(secs => :seconds)
    -- A successor of the same name says what it does now.
    AND NOT EXISTS (SELECT FROM workers AS s WHERE s.name = w.name AND s.id <> w.id AND s.state <> 'gone'))
""")


def list_fleet(connection: Connection) -> Sequence[Row[Any]]:
    """Workers that do tasks, or did until a short while ago.

    Each has kinds, models (that it holds), allowed_models and allowed_agents (None: all), memory_bytes (over all its
    GPUs; None: no limit known) and is_alive.
    """
    return connection.execute(_FLEET, {"seconds": REMEMBERED_SECONDS}).all()
