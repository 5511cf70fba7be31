"""The workers and the models as a submitter sees them: what could be done here at all. One statement a function."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from bitinglip.store.entries import STALE_SECONDS

REMEMBERED_SECONDS = 600
"""How long a worker that left still counts: longer than a machine takes to start again."""

_FLEET = text("""
SELECT w.pool, w.kinds, w.models, w.allowed_models, w.allowed_agents, w.pulls,
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

    Each has pool, kinds, models (that it holds), allowed_models and allowed_agents (None: all), pulls (patterns of
    models that may be fetched for it), memory_bytes (over all its GPUs; None: no limit known) and is_alive.
    """
    return connection.execute(_FLEET, {"seconds": REMEMBERED_SECONDS}).all()


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """Where a registered model of the hub stands, for whoever would submit a task for it.

    Attributes:
        name: As it is registered.
        is_stored: Whether a node has a proven copy, and it is not being removed.
        is_coming: Whether a node fetches or verifies it now, by a task or without.
        download_id: The task that fetches it now, or will; None: there is none.
        context_tokens: Prompt and answer together; None: not known.
        error: Why it could not be fetched last.
    """

    name: str
    is_stored: bool
    is_coming: bool
    download_id: uuid.UUID | None
    context_tokens: int | None
    error: str | None


_PLACES = text("""
SELECT m.name, NOT m.removing AND EXISTS (
           SELECT FROM model_copies AS c WHERE c.model = m.name AND c.state = 'available') AS is_stored,
       -- Whoever begins to fetch it forgets the error of whoever did last.
       m.error IS NULL AND EXISTS (
           SELECT FROM model_copies AS c WHERE c.model = m.name AND c.state IN ('downloading', 'verifying')
           AND c.updated_at > now() - make_interval(secs => :stale)) AS is_coming,
       t.id AS download_id, m.context_tokens, m.error ->> 'message' AS error
FROM models AS m LEFT JOIN tasks AS t
    ON t.id = m.download_task_id AND t.finished_at IS NULL AND t.cancel_requested_at IS NULL
WHERE m.source = 'hub' AND (CAST(:names AS text[]) IS NULL OR m.name = ANY(CAST(:names AS text[])))
""")


def list_places(connection: Connection, names: Iterable[str] | None = None) -> dict[str, ModelPlace]:
    """The registered models of the hub, those of these names or all, by name."""
    values = {"names": None if names is None else list(names), "stale": STALE_SECONDS}
    return {row.name: ModelPlace(*row) for row in connection.execute(_PLACES, values)}
