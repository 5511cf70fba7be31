"""Copies of models on nodes, and the nodes. One statement a function."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from bitinglip.store.entries import ModelCopy

ALIVE_SECONDS = 30
"""A node that has not said so for as long counts as gone."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that keeps models.

    Attributes:
        store_id: Of the folder that holds them; nodes with the same one share their files.
        peer_url: Where others take models from it; None: it serves none.
        disk_bytes: Of the file system.
        free_bytes: Of these.
        budget_bytes: What its models may take together; None: whatever is free.
    """

    name: str
    store_id: uuid.UUID
    store_folder: str
    peer_url: str | None
    disk_bytes: int
    free_bytes: int
    budget_bytes: int | None = None


_NOTE_COPY = text("""
INSERT INTO model_copies AS c (model, node, state, folder, commit_hash, done_bytes, verified_at)
VALUES (:model, :node, :state, :folder, :commit, :done_bytes, CASE WHEN :state = 'available' THEN now() END)
ON CONFLICT (model, node) DO UPDATE SET
    state = excluded.state, folder = excluded.folder, commit_hash = excluded.commit_hash,
    done_bytes = excluded.done_bytes, verified_at = coalesce(excluded.verified_at, c.verified_at), updated_at = now()
""")


def note_copy(connection: Connection, copy: ModelCopy) -> None:
    """Say where a node's copy of a registered model stands; one that becomes available counts as proven now."""
    values = {name: getattr(copy, name) for name in ("model", "node", "state", "folder", "commit", "done_bytes")}
    connection.execute(_NOTE_COPY, values)


_USE = text("""
WITH used AS (
    UPDATE model_copies SET last_used_at = now() WHERE node = :node AND model = ANY(:models) RETURNING model
)
UPDATE models SET last_used_at = now() WHERE name IN (SELECT model FROM used)
""")


def use_copies(connection: Connection, node: str, models: Sequence[str]) -> None:
    """Say that a node uses these models now."""
    connection.execute(_USE, {"node": node, "models": list(models)})


_DELETE = text("DELETE FROM model_copies WHERE model = :model AND node = :node")


def delete_copy(connection: Connection, model: str, node: str) -> None:
    """A node has no copy of a model any more."""
    connection.execute(_DELETE, {"model": model, "node": node})


_LEAST_USED = text("""
SELECT c.model, c.folder, c.commit_hash, c.state, m.removing, m.pinned, m.total_bytes
FROM model_copies AS c JOIN models AS m ON m.name = c.model
WHERE c.node = :node AND m.source = 'hub'
ORDER BY NOT m.removing, c.state = 'available', c.last_used_at, c.model
""")


def list_least_used(connection: Connection, node: str) -> Sequence[Row[Any]]:
    """A node's copies of models of the hub, in the order in which they may leave.

    Each has model, folder, commit_hash, state, removing, pinned, and total_bytes (of the model; None: not known).
    """
    return connection.execute(_LEAST_USED, {"node": node}).all()


_PEERS = text("""
SELECT n.name, n.peer_url, n.store_id, c.folder
FROM model_copies AS c JOIN nodes AS n ON n.name = c.node
WHERE c.model = :model AND c.commit_hash = :commit AND c.state = 'available' AND c.node <> :node
AND n.seen_at > now() - make_interval(secs => :alive)
ORDER BY n.name
""")


def list_peers(connection: Connection, model: str, commit: str, node: str) -> Sequence[Row[Any]]:
    """The other nodes that have a proven copy of a model at a commit: name, peer_url, store_id, folder."""
    values = {"model": model, "commit": commit, "node": node, "alive": ALIVE_SECONDS}
    return connection.execute(_PEERS, values).all()


_NOTE_NODE = text("""
INSERT INTO nodes (name, store_id, store_folder, peer_url, disk_bytes, free_bytes, budget_bytes)
VALUES (:name, :store_id, :store_folder, :peer_url, :disk_bytes, :free_bytes, :budget_bytes)
ON CONFLICT (name) DO UPDATE SET
    store_id = excluded.store_id, store_folder = excluded.store_folder, peer_url = excluded.peer_url,
    disk_bytes = excluded.disk_bytes, free_bytes = excluded.free_bytes, budget_bytes = excluded.budget_bytes,
    seen_at = now()
""")


def note_node(connection: Connection, node: Node) -> None:
    """Say that a node is there."""
    connection.execute(_NOTE_NODE, asdict(node))


_NODES = text("""
SELECT name, store_id, store_folder, peer_url, disk_bytes, free_bytes, budget_bytes,
       seen_at > now() - make_interval(secs => :alive) AS is_alive
FROM nodes ORDER BY name
""")


def list_nodes(connection: Connection) -> Sequence[Row[Any]]:
    """Every node: the fields of `Node`, and is_alive."""
    return connection.execute(_NODES, {"alive": ALIVE_SECONDS}).all()


_KEY = text("""
INSERT INTO cluster_keys (name, secret)
VALUES ('peers', replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''))
-- Changed to itself, so that whoever comes second is given the first one's.
ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING secret
""")


def find_peer_key(connection: Connection) -> str:
    """The secret with which nodes sign what they ask each other: 64 hex digits, made when it is first asked for."""
    return str(connection.scalar(_KEY))
