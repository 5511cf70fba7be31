"""Registered models: what they are, and where they stand. One statement a function.

Invariant: a status is nowhere stored. It follows from the copies, from the download task and from `removing`, so that
whoever is killed leaves no model that says `downloading` for ever.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from bitinglip.domain.models import CopyState, Manifest, ModelSource, ModelStatus

STALE_SECONDS = 60
"""Whoever downloads or verifies without a task says so at least as often."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What is registered of a model.

    Attributes:
        name: As tasks name it: `organisation/name`, the same with `@revision`, a folder, or a bundled one.
        type: The kind of task that it is for; None: not known before its files are there.
        repo: On the hub.
        revision: As asked for; None: main.
        manifest: None: not known yet.
        parameters: How many.
        dtype: Of the most of its weights, as safetensors writes it: `BF16`.
        kv_bytes_per_token: What keys and values of one token take; None: it has none, or its config does not say.
    """

    name: str
    source: ModelSource
    type: str | None = None
    repo: str | None = None
    revision: str | None = None
    manifest: Manifest | None = None
    weight_bytes: int | None = None
    parameters: int | None = None
    dtype: str | None = None
    architecture: str | None = None
    context_tokens: int | None = None
    kv_bytes_per_token: int | None = None
    licence: str | None = None
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ModelCopy:
    """One node's copy of a model.

    Attributes:
        folder: Where its files are on that node, by their paths.
        commit: What it is a copy of.
        done_bytes: That are there.
        verified_at: When its bytes were last proven.
    """

    model: str
    node: str
    state: CopyState
    folder: str
    commit: str
    done_bytes: int = 0
    verified_at: datetime | None = None
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A registered model, with its copies.

    Attributes:
        held_bytes: The most that it took on a device once it was loaded; None: nobody has loaded it.
        pinned: Never removed to make room.
        download_task_id: The task that fetches it, or did.
        error: Why it could not be fetched last: code, message, retryable.
        last_used_at: By a task, on any node.
    """

    record: ModelRecord
    status: ModelStatus
    copies: tuple[ModelCopy, ...] = ()
    held_bytes: int | None = None
    pinned: bool = False
    download_task_id: uuid.UUID | None = None
    error: Mapping[str, Any] | None = None
    registered_at: datetime | None = None
    last_used_at: datetime | None = None

    @property
    def name(self) -> str:
        """As tasks name it."""
        return self.record.name

    def find_copy(self, node: str) -> ModelCopy | None:
        """A node's copy."""
        return next((copy for copy in self.copies if copy.node == node), None)


_FIELDS = """name, source, type, repo, revision, commit_hash, files, total_bytes, weight_bytes, parameters, dtype,
    architecture, context_tokens, kv_bytes_per_token, licence, tags"""

_REGISTER = text(f"""
INSERT INTO models AS m ({_FIELDS}, registered_at)
SELECT {_FIELDS}, now() FROM jsonb_to_record(CAST(:record AS jsonb)) AS r (
    name text, source text, type text, repo text, revision text, commit_hash text, files jsonb, total_bytes bigint,
    weight_bytes bigint, parameters bigint, dtype text, architecture text, context_tokens integer,
    kv_bytes_per_token bigint, licence text, tags text[])
ON CONFLICT (name) DO UPDATE SET
    source = excluded.source, type = excluded.type, repo = excluded.repo, revision = excluded.revision,
    commit_hash = excluded.commit_hash, files = excluded.files, total_bytes = excluded.total_bytes,
    weight_bytes = coalesce(excluded.weight_bytes, m.weight_bytes), parameters = excluded.parameters,
    dtype = excluded.dtype, architecture = excluded.architecture, context_tokens = excluded.context_tokens,
    kv_bytes_per_token = excluded.kv_bytes_per_token, licence = excluded.licence, tags = excluded.tags,
    removing = false, registered_at = now(), updated_at = now()
WHERE m.source IS NULL
RETURNING name
""")


def insert_entry(connection: Connection, record: ModelRecord) -> bool:
    """Register a model; False if one of that name is registered already, and nothing was changed."""
    return connection.scalar(_REGISTER, {"record": json.dumps(_to_row(record))}) is not None


_DESCRIBE = text("""
UPDATE models AS m SET
    type = coalesce(r.type, m.type), commit_hash = coalesce(r.commit_hash, m.commit_hash),
    files = coalesce(r.files, m.files), total_bytes = coalesce(r.total_bytes, m.total_bytes),
    weight_bytes = coalesce(r.weight_bytes, m.weight_bytes), parameters = coalesce(r.parameters, m.parameters),
    dtype = coalesce(r.dtype, m.dtype), architecture = coalesce(r.architecture, m.architecture),
    context_tokens = coalesce(r.context_tokens, m.context_tokens),
    kv_bytes_per_token = coalesce(r.kv_bytes_per_token, m.kv_bytes_per_token),
    licence = coalesce(r.licence, m.licence),
    tags = CASE WHEN r.tags = '{}' THEN m.tags ELSE r.tags END, error = NULL, updated_at = now()
FROM jsonb_to_record(CAST(:record AS jsonb)) AS r (
    name text, type text, commit_hash text, files jsonb, total_bytes bigint, weight_bytes bigint, parameters bigint,
    dtype text, architecture text, context_tokens integer, kv_bytes_per_token bigint, licence text, tags text[])
WHERE m.name = r.name AND m.source IS NOT NULL
""")


def describe_entry(connection: Connection, record: ModelRecord) -> bool:
    """Add to a registered model what has become known of it, and forget its error; False if it is not registered."""
    return connection.execute(_DESCRIBE, {"record": json.dumps(_to_row(record))}).rowcount > 0


_ENTRIES = text("""
SELECT m.name, m.source, m.type, m.repo, m.revision, m.commit_hash, m.files, m.weight_bytes, m.parameters, m.dtype,
       m.architecture, m.context_tokens, m.kv_bytes_per_token, m.licence, m.tags, m.held_bytes, m.pinned,
       m.download_task_id, m.error, m.registered_at, m.last_used_at, coalesce(c.copies, '[]') AS copies,
       CASE WHEN m.removing THEN 'removing'
            WHEN c.available THEN 'available'
            WHEN t.status = 'in_progress' THEN CASE WHEN c.verifying THEN 'verifying' ELSE 'downloading' END
            WHEN t.status = 'pending' THEN 'queued'
            WHEN m.error IS NOT NULL THEN 'failed'
            WHEN c.verifying THEN 'verifying'
            WHEN c.downloading THEN 'downloading'
            ELSE 'failed' END AS status
FROM models AS m LEFT JOIN tasks AS t ON t.id = m.download_task_id
LEFT JOIN LATERAL (
    SELECT jsonb_agg(to_jsonb(copy) ORDER BY node) AS copies, bool_or(state = 'available') AS available,
           bool_or(state = 'verifying' AND updated_at > now() - make_interval(secs => :stale)) AS verifying,
           bool_or(state = 'downloading' AND updated_at > now() - make_interval(secs => :stale)) AS downloading
    FROM model_copies AS copy WHERE copy.model = m.name
) AS c ON true
WHERE m.source IS NOT NULL AND (CAST(:names AS text[]) IS NULL OR m.name = ANY(CAST(:names AS text[])))
ORDER BY m.name
""")


def list_entries(connection: Connection, names: Sequence[str] | None = None) -> list[ModelEntry]:
    """The registered models of these names, or all, by name."""
    values = {"names": None if names is None else list(names), "stale": STALE_SECONDS}
    return [_to_entry(row) for row in connection.execute(_ENTRIES, values)]


_LOCK = text("SELECT name FROM models WHERE name = :name AND source IS NOT NULL FOR UPDATE")


def lock_entry(connection: Connection, name: str) -> bool:
    """Wait until nobody else changes a registered model; so until the transaction ends. False if there is none."""
    return connection.scalar(_LOCK, {"name": name}) is not None


_SET_TASK = text("UPDATE models SET download_task_id = :task_id, removing = false WHERE name = :name")


def set_download_task(connection: Connection, name: str, task_id: uuid.UUID) -> None:
    """Say which task fetches a model."""
    connection.execute(_SET_TASK, {"name": name, "task_id": task_id})


_SET_PINNED = text("UPDATE models SET pinned = :pinned WHERE name = :name AND source IS NOT NULL")


def set_pinned(connection: Connection, name: str, *, pinned: bool) -> bool:
    """Keep a model whatever room is needed, or do not; False if it is not registered."""
    return connection.execute(_SET_PINNED, {"name": name, "pinned": pinned}).rowcount > 0


_SET_REMOVING = text("UPDATE models SET removing = true, pinned = false WHERE name = :name AND source IS NOT NULL")


def set_removing(connection: Connection, name: str) -> bool:
    """Have every node delete its copy of a model; False if it is not registered."""
    return connection.execute(_SET_REMOVING, {"name": name}).rowcount > 0


_IS_REMOVING = text("SELECT removing FROM models WHERE name = :name FOR UPDATE")


def is_removing(connection: Connection, name: str) -> bool:
    """Whether a model is to go; nobody changes it until the transaction ends."""
    return bool(connection.scalar(_IS_REMOVING, {"name": name}))


_DELETE = text("""
DELETE FROM models AS m WHERE name = :name AND NOT EXISTS (SELECT FROM model_copies WHERE model = m.name)
""")


def delete_entry(connection: Connection, name: str) -> bool:
    """Forget a model that no node has a copy of; False if one has."""
    return connection.execute(_DELETE, {"name": name}).rowcount > 0


_DELETE_REMOVED = text("""
DELETE FROM models AS m
WHERE removing AND source IS NOT NULL AND NOT EXISTS (SELECT FROM model_copies WHERE model = m.name)
RETURNING name
""")


def delete_removed(connection: Connection) -> list[str]:
    """Forget the models that are to go and that no node has a copy of any more; returns their names."""
    return list(connection.scalars(_DELETE_REMOVED))


_USERS = text("""
SELECT 'task' AS kind, agent_id AS name, status = 'in_progress' AS running, count(*) AS number
FROM tasks WHERE status IN ('pending', 'in_progress') AND model = :name GROUP BY agent_id, status
UNION ALL
SELECT 'worker', w.name || ' on ' || w.node, true, 1
FROM workers AS w WHERE w.state <> 'gone' AND w.lease_expires_at > now() AND :name = ANY(w.models)
UNION ALL
SELECT 'download', t.id::text, t.status = 'in_progress', 1
FROM models AS m JOIN tasks AS t ON t.id = m.download_task_id WHERE m.name = :name AND t.finished_at IS NULL
ORDER BY 1, 2, 3
""")


def list_users(connection: Connection, name: str) -> Sequence[Row[Any]]:
    """Who would miss a model now.

    Each has kind (`task`: an agent's that wait or run, `worker`: one that holds it, `download`: the task that fetches
    it), name (the agent, the worker, the task), running and number.
    """
    return connection.execute(_USERS, {"name": name}).all()


_NOTE_ERROR = text("UPDATE models SET error = CAST(:error AS jsonb), updated_at = now() WHERE name = :name")


def note_error(connection: Connection, name: str, error: Mapping[str, Any] | None) -> None:
    """Record why a model could not be fetched: code, message, retryable."""
    connection.execute(_NOTE_ERROR, {"name": name, "error": None if error is None else json.dumps(dict(error))})


def _to_row(record: ModelRecord) -> dict[str, Any]:
    manifest = record.manifest
    row = asdict(record)
    del row["manifest"]
    return {
        **row,
        "tags": list(record.tags),
        "commit_hash": manifest.commit if manifest else None,
        "files": [asdict(file) for file in manifest.files] if manifest else None,
        "total_bytes": manifest.total_bytes if manifest else None,
    }


def _to_entry(row: Row[Any]) -> ModelEntry:
    manifest = Manifest.from_json(row.commit_hash, row.files) if row.files is not None else None
    record = ModelRecord(
        name=row.name,
        source=ModelSource(row.source),
        type=row.type,
        repo=row.repo,
        revision=row.revision,
        manifest=manifest,
        weight_bytes=row.weight_bytes,
        parameters=row.parameters,
        dtype=row.dtype,
        architecture=row.architecture,
        context_tokens=row.context_tokens,
        kv_bytes_per_token=row.kv_bytes_per_token,
        licence=row.licence,
        tags=tuple(row.tags),
    )
    return ModelEntry(
        record=record,
        status=ModelStatus(row.status),
        copies=tuple(_to_copy(copy) for copy in row.copies),
        held_bytes=row.held_bytes,
        pinned=row.pinned,
        download_task_id=row.download_task_id,
        error=row.error,
        registered_at=row.registered_at,
        last_used_at=row.last_used_at,
    )


def _to_copy(fields: Mapping[str, Any]) -> ModelCopy:
    return ModelCopy(
        model=fields["model"],
        node=fields["node"],
        state=CopyState(fields["state"]),
        folder=fields["folder"],
        commit=fields["commit_hash"],
        done_bytes=fields["done_bytes"],
        verified_at=_to_time(fields["verified_at"]),
        last_used_at=_to_time(fields["last_used_at"]),
    )


def _to_time(written: str | None) -> datetime | None:
    return None if written is None else datetime.fromisoformat(written)
