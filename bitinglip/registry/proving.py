"""Whether a copy's bytes are what they should be, read where an engine reads them; and the record of it.

Invariant: nobody writes to what is read: the caller holds the model's write lock, or the folder is its owner's own.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from bitinglip.domain.models import CopyState, Manifest, ModelFile
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.hashing import verify_files
from bitinglip.registry.transfer.progress import DownloadProgress, ProgressCounter
from bitinglip.store.copies import note_copy
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelCopy, note_error

AT_ONCE = threading.Event()
AT_ONCE.set()
"""A lock that is waited for until this is set is not waited for."""

Tell = Callable[[DownloadProgress], None]


def ignore_progress(_progress: DownloadProgress) -> None:
    """Nobody wants to know."""


def find_bad_files(
    cache: ModelCache,
    repo: str,
    manifest: Manifest,
    revision: str | None,
    *,
    stop: threading.Event | None = None,
    on_progress: Tell = ignore_progress,
) -> list[ModelFile]:
    """The files of a snapshot that are missing or have other bytes; links to files that are right are made anew.

    Args:
        cache: This node's.
        repo: On the hub.
        manifest: What the snapshot should be.
        revision: What the commit is known by; None: main.
        stop: Ends it from another thread.
        on_progress: Told how much has been read.

    Raises:
        DownloadStoppedError: If it was told to stop.
        OSError: If a file is there and cannot be read.
    """
    bad = find_bad_in_folder(cache.find_snapshot(repo, manifest.commit), manifest, stop=stop, on_progress=on_progress)
    lost = verify_files(lambda file: cache.find_blob(repo, file), bad, stop=stop) if bad else []
    if len(lost) < len(bad):
        cache.link(repo, Manifest(manifest.commit, tuple(file for file in bad if file not in lost)), revision)
    return lost


def find_bad_in_folder(
    folder: Path, manifest: Manifest, *, stop: threading.Event | None = None, on_progress: Tell = ignore_progress
) -> list[ModelFile]:
    """The files of a folder that are missing or have other bytes.

    Args:
        folder: Where they are, by their paths.
        manifest: What they should be.
        stop: Ends it from another thread.
        on_progress: Told how much has been read.

    Raises:
        DownloadStoppedError: If it was told to stop.
        OSError: If a file is there and cannot be read.
    """
    counter = ProgressCounter(manifest, on_progress=on_progress, note=_note_nothing)
    counter.begin("verifying")
    bad = verify_files(lambda file: folder / file.path, manifest.files, on_bytes=counter.advance, stop=stop)
    counter.tell(at_once=True)
    return bad


def note_proof(
    database: Database, *, node: str, name: str, manifest: Manifest, folder: Path, bad: Sequence[ModelFile]
) -> None:
    """Record what a node's copy was found to be: available, or damaged if any file is bad.

    Args:
        database: Where.
        node: Whose copy.
        name: The model's.
        manifest: What it should be.
        folder: Where it is.
        bad: The files that are not what they should be.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    state = CopyState.DAMAGED if bad else CopyState.AVAILABLE
    done_bytes = manifest.total_bytes - sum(file.size for file in bad)
    with database.transaction() as connection:
        note_copy(connection, ModelCopy(name, node, state, str(folder), manifest.commit, done_bytes))
        if not bad:
            note_error(connection, name, None)


def _note_nothing(_stage: str, _done_bytes: int) -> None:
    """Where a copy stands does not change while it is read."""
