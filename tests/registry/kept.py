"""Models that a node has: real files of real hashes, linked and recorded."""

import hashlib
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

from bitinglip.domain.models import CopyState, Manifest, ModelFile, ModelName, ModelSource
from bitinglip.registry.cache import ModelCache
from bitinglip.store.copies import note_copy
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelCopy, ModelEntry, ModelRecord, insert_entry, list_entries

NODE = "here"


def make_files(contents: Mapping[str, bytes], *, commit: str | None = None) -> Manifest:
    """The manifest of these contents; files of JSON by their git hash, as the hub has them."""
    files = tuple(_describe(path, content) for path, content in contents.items())
    made = hashlib.sha1("".join(file.digest for file in files).encode()).hexdigest()
    return Manifest(commit or made, files)


def keep_files(cache: ModelCache, repo: str, contents: Mapping[str, bytes], *, revision: str | None = None) -> Manifest:
    """Put files into the cache as a finished download leaves them."""
    manifest = make_files(contents)
    for file in manifest.files:
        blob = cache.find_blob(repo, file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(contents[file.path])
    cache.link(repo, manifest, revision)
    return manifest


def keep(
    database: Database,
    cache: ModelCache,
    name: str,
    contents: Mapping[str, bytes] | int = 1_000,
    *,
    node: str = NODE,
    state: CopyState = CopyState.AVAILABLE,
) -> ModelRecord:
    """A registered model whose copy the node has; a number: one file of so many random bytes."""
    parsed = ModelName.parse(name)
    if isinstance(contents, int):
        contents = {"model.safetensors": os.urandom(contents)}
    manifest = keep_files(cache, parsed.repo, contents, revision=parsed.revision)
    record = ModelRecord(name, ModelSource.HUB, "text", parsed.repo, parsed.revision, manifest)
    with database.transaction() as connection:
        insert_entry(connection, record)
        note_copy(connection, make_copy(cache, record, node=node, state=state))
    return record


def make_copy(
    cache: ModelCache, record: ModelRecord, *, node: str = NODE, state: CopyState = CopyState.AVAILABLE
) -> ModelCopy:
    """A node's copy of a model, in full."""
    assert record.manifest is not None
    assert record.repo is not None
    folder = cache.find_snapshot(record.repo, record.manifest.commit)
    return ModelCopy(record.name, node, state, str(folder), record.manifest.commit, record.manifest.total_bytes)


def find_entry(database: Database, name: str) -> ModelEntry | None:
    """What is registered under a name."""
    with database.transaction() as connection:
        found = list_entries(connection, [name])
    return found[0] if found else None


def list_files(folder: Path) -> list[str]:
    """The files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _describe(path: str, content: bytes) -> ModelFile:
    if path.endswith(".json"):
        blob = b"blob %d\0" % len(content) + content
        return ModelFile(path, len(content), git_sha1=hashlib.sha1(blob).hexdigest())
    return ModelFile(path, len(content), sha256=hashlib.sha256(content).hexdigest())


def make_model(*, seed: int = 0, parameters: int = 250) -> dict[str, bytes]:
    """The files of the smallest model that may be used: nobody can load it, everybody can inspect it."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
    }
    header = json.dumps({"w": {"dtype": "F32", "shape": [parameters], "data_offsets": [0, 4 * parameters]}}).encode()
    weights = random.Random(seed).randbytes(4 * parameters)
    return {
        "config.json": json.dumps({**config, "seed": seed}).encode(),
        "model.safetensors": len(header).to_bytes(8, "little") + header + weights,
        "tokenizer.json": b'{"model": {}}',
    }


def write_files(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """A folder with these files."""
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def damage(path: Path) -> None:
    """One bit of a file turns over."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.resolve().write_bytes(content)


def find_snapshot(cache: ModelCache, record: ModelRecord) -> Path:
    """The folder that an engine would load."""
    assert record.manifest is not None
    assert record.repo is not None
    return cache.find_snapshot(record.repo, record.manifest.commit)
