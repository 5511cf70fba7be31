"""What `bitinglip model` shows of models."""

from collections.abc import Sequence
from typing import Any

import click

from bitinglip.cli.output import write_table
from bitinglip.cli.progress import format_bytes
from bitinglip.domain.models import ModelStatus
from bitinglip.lifecycle.ability import Obstacle, find_obstacle
from bitinglip.registry.documents import count_done_bytes
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry
from bitinglip.store.queries import list_workers
from bitinglip.store.queues import list_open_workers

_UNDER_WAY = (ModelStatus.QUEUED, ModelStatus.DOWNLOADING, ModelStatus.VERIFYING)
_SCALES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def write_models(entries: Sequence[ModelEntry]) -> None:
    """A table with a line for each model."""
    headers = ["name", "status", "type", "size", "parameters", "nodes", "last used", "pinned"]
    write_table(headers, [_make_row(entry) for entry in entries])


def write_details(entry: ModelEntry, fits: Sequence[dict[str, Any]]) -> None:
    """All that is known of a model.

    Args:
        entry: The model.
        fits: From `list_fits`.
    """
    record, manifest = entry.record, entry.record.manifest
    rows: list[tuple[str, object]] = [
        ("name", entry.name),
        ("status", describe_status(entry)),
        ("error", entry.error and f"{entry.error['code']}: {entry.error['message']}"),
        ("source", record.source),
        ("commit", manifest and manifest.commit),
        ("type", record.type),
        ("architecture", record.architecture),
        ("parameters", record.parameters and f"{_count_parameters(record.parameters)} in {record.dtype or 'no dtype'}"),
        ("context tokens", record.context_tokens),
        ("licence", record.licence),
        ("tags", record.tags or None),
        ("size on disk", manifest and format_bytes(manifest.total_bytes)),
        ("needs on a worker", _describe_needs(entry)),
        ("measured there", entry.held_bytes and format_bytes(entry.held_bytes)),
        ("pinned", entry.pinned),
        ("registered", entry.registered_at),
        ("last used", entry.last_used_at),
        ("download task", entry.download_task_id),
    ]
    write_table(["field", "value"], [row for row in rows if row[1] is not None])
    if manifest:
        click.echo()
        write_table(["file", "bytes", "hash"], [(file.path, f"{file.size:,}", file.digest) for file in manifest.files])
    if entry.copies:
        click.echo()
        write_table(
            ["node", "state", "there", "verified", "last used", "folder"],
            [
                (c.node, c.state, format_bytes(c.done_bytes), c.verified_at, c.last_used_at, c.folder)
                for c in entry.copies
            ],
        )
    if fits:
        click.echo()
        write_table(
            ["worker", "node", "on", "fits", "why"],
            [(f["worker"], f["node"], f["gpus"] or "CPU", f["fits"], f["why"]) for f in fits],
        )


def describe_status(entry: ModelEntry) -> str:
    """Where it stands, with how much of it is there while it comes."""
    total_bytes = entry.record.manifest.total_bytes if entry.record.manifest else 0
    if entry.status not in _UNDER_WAY or not total_bytes:
        return str(entry.status)
    return f"{entry.status} {count_done_bytes(entry) / total_bytes:.0%}"


def list_fits(database: Database, entry: ModelEntry) -> list[dict[str, Any]]:
    """Whether the model fits on each worker that does its type of task, and why, with the numbers.

    Each has worker, node, gpus (names; none: the CPU), fits, why, needed_bytes (measured, or of the weights),
    memory_bytes (None: no limit known) and tokens (of keys and values that fit beside the weights, for all its tasks
    together; None: not known).
    """
    with database.transaction() as connection:
        places = {worker.id: (worker.node, [gpu["name"] for gpu in worker.gpus]) for worker in list_workers(connection)}
        workers = list_open_workers(connection)
    return [
        {
            "worker": worker.name,
            **dict(zip(("node", "gpus"), places[worker.id], strict=True)),
            **_find_fit(entry, worker),
        }
        for worker in workers
        if worker.id in places and entry.record.type in {None, *worker.kinds}
    ]


def _find_fit(entry: ModelEntry, worker: Any) -> dict[str, Any]:
    record, limit = entry.record, worker.memory_bytes
    needed_bytes = entry.held_bytes or record.weight_bytes or 0
    # Of a type that nobody knows, any will do.
    type_ = record.type or next(iter(worker.kinds))
    obstacle = find_obstacle(worker, type_, entry.name, agent_id=None, size=needed_bytes)
    tokens = None
    if limit is not None and record.kv_bytes_per_token:
        tokens = max(0, (limit - (record.weight_bytes or 0)) // record.kv_bytes_per_token)
    return {
        "fits": obstacle is None,
        "why": _describe_fit(entry, worker, obstacle, needed_bytes, tokens),
        "needed_bytes": needed_bytes or None,
        "memory_bytes": limit,
        "tokens": tokens,
    }


def _describe_fit(
    entry: ModelEntry, worker: Any, obstacle: Obstacle | None, needed_bytes: int, tokens: int | None
) -> str:
    match obstacle:
        case Obstacle.MODEL_NOT_ALLOWED:
            return f"its pool {worker.pool} allows only {', '.join(sorted(worker.allowed_models))}"
        case Obstacle.LOAD_FAILED:
            return "it could not be loaded there"
    if worker.memory_bytes is None:
        return "no limit of its memory is known" if entry.name not in worker.models else "it is loaded there"
    share = f"{format_bytes(needed_bytes)} of {format_bytes(worker.memory_bytes)}"
    if obstacle is not None:
        return f"it needs {share}"
    loaded = ", loaded there now" if entry.name in worker.models else ""
    return f"it takes {share}{'' if tokens is None else f', with room for {tokens:,} tokens'}{loaded}"


def _make_row(entry: ModelEntry) -> tuple[object, ...]:
    manifest, parameters = entry.record.manifest, entry.record.parameters
    return (
        entry.name,
        describe_status(entry),
        entry.record.type,
        format_bytes(manifest.total_bytes) if manifest else None,
        None if parameters is None else _count_parameters(parameters),
        sorted(copy.node for copy in entry.copies if copy.state == "available"),
        entry.last_used_at,
        entry.pinned,
    )


def _describe_needs(entry: ModelEntry) -> str | None:
    record = entry.record
    if record.weight_bytes is None:
        return None
    weights = f"{format_bytes(record.weight_bytes)} of weights"
    if record.kv_bytes_per_token is None:
        return weights
    each = f"{record.kv_bytes_per_token:,} bytes a token"
    if record.context_tokens is None:
        return f"{weights}, and {each}"
    whole = record.kv_bytes_per_token * record.context_tokens
    return f"{weights}, and {each}: {format_bytes(whole)} for {record.context_tokens:,} tokens"


def _count_parameters(parameters: int) -> str:
    for scale, letter in _SCALES:
        if parameters >= scale:
            return f"{parameters / scale:.3g}{letter}"
    return str(parameters)
