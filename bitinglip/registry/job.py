"""One model on its way to this node, step by step (see `downloader`). Its caller holds the model's write lock."""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitinglip.domain.models import CopyState, Manifest, ModelFile, ModelName, ModelSource
from bitinglip.engine.custom_code import is_config, refuse_custom_code
from bitinglip.errors import (
    BitingLipError,
    ConfigurationError,
    DatabaseUnreachableError,
    DownloadStoppedError,
    InvalidModelError,
    ModelDamagedError,
    ModelNotFoundError,
    ServerUnreachableError,
)
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.hashing import verify_files
from bitinglip.registry.hub.client import Hub
from bitinglip.registry.hub.pinning import look_up_record
from bitinglip.registry.needs import ModelNeeds, describe_model, fill_record
from bitinglip.registry.peers.sources import find_shared_copy, list_sources
from bitinglip.registry.record import DownloadRecord
from bitinglip.registry.room import make_room
from bitinglip.registry.transfer.fetch import FileFetcher
from bitinglip.registry.transfer.files import Transfer
from bitinglip.registry.transfer.progress import DownloadProgress, ProgressCounter, Stage
from bitinglip.registry.transfer.throttle import Throttle
from bitinglip.settings import ModelSettings
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, ModelRecord
from bitinglip.telemetry import get_logger

WEIGHTS_SUFFIX = ".safetensors"

log = get_logger()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every download of a process works with: see `ModelDownloader`."""

    database: Database
    node: str
    cache: ModelCache
    hub: Hub
    settings: ModelSettings
    throttle: Throttle


class DownloadJob:
    """Brings or repairs one model, once.

    Args:
        surroundings: What it works with.
        model: Which.
        stop: Ends it from another thread.
        on_progress: Told how far it is.
        keep_parts: Whether, when it was told to stop, what has come of files that are not whole stays.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        model: ModelName,
        *,
        stop: threading.Event,
        on_progress: Callable[[DownloadProgress], None],
        keep_parts: Callable[[], bool],
    ) -> None:
        self._at = surroundings
        self._cache = surroundings.cache
        self._model = model
        self._name = str(model)
        self._stop = stop
        self._on_progress = on_progress
        self._keep_parts = keep_parts
        self._manifest: Manifest | None = None
        self._record = DownloadRecord(
            surroundings.database, node=surroundings.node, cache=surroundings.cache, name=model
        )

    def bring(self) -> ModelEntry:
        """The model, once this node has it.

        Raises:
            BitingLipError: With its cause; it is recorded, and what is of no use any more is deleted.
        """
        entry = self._record.register()
        if self._record.has_copy(entry):
            return entry
        try:
            self._record.forgive()
            manifest = self._manifest = entry.record.manifest or self._pin()
            if not self._adopt_shared(manifest):
                self._complete(manifest)
        except (BitingLipError, OSError) as exc:
            error = self._translate(exc)
            self._clean_up(error)
            raise error from exc
        return self._read()

    def repair(self, files: Sequence[ModelFile]) -> ModelEntry:
        """The model, once these files of it are as they should be.

        Raises:
            ModelNotFoundError: If it is not registered, or was never fetched.
            BitingLipError: With its cause; it is recorded, and the copy stays damaged.
        """
        manifest = self._manifest = self._read().record.manifest
        if manifest is None:
            raise ModelNotFoundError(self._name, [])
        counter = self._count(manifest, CopyState.DAMAGED)
        bad = {file.digest for file in files}
        for file in manifest.files:
            if file.digest not in bad:
                counter.finish(file)
        try:
            self._record.forgive()
            for file in files:
                self._cache.find_blob(self._model.repo, file).unlink(missing_ok=True)
            self._fetch_all(manifest, files, counter)
            self._make_available(manifest)
        except (BitingLipError, OSError) as exc:
            error = self._translate(exc)
            if not _is_temporary(error):
                self._cache.delete_parts(self._model.repo)
            self._record.fail(error, keeps_copy=True)
            raise error from exc
        return self._read()

    def _pin(self) -> Manifest:
        """What the hub says that the model is now, or another node said before: the same for every node."""
        self._record.pin(look_up_record(self._at.hub, self._model, stop=self._stop))
        pinned = self._read().record.manifest
        if pinned is None:
            # It was removed, and registered anew, at this moment.
            raise ModelNotFoundError(self._name, [])
        return pinned

    def _adopt_shared(self, manifest: Manifest) -> bool:
        """Whether another node has proven the files, in a folder that this one sees as well."""
        store_id = self._cache.find_store_id()
        shared = find_shared_copy(self._at.database, self._at.node, self._name, manifest.commit, store_id)
        if shared is None or not self._cache.is_linked(self._model.repo, manifest):
            return False
        self._record.note(CopyState.AVAILABLE, manifest, manifest.total_bytes)
        return True

    def _complete(self, manifest: Manifest) -> None:
        counter = self._count(manifest, CopyState.DOWNLOADING)
        missing = self._find_missing(manifest, counter)
        self._fetch_all(manifest, missing, counter)
        self._make_available(manifest)

    def _count(self, manifest: Manifest, state: CopyState) -> ProgressCounter:
        def note(stage: Stage, done_bytes: int) -> None:
            # A database that is away for a while keeps no bytes from coming.
            with contextlib.suppress(DatabaseUnreachableError):
                shown = CopyState.VERIFYING if stage == "verifying" and state is CopyState.DOWNLOADING else state
                self._record.note(shown, manifest, done_bytes)

        return ProgressCounter(manifest, on_progress=self._on_progress, note=note)

    def _find_missing(self, manifest: Manifest, counter: ProgressCounter) -> list[ModelFile]:
        """The files to fetch, one of those of the same bytes; what is there of another content is deleted."""
        wanted = {file.digest: file for file in manifest.files}
        missing = {file.digest for file in self._cache.list_missing(self._model.repo, manifest)}
        there = [file for digest, file in wanted.items() if digest not in missing]
        counter.begin("verifying")
        bad = verify_files(self._find_blob, there, on_bytes=counter.advance, stop=self._stop)
        for file in there:
            if file not in bad:
                counter.finish(file)
        for file in bad:
            log.warning("file_damaged", model=self._name, file=file.path, source="this node's cache")
            counter.forget(file)
            self._find_blob(file).unlink(missing_ok=True)
        return [file for file in wanted.values() if file.digest in missing or file in bad]

    def _fetch_all(self, manifest: Manifest, files: Sequence[ModelFile], counter: ProgressCounter) -> None:
        """Fetch files, those first that say whether the others may be used."""
        counter.begin("downloading")
        self._make_room(files)
        fetch = self._start_fetching(manifest, counter)
        fetch([file for file in files if not file.path.endswith(WEIGHTS_SUFFIX)])
        for file in manifest.files:
            if is_config(file.path):
                refuse_custom_code(self._name, file.path, self._find_blob(file).read_bytes())
        fetch([file for file in files if file.path.endswith(WEIGHTS_SUFFIX)])

    def _make_room(self, files: Sequence[ModelFile]) -> None:
        parts = [self._cache.find_part(self._model.repo, file) for file in files]
        there = sum(part.stat().st_size for part in parts if part.is_file())
        make_room(
            self._at.database,
            node=self._at.node,
            cache=self._cache,
            model=self._name,
            needed_bytes=max(0, sum(file.size for file in files) - there),
            settings=self._at.settings,
        )

    def _start_fetching(self, manifest: Manifest, counter: ProgressCounter) -> Callable[[Sequence[ModelFile]], None]:
        """What returns when these files are there, proven."""
        at, repo, halt = self._at, self._model.repo, threading.Event()
        store_id = self._cache.find_store_id()
        peers = list_sources(at.database, at.node, self._name, manifest.commit, store_id=store_id)
        fetcher = FileFetcher(
            self._name,
            [*peers, at.hub.make_source(repo, manifest.commit, stop=halt)],
            throttle=at.throttle,
            stall_seconds=at.settings.download_stall_seconds,
            stop=halt,
        )

        def fetch_one(file: ModelFile) -> None:
            part = self._cache.find_part(repo, file)
            fetcher.fetch(file, part=part, blob=self._find_blob(file), on_position=partial(counter.move, file))
            counter.finish(file)

        transfer = partial(
            Transfer, fetch_one, threads=at.settings.download_files, model=self._name, stop=self._stop, halt=halt
        )
        return lambda files: transfer(watch=counter.tell).run(files)

    def _make_available(self, manifest: Manifest) -> None:
        """Have engines find the files, which are proven."""
        repo = self._model.repo
        odd = self._cache.list_missing(repo, manifest)
        if odd:
            reason = f"{odd[0].path} has the same hash as a file of another size; remove it, and fetch it again"
            raise ModelDamagedError(self._name, reason)
        is_new = not self._cache.find_snapshot(repo, manifest.commit).exists()
        folder = self._cache.link(repo, manifest, self._model.revision)
        try:
            needs = self._inspect(folder)
            self._record.describe(fill_record(ModelRecord(self._name, ModelSource.HUB), needs))
            self._record.note(CopyState.AVAILABLE, manifest, manifest.total_bytes)
        except BitingLipError:
            if is_new:
                self._cache.unlink(repo, manifest.commit)
            raise

    def _inspect(self, folder: Path) -> ModelNeeds:
        try:
            return describe_model(folder)
        except InvalidModelError as exc:
            # Whoever asked for it knows its name, not where this node keeps it.
            remedy = f"{_name_within(folder, exc.value)} is as its owners published it, and of no use: {exc.remedy}"
            raise InvalidModelError("model", self._name, remedy) from exc

    def _translate(self, error: BitingLipError | OSError) -> BitingLipError:
        if isinstance(error, DownloadStoppedError):
            return DownloadStoppedError(self._name)
        if isinstance(error, BitingLipError):
            return error
        return describe_unusable(self._cache, error)

    def _clean_up(self, error: BitingLipError) -> None:
        """Record an error, and delete what nobody will go on with."""
        repo, manifest = self._model.repo, self._manifest
        is_stopped = isinstance(error, DownloadStoppedError)
        is_final = not is_stopped and not _is_temporary(error)
        if is_final or (is_stopped and not self._keep_parts()):
            self._cache.delete_parts(repo)
        if is_final and manifest is not None:
            self._cache.delete_orphans(repo, manifest)
        keeps_copy = not is_final and manifest is not None and self._cache.has_any(repo, manifest)
        self._record.fail(error, keeps_copy=keeps_copy)

    def _find_blob(self, file: ModelFile) -> Path:
        return self._cache.find_blob(self._model.repo, file)

    def _read(self) -> ModelEntry:
        entry = self._record.read()
        if entry is None:
            raise ModelNotFoundError(self._name, [])
        return entry


def describe_unusable(cache: ModelCache, error: OSError) -> ConfigurationError:
    """What is to be said of a folder that cannot be read or written."""
    remedy = "let this user read and write it, or set HF_HUB_CACHE to another folder"
    return ConfigurationError(f"the models' folder {cache.folder} cannot be used: {error}; {remedy}")


def _is_temporary(error: BitingLipError) -> bool:
    """Whether another attempt may go on where this one ended."""
    return error.retryable or isinstance(error, ServerUnreachableError)


def _name_within(folder: Path, path: object) -> str:
    """What a path is called within a model's folder."""
    within = os.path.relpath(str(path), folder)
    return "it" if within.startswith(".") else within
