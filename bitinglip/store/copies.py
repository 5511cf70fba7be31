"""Copies of models on nodes, and the nodes. One statement a function."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from bitinglip.store.entries import STALE_SECONDS, ModelCopy
from bitinglip.store.statement import Statement

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


_SHARERS = """
SELECT other.name FROM nodes AS own JOIN nodes AS other ON other.store_id = own.store_id WHERE own.name = :node
UNION ALL SELECT CAST(:node AS text)
"""
"""The node, and the nodes that see the same folder."""

_DELETE = text(f"DELETE FROM model_copies WHERE model = :model AND node IN ({_SHARERS})")


def delete_copy(connection: Connection, model: str, node: str) -> None:
    """A node has no copy of a model any more, nor has any that shares its folder."""
    connection.execute(_DELETE, {"model": model, "node": node})


_DELETE_ALL = text("DELETE FROM model_copies WHERE model = :model")


def delete_copies(connection: Connection, model: str) -> None:
    """No node has a copy of a model any more; whatever files there are stay."""
    connection.execute(_DELETE_ALL, {"model": model})


_DELETE_LOST = text("""
DELETE FROM model_copies AS c WHERE model = :model AND node <> :node AND NOT EXISTS (
    SELECT FROM nodes AS n WHERE n.name = c.node AND n.seen_at > now() - make_interval(secs => :alive))
RETURNING node
""")


def delete_lost_copies(connection: Connection, model: str, *, but: str) -> list[str]:
    """Forget the copies of a model on nodes that are gone; returns their names.

    Args:
        connection: In a transaction.
        model: Its name.
        but: The node that asks, and so is there.
    """
    return list(connection.scalars(_DELETE_LOST, {"model": model, "node": but, "alive": ALIVE_SECONDS}))


_OWNERS = text(f"""
SELECT DISTINCT c.model FROM model_copies AS c JOIN models AS m ON m.name = c.model
WHERE m.repo = :repo AND c.commit_hash = :commit AND c.node IN ({_SHARERS}) ORDER BY c.model
""")


def list_owners(connection: Connection, node: str, repo: str, commit: str) -> list[str]:
    """The models whose files a node's snapshot of a commit holds: a branch and a tag may name the same."""
    return list(connection.scalars(_OWNERS, {"node": node, "repo": repo, "commit": commit}))


_LEAST_USED = text("""
SELECT c.model, m.repo, c.folder, c.commit_hash, c.state, c.done_bytes, c.last_used_at, m.removing, m.pinned,
       m.total_bytes, c.state IN ('downloading', 'verifying')
       AND c.updated_at > now() - make_interval(secs => :stale) AS is_live
FROM model_copies AS c JOIN models AS m ON m.name = c.model
WHERE c.node = :node AND m.source = 'hub'
ORDER BY NOT m.removing, c.state = 'available', c.last_used_at, c.model
""")


def list_least_used(connection: Connection, node: str) -> Sequence[Row[Any]]:
    """A node's copies of models of the hub, in the order in which they may leave.

    Each has model, repo, folder, commit_hash, state, done_bytes, last_used_at, is_live (it is fetched or verified now),
    removing, pinned, and total_bytes (of the model; None: not known).
    """
    return connection.execute(_LEAST_USED, {"node": node, "stale": STALE_SECONDS}).all()


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


_STORED = Statement(
    "list_stored",
    """
SELECT node, array_agg(model) AS models FROM model_copies
WHERE model = ANY(:models) AND state = 'available' GROUP BY node
""",
    models="text[]",
)


def list_stored(connection: Connection, models: Sequence[str]) -> dict[str, frozenset[str]]:
    """Which of these models each node has proven copies of, by node."""
    return {row.node: frozenset(row.models) for row in _STORED.execute(connection, models=list(models))}


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
VALUES (:name, replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''))
-- Changed to itself, so that whoever comes second is given the first one's.
ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING secret
""")


def find_key(connection: Connection, name: str) -> str:
    """A secret that all nodes share: 64 hex digits, made when it is first asked for.

    Args:
        connection: Where.
        name: `peers`, with which nodes sign what they ask each other; `artifacts`, by which a store of artifacts knows
            whose it is.
    """
    return str(connection.scalar(_KEY, {"name": name}))
