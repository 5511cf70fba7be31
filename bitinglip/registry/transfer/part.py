"""What has been fetched of a file: kept from one attempt to the next, hashed as it grows.

Invariant: the digest is that of exactly the bytes in front of `position`, so that a part whose digest is the manifest's
is the file, whoever wrote which of its bytes.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from bitinglip.domain.models import ModelFile
from bitinglip.errors import DiskFullError
from bitinglip.registry.hashing import feed_digest, start_digest

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Part:
    """A file on its way, open.

    Args:
        path: Where its bytes are; whatever is there and cannot be a part of the file is deleted.
        file: What it will be.
        model: For errors.
        on_position: Told how many bytes are there, whenever that changes.
        stop: Ends the reading of what is there from another thread.

    Attributes:
        position: How many bytes are there.
        resumed: Whether some of them were there before it was opened.

    Raises:
        DownloadStoppedError: If it was told to stop.
        OSError: If it can be neither read nor made.
    """

    def __init__(
        self, path: Path, file: ModelFile, *, model: str, on_position: Callable[[int], None], stop: threading.Event
    ) -> None:
        self.path = path
        self.file = file
        self.position = 0
        self._model = model
        self._on_position = on_position
        self._digest = start_digest(file)
        self._stream = _open_part(path, file.size)
        try:
            feed_digest(self._digest, self._stream, on_bytes=self._advance, stop=stop)
        except BaseException:
            self._stream.close()
            raise
        self.resumed = self.position > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def is_whole(self) -> bool:
        """Whether no byte is missing."""
        return self.position == self.file.size

    @property
    def is_proven(self) -> bool:
        """Whether its bytes are the manifest's."""
        return self.is_whole and self._digest.hexdigest() == self.file.digest

    def append(self, chunk: bytes) -> None:
        """Add what follows; bytes beyond the file's end are dropped.

        Raises:
            DiskFullError: If there is no room for it.
            OSError: If it cannot be written.
        """
        left = memoryview(chunk)[: self.file.size - self.position]
        self._digest.update(left)
        try:
            while left:
                written = self._stream.write(left)
                left = left[written:]
                self._advance(written)
        except OSError as exc:
            if exc.errno not in _FULL:
                raise
            raise self._describe_full_disk() from exc

    def restart(self) -> None:
        """Forget every byte.

        Raises:
            OSError: If it cannot be written.
        """
        self._stream.seek(0)
        self._stream.truncate()
        self._digest = start_digest(self.file)
        self.resumed = False
        self.position = 0
        self._on_position(0)

    def keep(self, blob: Path) -> None:
        """Make it the file that it has become, on the disk as well.

        Raises:
            OSError: If it cannot be written.
        """
        # What is registered as proven must be found as it was after the machine has lost its power.
        os.fdatasync(self._stream.fileno())
        self.path.replace(blob)

    def delete(self) -> None:
        """Delete it."""
        self.path.unlink(missing_ok=True)

    def _advance(self, count: int) -> None:
        self.position += count
        self._on_position(self.position)

    def _describe_full_disk(self) -> DiskFullError:
        disk = os.statvfs(self.path.parent)
        reason = f"in {self.path.parent}: {self.file.path} does not fit; delete something there, or give it more disk"
        return DiskFullError(
            self._model,
            needed_bytes=self.file.size - self.position,
            free_bytes=disk.f_bavail * disk.f_frsize,
            reason=reason,
        )


def _open_part(path: Path, size: int) -> FileIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = path.lstat()
        # A link could lead what is written anywhere; more bytes than the file has are none of it.
        if not stat.S_ISREG(found.st_mode) or found.st_size > size:
            path.unlink()
    except FileNotFoundError:
        pass
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    return FileIO(descriptor, "r+")
