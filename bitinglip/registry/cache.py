"""The models' files on one node, in huggingface_hub's own layout, so that an existing cache is used and shared.

    <folder>/models--ORG--NAME/blobs/<digest>            one file's bytes, by its hash
                               blobs/<digest>.part       what has been fetched of it
                               snapshots/<commit>/<path> a link to its blob
                               refs/<revision>           a commit
    <folder>/.locks/models--ORG--NAME.{write,use}.lock

After https://huggingface.co/docs/huggingface_hub/guides/manage-cache. huggingface_hub itself fetches into files of
other names, so the two never write to the same one.

Invariant: whoever changes a model's files holds its write lock, whoever reads them a share of its use lock, and whoever
deletes them both.
"""

import contextlib
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from bitinglip.domain.models import Manifest, ModelFile

LOCK_POLL_SECONDS = 0.1

_STORE_FILE = ".bitinglip-store"


class ModelCache:
    """One node's folder of models.

    Args:
        folder: None: huggingface_hub's, as `HF_HUB_CACHE` and `HF_HOME` say.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(constants.HF_HUB_CACHE)

    def find_store_id(self) -> uuid.UUID:
        """What the folder is known by: nodes that see the same folder read the same id.

        Raises:
            OSError: If the folder cannot be written.
        """
        path = self.folder / _STORE_FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / f"{_STORE_FILE}.{uuid.uuid4().hex}"
        if not path.exists():
            fresh.write_text(str(uuid.uuid4()))
            # Whoever links first names the folder.
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(fresh)
            fresh.unlink()
        return uuid.UUID(path.read_text().strip())

    def find_repo(self, repo: str) -> Path:
        """Where a model's files are, or would be."""
        return self.folder / repo_folder_name(repo_id=repo, repo_type="model")

    def find_blob(self, repo: str, file: ModelFile) -> Path:
        """Where a file's bytes are, or would be."""
        return self.find_repo(repo) / "blobs" / file.digest

    def find_part(self, repo: str, file: ModelFile) -> Path:
        """Where a file's bytes are while it is fetched."""
        return self.find_repo(repo) / "blobs" / f"{file.digest}.part"

    def find_snapshot(self, repo: str, commit: str) -> Path:
        """The folder that an engine loads."""
        return self.find_repo(repo) / "snapshots" / commit

    def list_missing(self, repo: str, manifest: Manifest) -> list[ModelFile]:
        """The files whose blobs are not there, or have another size."""
        return [file for file in manifest.files if not _has_size(self.find_blob(repo, file), file.size)]

    def is_linked(self, repo: str, manifest: Manifest) -> bool:
        """Whether the snapshot has every file, each of its size. Nothing is read."""
        snapshot = self.find_snapshot(repo, manifest.commit)
        return all(_has_size(snapshot / file.path, file.size) for file in manifest.files)

    def link(self, repo: str, manifest: Manifest, revision: str | None) -> Path:
        """Make the snapshot of files whose blobs are there; returns its folder.

        Raises:
            OSError: If the folder cannot be written.
        """
        snapshot = self.find_snapshot(repo, manifest.commit)
        for file in manifest.files:
            path = snapshot / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(self.find_blob(repo, file), path.parent)
            if path.is_symlink() and os.readlink(path) == target:
                continue
            fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            fresh.symlink_to(target)
            fresh.replace(path)
        ref = self.find_repo(repo) / "refs" / (revision or "main")
        if (revision or "main") != manifest.commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(manifest.commit)
        return snapshot

    def delete_parts(self, repo: str) -> None:
        """Delete what has been fetched of files that are not whole."""
        for part in (self.find_repo(repo) / "blobs").glob("*.part"):
            part.unlink(missing_ok=True)

    def delete_orphans(self, repo: str, manifest: Manifest) -> None:
        """Delete those of a manifest's blobs that no snapshot links, and the model's folder if nothing else is in it.

        Raises:
            OSError: If something of it cannot be deleted.
        """
        kept = self._find_linked(repo)
        for blob in (self.find_blob(repo, file) for file in manifest.files):
            if os.path.realpath(blob) not in kept:
                blob.unlink(missing_ok=True)
        home = self.find_repo(repo)
        if not any(path.is_symlink() or not path.is_dir() for path in home.rglob("*")):
            shutil.rmtree(home, ignore_errors=True)

    def has_any(self, repo: str, manifest: Manifest) -> bool:
        """Whether there is anything of a manifest's files, be it a part of one."""
        return any(
            self.find_blob(repo, file).exists() or self.find_part(repo, file).exists() for file in manifest.files
        )

    def unlink(self, repo: str, commit: str) -> None:
        """Delete a snapshot, and what calls it by name; its blobs stay.

        Raises:
            OSError: If something of it cannot be deleted.
        """
        snapshot = self.find_snapshot(repo, commit)
        if snapshot.exists():
            shutil.rmtree(snapshot)
        for ref in (path for path in (self.find_repo(repo) / "refs").rglob("*") if path.is_file()):
            if ref.read_text().strip() == commit:
                ref.unlink()

    def delete(self, repo: str, commit: str) -> int:
        """Delete one commit of a model, with the blobs that no other commit links; returns the bytes that came free.

        Raises:
            OSError: If something of it cannot be deleted.
        """
        self.unlink(repo, commit)
        home = self.find_repo(repo)
        kept = self._find_linked(repo)
        freed = 0
        for blob in list((home / "blobs").glob("*")):
            if os.path.realpath(blob) not in kept:
                freed += blob.stat().st_size
                blob.unlink()
        if not kept:
            shutil.rmtree(home, ignore_errors=True)
        return freed

    def _find_linked(self, repo: str) -> set[str]:
        """The files that some snapshot links."""
        snapshots = self.find_repo(repo) / "snapshots"
        return {os.path.realpath(path) for path in snapshots.rglob("*") if path.is_symlink()}

    @contextlib.contextmanager
    def lock_to_write(self, repo: str, stop: threading.Event | None = None) -> Iterator[bool]:
        """Be the only one who writes to a model's files; False if told to stop before it was one's turn."""
        with self._open_lock(repo, "write") as descriptor:
            yield _wait_for_lock(descriptor, stop or threading.Event())

    def lock_to_use(self, repo: str) -> int:
        """Keep a model's files from being deleted until the descriptor that is returned is closed.

        Waits while they are being deleted.

        Raises:
            OSError: If the folder cannot be written.
        """
        descriptor = self._open(repo, "use")
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    @contextlib.contextmanager
    def lock_to_delete(self, repo: str) -> Iterator[bool]:
        """Be the only one who has to do with a model's files, if nobody has now; False if somebody has."""
        with self._open_lock(repo, "write") as write, self._open_lock(repo, "use") as use:
            yield _try_lock(write) and _try_lock(use)

    @contextlib.contextmanager
    def _open_lock(self, repo: str, purpose: str) -> Iterator[int]:
        descriptor = self._open(repo, purpose)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, repo: str, purpose: str) -> int:
        path = self.folder / ".locks" / f"{self.find_repo(repo).name}.{purpose}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(descriptor: int, stop: threading.Event) -> bool:
    while not _try_lock(descriptor):
        if stop.wait(LOCK_POLL_SECONDS):
            return False
    return True
