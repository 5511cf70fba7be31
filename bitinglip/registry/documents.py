"""Registered models as JSON: for programs, and to register them again elsewhere.

Invariant: what `read_record` takes of what `write_entry` wrote gives the same record; everything else in it (status,
copies, times) is what nodes know and find out anew.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from bitinglip.domain.models import Manifest, ModelName, ModelSource
from bitinglip.errors import InvalidRequestError
from bitinglip.store.entries import ModelCopy, ModelEntry, ModelRecord

_PLAIN = tuple(field.name for field in fields(ModelRecord) if field.name not in {"source", "manifest", "tags"})
_NUMBERS = ("weight_bytes", "parameters", "context_tokens", "kv_bytes_per_token")


def write_record(entry: ModelEntry) -> dict[str, Any]:
    """What is registered of a model, and lasts: all that registering it again needs."""
    record = entry.record
    manifest = record.manifest
    return {
        **{name: getattr(record, name) for name in _PLAIN},
        "source": str(record.source),
        "tags": list(record.tags),
        "commit": manifest.commit if manifest else None,
        "files": [asdict(file) for file in manifest.files] if manifest else None,
        "pinned": entry.pinned,
    }


def write_entry(entry: ModelEntry) -> dict[str, Any]:
    """A registered model and where it stands."""
    manifest = entry.record.manifest
    return {
        **write_record(entry),
        "status": str(entry.status),
        "done_bytes": count_done_bytes(entry),
        "total_bytes": manifest.total_bytes if manifest else None,
        "held_bytes": entry.held_bytes,
        "download_task_id": None if entry.download_task_id is None else str(entry.download_task_id),
        "error": None if entry.error is None else dict(entry.error),
        "registered_at": entry.registered_at and entry.registered_at.isoformat(),
        "last_used_at": entry.last_used_at and entry.last_used_at.isoformat(),
        "copies": [_write_copy(copy) for copy in entry.copies],
    }


def count_done_bytes(entry: ModelEntry) -> int:
    """What the node that has most of a model has of it."""
    return max((copy.done_bytes for copy in entry.copies), default=0)


def read_record(document: Mapping[str, Any]) -> tuple[ModelRecord, bool]:
    """What `write_record` or `write_entry` wrote, and whether the model is pinned.

    Raises:
        InvalidRequestError: Naming what is wrong with it.
    """
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequestError("name", name, "each line is one model, as 'bitinglip model list --json' writes it")
    try:
        given: dict[str, Any] = {key: document.get(key) for key in _PLAIN}
        given["source"] = ModelSource(document["source"])
        given["tags"] = tuple(map(str, document.get("tags") or ()))
        record = ModelRecord(**given, manifest=_read_manifest(document))
    except (KeyError, ValueError, TypeError) as exc:
        raise InvalidRequestError("model", name, f"it cannot be read ({exc}); dump it again") from exc
    _check_record(record)
    return record, document.get("pinned") is True


def _read_manifest(document: Mapping[str, Any]) -> Manifest | None:
    files = document.get("files")
    return None if files is None else Manifest.from_json(document.get("commit") or "", files)


def _check_record(record: ModelRecord) -> None:
    if record.source is ModelSource.HUB:
        name = ModelName.parse(record.name)
        if (record.repo, record.revision) != (name.repo, name.revision):
            raise InvalidRequestError("repo", record.repo, f"{record.name} is {name.repo} at {name.revision or 'main'}")
    for field in _NUMBERS:
        value = getattr(record, field)
        if value is not None and (type(value) is not int or value < 0):
            raise InvalidRequestError(field, value, f"no number of {record.name}; dump it again")


def _write_copy(copy: ModelCopy) -> dict[str, Any]:
    return {
        "node": copy.node,
        "state": str(copy.state),
        "folder": copy.folder,
        "commit": copy.commit,
        "done_bytes": copy.done_bytes,
        "verified_at": copy.verified_at and copy.verified_at.isoformat(),
        "last_used_at": copy.last_used_at and copy.last_used_at.isoformat(),
    }
