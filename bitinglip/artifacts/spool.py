"""The files of a worker's attempts: what they take is fetched, what they make is stored, and nothing stays behind.

Invariant: a file is in the store, whole, before the record names it. Once all are stored, the sweep alone deletes them:
an ending that seems refused may have been recorded, its answer lost.
"""

import errno
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitinglip.artifacts.store import ArtifactStore
from bitinglip.domain.artifacts import Maker, make_name
from bitinglip.domain.catalogue import Kind
from bitinglip.errors import ArtifactDiskFullError, ArtifactStoreError, AttemptStoppedError, BitingLipError


@dataclass(frozen=True, slots=True)
class AttemptFiles:
    """What one attempt takes and makes.

    Attributes:
        inputs: Local files by the payload's field that names them.
        folder: For what the engine makes; None: its kind makes no files.
    """

    inputs: Mapping[str, str]
    folder: Path | None
    _kind: Kind
    _maker: Maker
    _store: ArtifactStore

    def keep(self, result: dict[str, Any], is_stopped: threading.Event) -> dict[str, Any]:
        """Store what the attempt has made, and return its result with the artifacts' names.

        Where that fails, what was stored before is deleted again: no record names it.

        Args:
            result: Of the engine.
            is_stopped: Once set, nothing more is stored.

        Raises:
            AttemptStoppedError: If it was set.
            ArtifactDamagedError: If a file is not as its engine said.
            ArtifactDiskFullError: If there is no room.
            ArtifactStoreError: If the store cannot be used.
        """
        if self._kind.files is None or self.folder is None:
            return result
        kept: list[dict[str, Any]] = []
        try:
            for index, entry in enumerate(result[self._kind.files]):
                if is_stopped.is_set():
                    raise AttemptStoppedError
                name = self._put(self.folder / Path(entry["file"]).name, index, entry)
                kept.append({"artifact": name} | {key: value for key, value in entry.items() if key != "file"})
        except BitingLipError:
            with suppress(ArtifactStoreError):
                self._store.delete(entry["artifact"] for entry in kept)
            raise
        return {**result, self._kind.files: kept}

    def _put(self, made: Path, index: int, entry: Mapping[str, Any]) -> str:
        self._store.check_room(entry["size"])
        name = make_name(self._maker, index, made.suffix.removeprefix("."))
        self._store.put(made, name, size=entry["size"], sha256=entry["sha256"])
        return name


class Spool:
    """A folder of a worker's own on its node.

    Args:
        folder: Nobody else's, and no other worker's.
        store: From where inputs come and to where files go.

    Attributes:
        owner: What the system is known by in the store; None: the store has been looked at, or need not be.
    """

    def __init__(self, folder: Path, store: ArtifactStore) -> None:
        self._folder = folder
        self._store = store
        self.owner: str | None = None

    def clear(self) -> None:
        """Delete what a killed worker of the same name left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def open(self, kind: Kind, maker: Maker, payload: Mapping[str, Any]) -> Iterator[AttemptFiles]:
        """What an attempt takes, and a folder for what it makes, for the length of a block.

        Args:
            kind: Of the task.
            maker: The attempt.
            payload: Of the task.

        Raises:
            ArtifactNotFoundError: If what it takes is not there.
            ArtifactDiskFullError: If there is no room for what it may make.
            ArtifactStoreTakenError: If the store is another system's.
            ArtifactStoreError: If the store cannot be used.
        """
        names = {name: payload[name] for name in kind.inputs if payload.get(name) is not None}
        if kind.files is None and not names:
            yield AttemptFiles({}, None, kind, maker, self._store)
            return
        if kind.files is not None:
            self._check_store()
        folder = self._make_folder(maker)
        try:
            inputs = {name: self._fetch(artifact, folder / f"input-{name}") for name, artifact in names.items()}
            yield AttemptFiles(inputs, None if kind.files is None else folder, kind, maker, self._store)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _check_store(self) -> None:
        if self.owner is None:
            self._store.check_there()
        else:
            self._store.check_owner(self.owner)
            self.owner = None
        self._store.check_room()

    def _make_folder(self, maker: Maker) -> Path:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f"{maker.task_id}-{maker.attempt}-", dir=self._folder))
        except OSError as exc:
            if exc.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise ArtifactDiskFullError(str(self._folder), free_bytes=0, spare_bytes=0) from exc

    def _fetch(self, name: str, target: Path) -> str:
        self._store.fetch(name, target)
        return str(target)
