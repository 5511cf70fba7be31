"""What is served: files by their hashes, commits by their content, branches by name."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

LARGE_SUFFIXES = {".safetensors", ".gguf", ".bin", ".pt", ".pth"}
LARGE_BYTES = 10 * 2**20
"""From this size on, or with such a suffix, a file is in Git LFS, as the hub's `.gitattributes` have it."""

UNSERVED_FOLDERS = {".git", ".cache"}


@dataclass(frozen=True)
class ServedFile:
    """One file of a commit. `sha256` is None for a file that is in git itself, and not in LFS."""

    path: str
    source: Path
    size: int
    blob_id: str
    sha256: str | None = None
    pointer_bytes: int = 0

    @property
    def etag(self) -> str:
        """The hash that the hub names it by."""
        return self.sha256 or self.blob_id

    @property
    def xet_hash(self) -> str:
        """A hash as Xet's are; nothing is stored under it."""
        return hashlib.sha256(f"xet {self.etag}".encode()).hexdigest()


@dataclass(frozen=True)
class Commit:
    """Files by path, as they were."""

    id: str
    files: dict[str, ServedFile]
    created_at: datetime


@dataclass
class Repo:
    """A repository: its commits, its branches, and who may read it.

    Args:
        name: Of the form `org/name`.
        private: Whether it does not exist for those who may not read it.
        gated: Whether only its metadata is for everybody.
        readers: The tokens that may read it if it is private or gated.
        licence: As the hub abbreviates it: `mit`, `apache-2.0`.
        tags: Further tags.
        xet: Whether its large files claim to be in Xet storage as well.
        large_bytes: The size from which on a file is in LFS, whatever its suffix.
    """

    name: str
    private: bool = False
    gated: bool = False
    readers: frozenset[str] = frozenset()
    licence: str | None = None
    tags: Sequence[str] = ()
    pipeline_tag: str | None = None
    made_for: str | None = None
    xet: bool = False
    large_bytes: int = LARGE_BYTES
    branches: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, folder: Path, branch: str) -> Commit:
        """A commit of the folder's files; the branch points to it from now on."""
        files = {file.path: file for file in _read_folder(folder, self.large_bytes)}
        listing = "".join(f"{file.blob_id} {path}\n" for path, file in files.items())
        made = Commit(hashlib.sha1(listing.encode()).hexdigest(), files, datetime.now(UTC))
        self.branches[branch] = self.commits.setdefault(made.id, made)
        return self.branches[branch]

    def find_commit(self, revision: str) -> Commit | None:
        """The commit of that id, or of the branch of that name."""
        return self.commits.get(revision) or self.branches.get(revision)

    def describe(self, commit: Commit, *, with_blobs: bool) -> dict[str, Any]:
        """The hub's JSON of a model at a commit."""
        return {
            "id": self.name,
            "author": self.name.partition("/")[0],
            "sha": commit.id,
            "lastModified": commit.created_at.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "tags": [*self.tags, *([f"license:{self.licence}"] if self.licence else [])],
            "pipeline_tag": self.pipeline_tag,
            "library_name": self.made_for,
            "cardData": {"license": self.licence} if self.licence else {},
            "siblings": [_describe_sibling(file, with_blobs=with_blobs) for file in commit.files.values()],
        }

    def list_tree(self, commit: Commit, folder: str) -> list[dict[str, Any]]:
        """The hub's JSON of the files below a folder of a commit, all of them; '' is the top."""
        start = f"{folder}/" if folder else ""
        return [self._describe_entry(file) for path, file in commit.files.items() if path.startswith(start)]

    def _describe_entry(self, file: ServedFile) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": file.path, "oid": file.blob_id, "size": file.size}
        if file.sha256:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_bytes}
            if self.xet:
                entry["xetHash"] = file.xet_hash
        return entry


def _describe_sibling(file: ServedFile, *, with_blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": file.path}
    if with_blobs:
        sibling |= {"size": file.size, "blobId": file.blob_id}
        if file.sha256:
            sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_bytes}
    return sibling


def _read_folder(folder: Path, large_bytes: int) -> Iterator[ServedFile]:
    for source in sorted(folder.rglob("*")):
        path = source.relative_to(folder)
        if source.is_file() and not UNSERVED_FOLDERS.intersection(path.parts):
            yield _read_file(source.resolve(), path, large_bytes)


def _read_file(source: Path, path: Path, large_bytes: int) -> ServedFile:
    stat = source.stat()
    if stat.st_size < large_bytes and path.suffix not in LARGE_SUFFIXES:
        blob_id = _hash_blob(source.read_bytes())
        return ServedFile(path.as_posix(), source, stat.st_size, blob_id)
    sha256 = _hash_large(source, stat.st_size, stat.st_mtime_ns)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {stat.st_size}\n".encode()
    return ServedFile(path.as_posix(), source, stat.st_size, _hash_blob(pointer), sha256, len(pointer))


def _hash_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# Size and time are there to have a changed file hashed again.
@lru_cache(maxsize=4096)
def _hash_large(source: Path, _size: int, _mtime_ns: int) -> str:
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
