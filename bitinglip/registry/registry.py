"""What is registered: listed, pinned, proven again, removed; found again on a disk whose database was lost.

Everything that reads or changes files does so on this node. What other nodes have to do with theirs is written down for
them (`removing`), and they do it when they are there (`worker.node`).
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitinglip.domain.models import Manifest, ModelFile, ModelSource
from bitinglip.errors import InvalidRequestError, ModelExistsError, ModelInUseError, NotFoundError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.documents import read_record, write_record
from bitinglip.registry.downloader import ModelDownloader
from bitinglip.registry.hashing import make_manifest_of_folder
from bitinglip.registry.hub.client import Hub
from bitinglip.registry.lookup import get_entry
from bitinglip.registry.needs import describe_model, fill_record
from bitinglip.registry.proving import AT_ONCE, Tell, find_bad_files, find_bad_in_folder, ignore_progress, note_proof
from bitinglip.registry.removal import Removal, refuse_if_used, remove_model
from bitinglip.registry.scan import Finding, NodeScan, TellOf, ignore_model
from bitinglip.settings import ModelSettings, find_node_name, load_settings
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, ModelRecord, insert_entry, list_entries, note_error, set_pinned


@dataclass(frozen=True, slots=True)
class Verification:
    """What a copy's bytes were found to be.

    Attributes:
        bad: Files that were missing or had other bytes.
        repaired: Whether they have been fetched anew, and proven.
    """

    entry: ModelEntry
    bad: tuple[ModelFile, ...] = ()
    repaired: bool = False

    @property
    def is_good(self) -> bool:
        """Whether the copy may be used now."""
        return self.repaired or not self.bad


class ModelRegistry:
    """The registered models, from one node.

    Args:
        database: Where they are registered.
        node: This node's name; None: as the settings say.
        cache: Its folder; None: huggingface_hub's.
        hub: Where damaged files come from, if no other node has them; None: as `HF_ENDPOINT` says.
    """

    def __init__(
        self,
        database: Database,
        *,
        node: str | None = None,
        cache: ModelCache | None = None,
        hub: Hub | None = None,
    ) -> None:
        self._database = database
        self._node = node or find_node_name()
        self._cache = cache or ModelCache()
        self._hub = hub

    def get(self, name: str) -> ModelEntry:
        """What is registered under a name.

        Args:
            name: As tasks name it; `@main` may be left out, and a folder may be relative.

        Raises:
            ModelNotFoundError: If nothing is. The error has the command that fetches it.
        """
        return get_entry(self._database, name)

    def list(self) -> Sequence[ModelEntry]:
        """Every registered model, by name."""
        with self._database.statement() as connection:
            return list_entries(connection)

    def add(self, record: ModelRecord) -> ModelEntry:
        """Register a model; no file of it is looked at.

        Raises:
            ModelExistsError: If one of that name is registered. Nothing was changed.
        """
        with self._database.transaction() as connection:
            if not insert_entry(connection, record):
                raise ModelExistsError(record.name)
        return self.get(record.name)

    def add_folder(self, path: Path) -> ModelEntry:
        """Register a local folder by its full path, with this node's copy of it: each file is hashed.

        Raises:
            InvalidModelError: If it may not or cannot be used.
            ModelExistsError: If it is registered for this node already, or with other bytes by another one.
        """
        folder = path.expanduser().resolve()
        needs = describe_model(folder)
        manifest = make_manifest_of_folder(folder)
        record = fill_record(ModelRecord(str(folder), ModelSource.FOLDER, manifest=manifest), needs)
        with self._database.transaction() as connection:
            if not insert_entry(connection, record):
                (known,) = list_entries(connection, [record.name])
                if known.record.manifest != manifest or known.find_copy(self._node) is not None:
                    raise ModelExistsError(record.name)
        self._note_proof(record.name, manifest, folder, [])
        return self.get(record.name)

    def pin(self, name: str, *, pinned: bool = True) -> ModelEntry:
        """Keep a model whatever room is needed; or let it leave again.

        Raises:
            ModelNotFoundError: If it is not registered.
        """
        entry = self.get(name)
        with self._database.transaction() as connection:
            set_pinned(connection, entry.name, pinned=pinned)
        return self.get(entry.name)

    def remove(self, name: str, *, force: bool = False) -> Removal:
        """Forget a model and delete its copies: this node's now, others' when they see it. A folder's files stay.

        Args:
            name: As tasks name it.
            force: Though tasks need it or engines hold it, which then keep the files for as long as they do; and copies
                on nodes that are gone are forgotten.

        Raises:
            ModelNotFoundError: If it is not registered.
            ModelInUseError: If it is needed; saying by whom, and what to do. Nothing was changed.
            InvalidRequestError: If it comes with the package.
        """
        entry = self.get(name)
        if entry.record.source is ModelSource.BUNDLED:
            raise InvalidRequestError("model", entry.name, "it comes with bitinglip and stays; uninstall that instead")
        if not force:
            refuse_if_used(self._database, entry.name)
        return remove_model(self._database, entry, node=self._node, cache=self._cache, force=force)

    def verify(
        self,
        name: str,
        *,
        repair: bool = True,
        stop: threading.Event | None = None,
        on_progress: Tell = ignore_progress,
    ) -> Verification:
        """Hash every byte of this node's copy; fetch the files that are not what they should be, and only these.

        Args:
            name: As tasks name it.
            repair: False: only look, and have no engine use a copy that is bad.
            stop: Ends it from another thread.
            on_progress: Told how far it is.

        Raises:
            ModelNotFoundError: If it is not registered.
            NotFoundError: If this node has no copy of it.
            ModelInUseError: If it is being fetched.
            BitingLipError: If it is damaged and cannot be repaired now; it stays `damaged`.
        """
        entry = self.get(name)
        record, copy = entry.record, entry.find_copy(self._node)
        manifest = record.manifest
        if manifest is None or copy is None:
            where = ", ".join(copy.node for copy in entry.copies) or "nowhere"
            message = f"model {entry.name!r} has no copy on node {self._node!r}, it is on: {where}"
            raise NotFoundError(f"{message}; fetch it with 'bitinglip model pull {entry.name}'")
        if record.source is not ModelSource.HUB or record.repo is None:
            folder = Path(copy.folder)
            bad = find_bad_in_folder(folder, manifest, stop=stop, on_progress=on_progress)
            self._note_proof(entry.name, manifest, folder, bad)
            return Verification(self.get(entry.name), tuple(bad))
        with self._cache.lock_to_write(record.repo, AT_ONCE) as is_ours:
            if not is_ours:
                raise ModelInUseError(entry.name, "is being fetched on this node; verify it again once that has ended")
            bad = find_bad_files(
                self._cache, record.repo, manifest, record.revision, stop=stop, on_progress=on_progress
            )
            folder = self._cache.find_snapshot(record.repo, manifest.commit)
            self._note_proof(entry.name, manifest, folder, bad)
        if bad and repair:
            self._make_downloader().repair(entry.name, bad, stop=stop or threading.Event(), on_progress=on_progress)
        return Verification(self.get(entry.name), tuple(bad), repaired=bool(bad) and repair)

    def scan(self, *, stop: threading.Event | None = None, on_progress: TellOf = ignore_model) -> Sequence[Finding]:
        """Make what is recorded of this node's copies true to its disk; nothing is asked of any network.

        What is whole and proven is registered, what is not is told with the reason, and copies whose files are gone are
        forgotten.

        Args:
            stop: Ends it from another thread.
            on_progress: Told how far it is, with the model's name.

        Raises:
            DownloadStoppedError: If it was told to stop.
        """
        return NodeScan(self._database, self._node, self._cache, stop=stop, on_progress=on_progress).run()

    def dump(self) -> Sequence[dict[str, Any]]:
        """Every registered model as JSON, with all that registering it again needs; see `restore`."""
        return [write_record(entry) for entry in self.list()]

    def restore(self, dump: Iterable[Mapping[str, Any]]) -> Sequence[str]:
        """Register what was dumped; returns the names that are registered already, which are left as they are.

        The files are not here by that: `scan` finds those that are.

        Raises:
            InvalidRequestError: If one cannot be read. Nothing was registered.
        """
        records = [read_record(document) for document in dump]
        known = []
        with self._database.transaction() as connection:
            for record, pinned in records:
                if not insert_entry(connection, record):
                    known.append(record.name)
                    continue
                set_pinned(connection, record.name, pinned=pinned)
                note_error(connection, record.name, _describe_absence(record.name))
        return known

    def _make_downloader(self) -> ModelDownloader:
        settings = load_settings(ModelSettings)
        return ModelDownloader(
            self._database, node=self._node, cache=self._cache, hub=self._hub or Hub(), settings=settings
        )

    def _note_proof(self, name: str, manifest: Manifest, folder: Path, bad: Sequence[ModelFile]) -> None:
        note_proof(self._database, node=self._node, name=name, manifest=manifest, folder=folder, bad=bad)


def _describe_absence(name: str) -> dict[str, Any]:
    remedy = f"'bitinglip model scan' where they are, or 'bitinglip model pull {name}'"
    return {"code": "not_here", "message": f"its files have not been found on a node yet; {remedy}", "retryable": True}
