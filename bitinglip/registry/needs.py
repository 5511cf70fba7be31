"""What a model needs of a worker, as the registry records it: read from its files, without loading it."""

from dataclasses import replace
from pathlib import Path

from bitinglip.engine.folder import ModelFolder, inspect_folder
from bitinglip.store.entries import ModelRecord

ModelNeeds = ModelFolder


def describe_model(path: Path) -> ModelNeeds:
    """What the model in a folder is and takes.

    Raises:
        InvalidModelError: If it may not or cannot be used.
    """
    return inspect_folder(path)


def fill_record(record: ModelRecord, needs: ModelNeeds) -> ModelRecord:
    """The record with all that its files say of the model. The rest of it (name, licence, tags) stays."""
    return replace(
        record,
        type=needs.type or record.type,
        weight_bytes=needs.weight_bytes,
        parameters=needs.parameters,
        dtype=needs.dtype,
        architecture=needs.architecture,
        context_tokens=needs.context_tokens,
        kv_bytes_per_token=needs.kv_bytes_per_token,
    )
