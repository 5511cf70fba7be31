"""Nodes on one machine: each with a name and a folder for models of its own; and a hub that they share."""

from dataclasses import dataclass
from pathlib import Path

from bitinglip.domain.models import CopyState, Manifest, ModelSource
from bitinglip.registry.cache import ModelCache
from bitinglip.store.copies import note_copy
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelCopy, ModelEntry, ModelRecord, insert_entry, list_entries
from tests.conftest import System
from tests.engine_process.sized import make_folder

IO_POOL = '[pools.io]\nkinds = ["download"]\ngpus = []\nslots = 3\n'
MODEL = "org/model"


@dataclass
class Node:
    """A machine, as far as workers can tell."""

    processes: System
    name: str
    folder: Path
    environment: dict[str, str]

    @property
    def cache(self) -> ModelCache:
        """Its models."""
        return ModelCache(self.folder / self.name)

    def start(self, worker: str, pools: str, pool: str = "default", **environment: str) -> None:
        """Start a worker on it."""
        own = {"BITINGLIP_NODE": self.name, "HF_HUB_CACHE": str(self.cache.folder), "TASK_BASE_RETRY_DELAY": "1"}
        self.processes.start_worker(
            worker, pools=pools, pool=pool, environment={**own, **self.environment, **environment}
        )

    def start_io(self, worker: str | None = None, **environment: str) -> None:
        """Start a worker that downloads."""
        self.start(worker or f"io-{self.name}", IO_POOL, "io", **environment)

    def is_free(self, repo: str = MODEL) -> bool:
        """Whether nobody uses a model."""
        with self.cache.lock_to_delete(repo) as free:
            return free


def make_sized(folder: Path, size: int = 1_000, **behaviour: object) -> Path:
    """A model for the kind `sized`, as a hub would serve it."""
    made = Path(make_folder(folder, size, **behaviour))
    # By a name that the hub's other configurations have: or it would not be fetched.
    (made / "behaviour.json").rename(made / "behaviour_config.json")
    return made


def register(database: Database, name: str = MODEL, *, node: str = "gone") -> None:
    """Register a model that a node has, or had, so that tasks for it are accepted."""
    with database.transaction() as connection:
        insert_entry(connection, ModelRecord(name, ModelSource.HUB, repo=name))
        note_copy(connection, ModelCopy(name, node, CopyState.AVAILABLE, "/gone", "f" * 40))


def read_entry(database: Database, name: str = MODEL) -> ModelEntry | None:
    """The registered model; None if it is not."""
    with database.transaction() as connection:
        return next(iter(list_entries(connection, [name])), None)


def read_manifest(database: Database, name: str = MODEL) -> Manifest:
    """What a registered model is made of."""
    entry = read_entry(database, name)
    assert entry is not None
    assert entry.record.manifest is not None
    return entry.record.manifest


def list_copies(database: Database, name: str = MODEL) -> dict[str, CopyState]:
    """Where a model is, by node."""
    entry = read_entry(database, name)
    return {copy.node: copy.state for copy in entry.copies} if entry else {}
