"""Nodes that fetch: a cache of its own each, in the test's database; and the model that they fetch."""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitinglip.registry.cache import ModelCache
from bitinglip.registry.downloader import DownloadProgress, ModelDownloader
from bitinglip.registry.hashing import verify_files
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, list_entries
from tests.hub import LocalHub
from tests.registry.model_files import LLAMA, frame, write_files

NAME = "org/name"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SHARD_BYTES = 1_500_000


def make_shard(tensor: str, size: int = SHARD_BYTES) -> bytes:
    header = {tensor: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    return frame(json.dumps(header).encode(), os.urandom(size))


def make_model(folder: Path) -> Path:
    """Two files of weights, their index, a config, a tokenizer."""
    index = {"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    files: dict[str, Any] = {
        "config.json": LLAMA,
        "tokenizer.json": {"version": "1.0"},
        "model.safetensors.index.json": index,
    }
    return write_files(folder, {**files, SHARDS[0]: make_shard("a"), SHARDS[1]: make_shard("b")})


@dataclass
class FetchingNode:
    """A node: a cache of its own, in the test's database."""

    name: str
    cache: ModelCache
    database: Database
    downloader: ModelDownloader
    progress: list[DownloadProgress] = field(default_factory=list)

    def bring(self, name: str = NAME, stop: threading.Event | None = None, *, keep_parts: bool = False) -> ModelEntry:
        return self.downloader.bring(
            name, stop=stop or threading.Event(), on_progress=self.progress.append, keep_parts=lambda: keep_parts
        )

    def read(self, name: str = NAME) -> ModelEntry | None:
        with self.database.statement() as connection:
            return next(iter(list_entries(connection, [name])), None)

    def list_bad(self, name: str = NAME) -> list[str]:
        """The files that are not what they should be, read from the folder that an engine is given."""
        entry = self.read(name)
        assert entry is not None
        assert entry.record.manifest is not None
        copy = entry.find_copy(self.name)
        assert copy is not None
        bad = verify_files(lambda file: Path(copy.folder) / file.path, entry.record.manifest.files)
        return [file.path for file in bad]

    def list_files(self) -> list[str]:
        return [path.name for path in self.cache.find_repo(NAME).rglob("*") if path.is_file() or path.is_symlink()]

    def list_parts(self) -> list[Path]:
        return list(self.cache.find_repo(NAME).rglob("*.part"))


MakeNode = Callable[..., FetchingNode]


def run_elsewhere(hub: LocalHub, folder: Path, *arguments: str, before: str = "true") -> subprocess.Popen[str]:
    """Bring the model in a process of its own, and in a mount namespace of its own if it mounts something before."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(folder),
        "BITINGLIP_NODE": "a",
        "BITINGLIP_MODEL_SPARE_BYTES": "0",
    }
    command = [sys.executable, "-m", "tests.registry.bringing", NAME, *arguments]
    if before != "true":
        command = ["unshare", "-m", "sh", "-c", f"{before} && exec {shlex.join(command)}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
