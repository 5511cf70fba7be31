"""The place where artifacts are kept: a folder, or what fsspec reaches by a URL.

Invariant: a file is there whole or not at all under its name, and on the disk before `put` returns: the record that
names it is durable, too.

Weakness: a store's folders are listed at once, some 200 bytes each.
"""

import errno
import hashlib
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from bitinglip.artifacts import folder, remote
from bitinglip.domain.artifacts import is_artifact_name
from bitinglip.errors import (
    ArtifactDamagedError,
    ArtifactDiskFullError,
    ArtifactNotFoundError,
    ArtifactStoreError,
    ArtifactStoreTakenError,
    BitingLipError,
    ConfigurationError,
    InvalidRequestError,
)
from bitinglip.settings import ArtifactSettings, ServerSettings, load_settings

CHUNK_BYTES = 1 << 20
ID_FILE = ".bitinglip-store"
OWNER_FILE = ".bitinglip-owner"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the store.

    Attributes:
        name: Of the artifact, or of what a killed process left of one.
        size: In bytes.
        modified_at: When it was written, by the store's clock.
    """

    name: str
    size: int
    modified_at: datetime


class ArtifactStore:
    """Where artifacts are kept. Threads may share it.

    Args:
        url: A folder, or a URL that fsspec knows.
        endpoint_url: Of a server that speaks S3.
        spare_bytes: Of a folder's disk that is left free.

    Attributes:
        place: The folder or URL, for people: without a password.

    Raises:
        ConfigurationError: If no installed package knows such URLs.
    """

    def __init__(self, url: str, *, endpoint_url: str | None = None, spare_bytes: int = 0) -> None:
        self.place = remote.hide_credentials(url)
        self._spare_bytes = spare_bytes
        try:
            self._files, self._root = remote.open_files(url, endpoint_url)
        except (ImportError, ValueError) as exc:
            reason = remote.hide_credentials(str(exc))
            remedy = "name a folder, or s3://bucket/prefix with the package bitinglip[s3]"
            raise ConfigurationError(f"BITINGLIP_ARTIFACT_URL is {self.place!r}: {reason}; {remedy}") from exc

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine's file system."""
        return isinstance(self._files, LocalFileSystem)

    def find_id(self) -> uuid.UUID:
        """What the store is known by: nodes that see the same one read the same id.

        Raises:
            ArtifactStoreError: If it cannot be read or written.
        """
        try:
            return uuid.UUID(self._find_mark(ID_FILE, str(uuid.uuid4())))
        except ValueError as exc:
            raise ArtifactStoreError(self.place, f"its file {ID_FILE} holds no id; delete that file") from exc

    def check_owner(self, owner: str) -> None:
        """See that no other system keeps its artifacts here; who comes first owns the place.

        Two would each delete what the other's records name.

        Args:
            owner: What this system is known by.

        Raises:
            ArtifactStoreTakenError: If another one was first.
            ArtifactStoreError: If the store cannot be read or written.
        """
        if self._find_mark(OWNER_FILE, owner) != owner:
            raise ArtifactStoreTakenError(self.place, OWNER_FILE)

    def check_there(self) -> None:
        """See that a folder is what it was when its owner was checked; a URL is.

        Raises:
            ArtifactStoreError: If it is not: its disk is not mounted, or somebody has emptied it.
        """
        if self.is_folder and not Path(self._join(OWNER_FILE)).exists():
            raise ArtifactStoreError(
                self.place, f"its file {OWNER_FILE} is gone; mount its disk, or start the worker anew"
            )

    def check_reachable(self) -> None:
        """See that the store answers; nothing is written, and its folder or prefix need not be there yet.

        Raises:
            ArtifactStoreError: If it does not.
        """
        with self._translated():
            self._exists(self._join(OWNER_FILE))

    def check_room(self, more_bytes: int = 0) -> None:
        """See that the folder's disk has room for more; a URL's has. Nothing is written.

        Args:
            more_bytes: That are to be written.

        Raises:
            ArtifactDiskFullError: If no more than what is to be spared is free.
            ArtifactStoreError: If the disk cannot be looked at.
        """
        if not self.is_folder:
            return
        root = Path(self._root)
        with self._translated():
            free_bytes = shutil.disk_usage(next(place for place in (root, *root.parents) if place.exists())).free
        if free_bytes - more_bytes <= self._spare_bytes:
            raise ArtifactDiskFullError(self.place, free_bytes=free_bytes, spare_bytes=self._spare_bytes)

    def put(self, source: Path, name: str, *, size: int, sha256: str) -> None:
        """Keep a copy of a file.

        Args:
            source: The file.
            name: That no artifact has yet.
            size: Of the file, in bytes, as whoever made it says.
            sha256: Of its bytes, in hex digits.

        Raises:
            InvalidRequestError: If no artifact has such a name.
            ArtifactDamagedError: If the file has another size or hash, or is gone.
            ArtifactDiskFullError: If there is no room.
            ArtifactStoreError: If the store cannot be used.
        """
        path = self._join_name(name)
        try:
            file = source.open("rb")
        except OSError as exc:
            raise ArtifactDamagedError(name, f"{source.name} cannot be read: {exc.strerror}; try again") from exc
        digest, copied_bytes = hashlib.sha256(), 0
        with file, self._translated(), self._create(path) as copy:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                copied_bytes += len(chunk)
                copy.write(chunk)
            if (copied_bytes, digest.hexdigest()) != (size, sha256):
                raise ArtifactDamagedError(name, f"{source.name} was changed after it was made; try again")

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Read a file, for the length of a block. Errors of the block's own input and output are taken for the store's.

        Raises:
            InvalidRequestError: If no artifact has such a name.
            ArtifactNotFoundError: If it is not there.
            ArtifactStoreError: If the store cannot be used.
        """
        with self._translated(name), self._files.open(self._join_name(name), "rb") as file:
            yield cast("BinaryIO", file)

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to this machine. What cannot be copied whole is deleted there.

        Raises:
            InvalidRequestError: If no artifact has such a name.
            ArtifactNotFoundError: If it is not there.
            ArtifactDiskFullError: If this machine has no room.
            ArtifactStoreError: If the store cannot be used.
            OSError: If the target cannot be written.
        """
        try:
            with target.open("wb") as copy:
                for chunk in self._read(name):
                    copy.write(chunk)
        except BaseException as exc:
            with suppress(OSError):
                target.unlink()
            if isinstance(exc, OSError) and exc.errno in _NO_ROOM:
                raise ArtifactDiskFullError(str(target.parent), free_bytes=0, spare_bytes=0) from exc
            raise

    def locate(self, name: str) -> str:
        """Where a file is, for people: its path or its URL.

        Raises:
            InvalidRequestError: If no artifact has such a name.
        """
        path = self._join_name(name)
        return path if self.is_folder else str(self._files.unstrip_protocol(path))

    def list_folders(self) -> list[str]:
        """The folders there are: ids of tasks, and that of uploads.

        Raises:
            ArtifactStoreError: If the store cannot be used.
        """
        with self._translated():
            entries = self._list(self._root)
        return [PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory"]

    def list_files(self, folder_name: str) -> list[StoredFile]:
        """The files of a folder; none if it is not there. What the store did not write is left out.

        Raises:
            ArtifactStoreError: If the store cannot be used.
        """
        with self._translated():
            entries = self._list(self._join(folder_name))
        files = [_read_entry(folder_name, entry) for entry in entries if entry["type"] == "file"]
        return [file for file in files if is_artifact_name(folder.strip_draft(file.name))]

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, and a folder with its last one. Those that are gone already do not matter.

        Raises:
            InvalidRequestError: If the store writes no file of such a name.
            ArtifactStoreError: If the store cannot be used. Those before are deleted.
        """
        for name in names:
            _check_name(folder.strip_draft(name))
            path = self._join(name)
            with self._translated(), suppress(FileNotFoundError):
                if self.is_folder:
                    folder.delete_file(Path(path))
                else:
                    self._files.rm_file(path)

    def _find_mark(self, file: str, content: str) -> str:
        """What a small file says, and has said since it was first asked for."""
        path = self._join(file)
        with self._translated():
            if not self._exists(path):
                self._write_once(path, content.encode())
            # Another process may have been first.
            return str(self._files.cat_file(path).decode(errors="replace"))

    def _exists(self, path: str) -> bool:
        try:
            self._files.info(path)
        except FileNotFoundError as exc:
            if remote.misses_bucket(exc):
                raise
            return False
        return True

    def _read(self, name: str) -> Iterator[bytes]:
        with self.open(name) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def _create(self, path: str) -> AbstractContextManager[BinaryIO]:
        return folder.write_file(Path(path)) if self.is_folder else remote.write_upload(self._files, path)

    def _write_once(self, path: str, content: bytes) -> None:
        if self.is_folder:
            folder.write_once(Path(path), content)
        else:
            remote.write_once(self._files, path, content)

    def _list(self, path: str) -> list[dict[str, Any]]:
        try:
            return cast("list[dict[str, Any]]", self._files.ls(path, detail=True))
        except FileNotFoundError as exc:
            if remote.misses_bucket(exc):
                raise
            return []

    def _join(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _join_name(self, name: str) -> str:
        _check_name(name)
        return self._join(name)

    @contextmanager
    def _translated(self, name: str | None = None) -> Iterator[None]:
        """What goes wrong in the block, as an error of ours; with a name, its file may be missing."""
        try:
            yield
        except Exception as exc:
            if not remote.is_failure(exc):
                raise
            raise self._translate(exc, name) from exc

    def _translate(self, exc: Exception, name: str | None) -> BitingLipError:
        if name and isinstance(exc, FileNotFoundError) and not remote.misses_bucket(exc):
            reason = f"it is not in {self.place}; its task is gone, or BITINGLIP_ARTIFACT_URL is not its worker's"
            return ArtifactNotFoundError(name, reason)
        if getattr(exc, "errno", None) in _NO_ROOM:
            return ArtifactDiskFullError(self.place, free_bytes=0, spare_bytes=self._spare_bytes)
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        return ArtifactStoreError(self.place, remote.hide_credentials(reason))


def open_artifacts(data_dir: Path | None = None) -> ArtifactStore:
    """The store that the settings name.

    Args:
        data_dir: In place of the settings' data folder, which holds the store where they name no other place.

    Raises:
        ConfigurationError: If a setting is wrong.
    """
    settings = load_settings(ArtifactSettings)
    return ArtifactStore(
        settings.artifact_url or str((data_dir or load_settings(ServerSettings).data_dir).expanduser() / "artifacts"),
        endpoint_url=settings.artifact_endpoint_url,
        spare_bytes=settings.artifact_spare_bytes,
    )


def _read_entry(folder_name: str, entry: dict[str, Any]) -> StoredFile:
    modified = entry.get("LastModified") or entry.get("mtime")
    when = modified if isinstance(modified, datetime) else datetime.fromtimestamp(float(modified or 0), UTC)
    return StoredFile(f"{folder_name}/{PurePosixPath(entry['name']).name}", int(entry["size"]), when)


def _check_name(name: str) -> None:
    if not is_artifact_name(name):
        raise InvalidRequestError("artifact", name, "no artifact has such a name; take one from a task's result")
