"""Bytes proven against a manifest: by SHA-256, or by the hash of the git blob that a small file is.

Threads read several files at once; hashlib lets go of the interpreter while it computes, so each has a core of its own.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol, TypeVar

from bitinglip.domain.models import Manifest, ModelFile, is_file_path
from bitinglip.errors import DownloadStoppedError, InvalidModelError

BUFFER_BYTES = 2**20
MAX_THREADS = 8


class _Sized(Protocol):
    @property
    def size(self) -> int: ...


F = TypeVar("F", bound=_Sized)
T = TypeVar("T")


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Go on with these bytes."""

    def hexdigest(self) -> str:
        """Of all bytes so far, in hex."""


def start_digest(file: ModelFile) -> Digest:
    """What makes the file's digest once it has been fed all of its bytes."""
    if file.sha256:
        return hashlib.sha256()
    # Git's own hash: who finds another file of it and of the same length has to fool git as well.
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def feed_digest(
    digest: Digest, stream: FileIO, *, on_bytes: Callable[[int], None], stop: threading.Event | None
) -> int:
    """Feed a digest what follows in an unbuffered stream; returns how many bytes that was.

    Raises:
        DownloadStoppedError: If it was told to stop.
        OSError: If it cannot be read.
    """
    buffer = memoryview(bytearray(BUFFER_BYTES))
    total = 0
    while count := stream.readinto(buffer):
        digest.update(buffer[:count])
        total += count
        on_bytes(count)
        if stop is not None and stop.is_set():
            raise DownloadStoppedError(str(stream.name))
    return total


def is_content(content: bytes, file: ModelFile) -> bool:
    """Whether these bytes are the manifest's."""
    digest = start_digest(file)
    digest.update(content)
    return len(content) == file.size and digest.hexdigest() == file.digest


def hash_file(
    path: Path,
    file: ModelFile,
    *,
    on_bytes: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> bool:
    """Whether the bytes at a path are the manifest's; False too if there is no such file.

    Args:
        path: What is read.
        file: What it should be.
        on_bytes: Told how many bytes have been read since it was called last.
        stop: Ends it from another thread.

    Raises:
        DownloadStoppedError: If it was told to stop.
        OSError: If the file is there and cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size != file.size:
                return False
            digest = start_digest(file)
            read = feed_digest(digest, stream, on_bytes=on_bytes or _ignore, stop=stop)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    return read == file.size and digest.hexdigest() == file.digest


def verify_files(
    locate: Callable[[ModelFile], Path],
    files: Sequence[ModelFile],
    *,
    threads: int | None = None,
    on_bytes: Callable[[ModelFile, int], None] | None = None,
    stop: threading.Event | None = None,
) -> list[ModelFile]:
    """The files whose bytes are not the manifest's, or that are not there, in the order in which they were given.

    Args:
        locate: Where a file is.
        files: What is read, the largest first.
        threads: How many files at once; None: as many as this process may use cores.
        on_bytes: Told, in any thread, how many bytes of a file have been read since it was last called for that file.
        stop: Ends it from another thread.

    Raises:
        DownloadStoppedError: If it was told to stop.
        OSError: If a file is there and cannot be read.
    """
    tell = on_bytes or _ignore

    def is_good(file: ModelFile) -> bool:
        return hash_file(locate(file), file, on_bytes=lambda count: tell(file, count), stop=stop)

    good = _map_largest_first(is_good, files, threads)
    return [file for file, proven in zip(files, good, strict=True) if not proven]


def make_manifest_of_folder(folder: Path) -> Manifest:
    """What a local folder is made of: each of its files by SHA-256, with a digest of them all in the commit's place.

    Hidden files, and those of names that no model's file has, are left out.

    Raises:
        InvalidModelError: If there is no file in it, or one cannot be read.
    """
    try:
        files = [_stat_file(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        found = [file for file in files if file is not None]
        digests = list(_map_largest_first(lambda file: _sha256(folder / file.path), found, None))
    except OSError as exc:
        raise InvalidModelError("model", str(folder), f"cannot be read ({exc}); let this user read its files") from exc
    if not found:
        raise InvalidModelError("model", str(folder), "no file in it; name a folder with a whole model")
    hashed = tuple(ModelFile(file.path, file.size, sha256) for (file, sha256) in zip(found, digests, strict=True))
    listing = "".join(f"{file.sha256} {file.size} {file.path}\n" for file in hashed)
    return Manifest(hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest(), hashed)


@dataclass(frozen=True, slots=True)
class _Found:
    path: str
    size: int


def _stat_file(folder: Path, path: Path) -> _Found | None:
    name = path.relative_to(folder).as_posix()
    return _Found(name, path.stat().st_size) if is_file_path(name) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        feed_digest(digest, stream, on_bytes=_ignore, stop=None)
    return digest.hexdigest()


def _map_largest_first(function: Callable[[F], T], files: Sequence[F], threads: int | None) -> list[T]:
    """The function of each file, in their order; it is called in threads, for the largest first.

    In any other order, the last thread may still be at the largest file when all others have nothing left to do.
    """
    count = threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)
    largest_first = sorted(range(len(files)), key=lambda index: -files[index].size)
    pool = ThreadPoolExecutor(count, thread_name_prefix="hashing")
    try:
        started = {index: pool.submit(function, files[index]) for index in largest_first}
        return [started[index].result() for index in range(len(files))]
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore(*_: object) -> None:
    """Nobody wants to know."""
