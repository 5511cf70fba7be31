"""A node whose worker downloads, with a folder of its own for the models."""

import hashlib
from pathlib import Path

from bitinglip.registry.locate import BUNDLED
from tests.conftest import System

IO_POOL = '[pools.io]\nkinds = ["download"]\ngpus = []\nslots = 3\n'
MODEL = "local/demo"
SIZE = (BUNDLED["demo"] / "model.safetensors").stat().st_size
"""Bytes of the bundled model's weights, which the tests' hub serves as `MODEL`."""


class IoNode:
    """A machine of its own, as far as models go."""

    def __init__(self, processes: System, folder: Path, hub_url: str) -> None:
        self.processes = processes
        self.cache = folder / "cache"
        self.environment = {
            "HF_ENDPOINT": hub_url,
            "HF_HUB_CACHE": str(self.cache),
            "BITINGLIP_NODE": "node-1",
            "BITINGLIP_TASK_TIMEOUT": "1",
        }

    def start_io(self, name: str = "io", *, pools: str = IO_POOL) -> None:
        """Start a worker that downloads."""
        self.processes.start_worker(name, pools=pools, pool="io", environment=self.environment)

    def find_blob(self, path: str) -> list[Path]:
        """The files in the cache whose bytes are those of one of the bundled model's."""
        wanted = hashlib.sha256((BUNDLED["demo"] / path).read_bytes()).hexdigest()
        return [
            file
            for file in self.cache.rglob("*")
            if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == wanted
        ]

    def list_parts(self) -> list[Path]:
        """The files that are not whole."""
        return [*self.cache.rglob("*.part")]
