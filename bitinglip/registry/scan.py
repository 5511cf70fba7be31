"""Make what is recorded of a node's copies true to its disk. Nothing is asked of any network.

In huggingface_hub's layout a blob's name is its hash, so that a folder says by itself what its bytes should be: models
are found again without the database that knew them, and those that other programs fetched are found as well.

Invariant: a copy becomes `available` here as anywhere, only when each of its bytes has been hashed.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from bitinglip.domain.models import (
    Manifest,
    ModelFile,
    ModelName,
    ModelSource,
    ModelStatus,
    is_commit,
    is_file_path,
    is_revision,
)
from bitinglip.errors import InvalidModelError, InvalidRequestError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.hub.client import HubModel
from bitinglip.registry.hub.selection import AlteredFileError, choose_files
from bitinglip.registry.needs import describe_model, fill_record
from bitinglip.registry.proving import AT_ONCE, find_bad_files, find_bad_in_folder, note_proof
from bitinglip.registry.transfer.progress import DownloadProgress
from bitinglip.store.copies import delete_copy
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, ModelRecord, describe_entry, insert_entry, list_entries

MAX_NAMED = 3
"""Files that a reason names."""

_BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")

TellOf = Callable[[str, DownloadProgress], None]


def ignore_model(_name: str, _progress: DownloadProgress) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one model that the disk or the records have.

    Attributes:
        outcome: `available`, now proven; `damaged`: its bytes are not what they should be; `refused`: it may not or
            cannot be used; `gone`: it was recorded and is not there; `busy`: somebody fetches it, look again later.
        reason: Why it is not available.
        is_new: Whether it was not registered before.
    """

    name: str
    outcome: Literal["available", "damaged", "refused", "gone", "busy"]
    reason: str = ""
    is_new: bool = False


class NodeScan:
    """One look at all that a node has.

    Args:
        database: Where models are registered.
        node: This node's name.
        cache: Its folder.
        stop: Ends it from another thread.
        on_progress: Told how far it is, with the model's name.
    """

    def __init__(
        self,
        database: Database,
        node: str,
        cache: ModelCache,
        *,
        stop: threading.Event | None = None,
        on_progress: TellOf = ignore_model,
    ) -> None:
        self._database = database
        self._node = node
        self._cache = cache
        self._stop = stop
        self._on_progress = on_progress

    def run(self) -> list[Finding]:
        """What was found, the registered ones first.

        Raises:
            DownloadStoppedError: If it was told to stop.
        """
        with self._database.statement() as connection:
            entries = list_entries(connection)
        findings = [found for entry in entries if (found := self._check_entry(entry)) is not None]
        return [*findings, *self._look_for_others(entries)]

    def _check_entry(self, entry: ModelEntry) -> Finding | None:
        """Prove a registered model's files; None if this node has none of them, and should have none."""
        record, copy = entry.record, entry.find_copy(self._node)
        manifest = record.manifest
        if manifest is None or entry.status is ModelStatus.REMOVING:
            return None
        try:
            if record.source is ModelSource.HUB and record.repo is not None:
                folder = self._cache.find_snapshot(record.repo, manifest.commit)
                if folder.is_dir():
                    return self._check_snapshot(record, record.repo, manifest)
            elif copy is not None:
                folder = Path(copy.folder)
                if folder.is_dir():
                    return self._note(record, manifest, folder, self._find_bad_in(folder, record.name, manifest))
        except OSError as exc:
            return Finding(record.name, "refused", _describe_unreadable(exc))
        return None if copy is None else self._forget(entry, copy.folder)

    def _check_snapshot(self, record: ModelRecord, repo: str, manifest: Manifest) -> Finding:
        with self._cache.lock_to_write(repo, AT_ONCE) as is_ours:
            if not is_ours:
                return Finding(record.name, "busy", _BUSY)
            bad = self._find_bad(repo, manifest, record.name, record.revision)
            return self._note(record, manifest, self._cache.find_snapshot(repo, manifest.commit), bad)

    def _look_for_others(self, entries: Sequence[ModelEntry]) -> Iterator[Finding]:
        known = {entry.name: entry for entry in entries}
        commits = {(entry.record.repo, _commit_of(entry)) for entry in entries}
        for repo in list_repos(self._cache):
            for commit, names in list_snapshots(self._cache, repo).items():
                if not names and (repo, commit) in commits:
                    continue
                named = names or [ModelName(repo, commit)]
                fresh = [name for name in named if str(name) not in known or _commit_of(known[str(name)]) is None]
                if fresh:
                    yield from self._adopt(repo, commit, fresh)
                for name in named:
                    registered = None if name in fresh else _commit_of(known[str(name)])
                    if registered not in {None, commit}:
                        remedy = f"remove that to have {commit}, or name it {repo}@{commit}"
                        yield Finding(str(name), "refused", f"it is registered at commit {registered}; {remedy}")

    def _adopt(self, repo: str, commit: str, names: Sequence[ModelName]) -> list[Finding]:
        """Register what a snapshot holds, under the names that it has there."""
        with self._cache.lock_to_write(repo, AT_ONCE) as is_ours:
            if not is_ours:
                return [Finding(str(name), "busy", _BUSY) for name in names]
            try:
                manifest = self._choose_files(names[0], commit)
                bad = self._find_bad(repo, manifest, str(names[0]), names[0].revision)
                if bad:
                    return [Finding(str(name), "damaged", describe_bad(bad, _fetch_remedy(name))) for name in names]
                folder = self._cache.find_snapshot(repo, commit)
                proven = fill_record(
                    ModelRecord(str(names[0]), ModelSource.HUB, repo=repo, manifest=manifest), describe_model(folder)
                )
            except (AlteredFileError, FileNotFoundError) as exc:
                return [Finding(str(name), "damaged", f"{exc}; {_fetch_remedy(name)}") for name in names]
            except InvalidModelError as exc:
                return [Finding(str(name), "refused", exc.remedy) for name in names]
            except OSError as exc:
                return [Finding(str(name), "refused", _describe_unreadable(exc)) for name in names]
            return [
                self._register(replace(proven, name=str(name), revision=name.revision), manifest, folder)
                for name in names
            ]

    def _choose_files(self, name: ModelName, commit: str) -> Manifest:
        folder = self._cache.find_snapshot(name.repo, commit)
        files, unproven = read_links(folder)
        try:
            return choose_files(HubModel(name, commit, files), lambda path: (folder / path).read_bytes())
        except InvalidModelError as exc:
            if not unproven:
                raise
            unknown = f"no hash is known of {_name_some(unproven)}, which are no links to blobs; fetch it again"
            raise InvalidModelError("model", str(name), f"{exc.remedy}; {unknown}") from exc

    def _find_bad(self, repo: str, manifest: Manifest, name: str, revision: str | None) -> list[ModelFile]:
        tell = partial(self._on_progress, name)
        return find_bad_files(self._cache, repo, manifest, revision, stop=self._stop, on_progress=tell)

    def _find_bad_in(self, folder: Path, name: str, manifest: Manifest) -> list[ModelFile]:
        return find_bad_in_folder(folder, manifest, stop=self._stop, on_progress=partial(self._on_progress, name))

    def _register(self, record: ModelRecord, manifest: Manifest, folder: Path) -> Finding:
        with self._database.transaction() as connection:
            is_new = insert_entry(connection, record)
            if not is_new:
                describe_entry(connection, record)
        note_proof(self._database, node=self._node, name=record.name, manifest=manifest, folder=folder, bad=[])
        return Finding(record.name, "available", is_new=is_new)

    def _note(self, record: ModelRecord, manifest: Manifest, folder: Path, bad: Sequence[ModelFile]) -> Finding:
        note_proof(self._database, node=self._node, name=record.name, manifest=manifest, folder=folder, bad=bad)
        if not bad:
            return Finding(record.name, "available")
        return Finding(record.name, "damaged", describe_bad(bad, find_remedy(record)))

    def _forget(self, entry: ModelEntry, folder: str) -> Finding:
        with self._database.transaction() as connection:
            delete_copy(connection, entry.name, self._node)
        is_local = entry.record.source is not ModelSource.HUB
        remedy = f"'bitinglip model remove {entry.name}' forgets it" if is_local else _fetch_remedy(entry.name)
        return Finding(entry.name, "gone", f"{folder} is not there; {remedy}")


def list_repos(cache: ModelCache) -> list[str]:
    """The models of which a cache has anything, by name."""
    names = (path.name.removeprefix("models--") for path in cache.folder.glob("models--*") if path.is_dir())
    return sorted(repo for repo in (name.replace("--", "/") for name in names) if _is_repo(repo))


def list_snapshots(cache: ModelCache, repo: str) -> dict[str, list[ModelName]]:
    """The commits that a cache has of a model, with the names by which each is known there; perhaps none."""
    home = cache.find_repo(repo)
    refs = [(path.relative_to(home / "refs").as_posix(), path) for path in (home / "refs").rglob("*") if path.is_file()]
    commits: dict[str, list[ModelName]] = {
        path.name: [] for path in sorted((home / "snapshots").glob("*")) if path.is_dir() and is_commit(path.name)
    }
    for revision, path in sorted(refs):
        commit = path.read_text(encoding="utf-8", errors="replace").strip()
        if commit in commits and is_revision(revision):
            commits[commit].append(ModelName.parse(repo, revision))
    return commits


def read_links(snapshot: Path) -> tuple[tuple[ModelFile, ...], list[str]]:
    """What a snapshot's files should be by the names of their blobs, and the files of which nothing says so."""
    files, unproven = [], []
    for path in sorted(snapshot.rglob("*")):
        name = path.relative_to(snapshot).as_posix()
        if not is_file_path(name) or (path.is_dir() and not path.is_symlink()):
            continue
        digest = path.readlink().name if path.is_symlink() else ""
        if not _BLOB.fullmatch(digest):
            unproven.append(name)
            continue
        size = path.stat().st_size if path.exists() else 0
        is_sha256 = len(digest) == _SHA256_DIGITS
        files.append(ModelFile(name, size, digest if is_sha256 else None, None if is_sha256 else digest))
    return tuple(files), unproven


_BUSY = "it is being fetched; scan again once that has ended"
_SHA256_DIGITS = 64


def _is_repo(text: str) -> bool:
    try:
        return ModelName.parse(text).revision is None
    except InvalidRequestError:
        return False


def _commit_of(entry: ModelEntry) -> str | None:
    return entry.record.manifest.commit if entry.record.manifest else None


def describe_bad(bad: Sequence[ModelFile], remedy: str) -> str:
    """Which files are not what they should be, and what to do."""
    return f"missing, or with other bytes than they should have: {_name_some([file.path for file in bad])}; {remedy}"


def find_remedy(record: ModelRecord) -> str:
    """What to do about a copy that is damaged."""
    if record.source is ModelSource.HUB:
        return f"repair it with 'bitinglip model verify {record.name}'"
    if record.source is ModelSource.BUNDLED:
        return "it comes with bitinglip: install that again"
    anew = f"'bitinglip model remove {record.name}' and 'bitinglip model scan {record.name}'"
    return f"nobody else has them: put the files back, or register the folder as it is now with {anew}"


def _fetch_remedy(name: object) -> str:
    return f"fetch it with 'bitinglip model pull {name}'"


def _describe_unreadable(exc: OSError) -> str:
    return f"it cannot be read ({exc}); let this user read its files"


def _name_some(paths: Sequence[str]) -> str:
    more = len(paths) - MAX_NAMED
    return ", ".join([*paths[:MAX_NAMED], *([f"and {more} more"] if more > 0 else [])])
