"""Files in folders of this machine: whole or not at all under their names, for this user only, and on the disk."""

import fcntl
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_DRAFT = re.compile(r"\.[0-9a-f]{32}\.part")

_TRIES = 100
_PAUSE_SECONDS = 0.002


@contextmanager
def write_file(final: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when the block ends well, and is gone when it does not."""
    draft = _name_draft(final)
    try:
        with _create(draft) as file:
            yield file
            _sync_file(file)
        draft.replace(final)
    except BaseException:
        delete_file(draft)
        raise
    _sync_name(final)


def write_once(final: Path, content: bytes) -> None:
    """Write a small file, unless there is one: of those who do so at once, the first one's stays."""
    draft = _name_draft(final)
    try:
        with _create(draft) as file:
            file.write(content)
            _sync_file(file)
        with suppress(FileExistsError):
            final.hardlink_to(draft)
    finally:
        with suppress(OSError):
            draft.unlink()
    _sync_name(final)


def strip_draft(name: str) -> str:
    """The name that a file has or, if it is a draft, was to have."""
    return _DRAFT.sub("", name)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, as far as they are missing."""
    for missing in reversed([above for above in (folder, *folder.parents) if not above.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(missing.parent)


def delete_file(file: Path) -> None:
    """Delete a file that may be gone, and its folder if that is empty then.

    Raises:
        OSError: If it cannot be deleted.
    """
    with suppress(FileNotFoundError):
        file.unlink()
    # It holds more, or another process was first.
    with suppress(OSError), _lock(file.parent.parent, fcntl.LOCK_EX):
        file.parent.rmdir()


def _name_draft(final: Path) -> Path:
    """Of its own for each who writes: two may bring the same file at once."""
    return final.with_name(f"{final.name}.{uuid.uuid4().hex}.part")


def _create(file: Path) -> BinaryIO:
    root = file.parent.parent
    make_folder(root)
    for _ in range(_TRIES):
        # Whoever deletes a folder's last file takes the folder away, even one that was made, or was found, just now:
        # Path.mkdir(exist_ok=True) would look twice, and raise where the folder went in between.
        with _lock(root, fcntl.LOCK_SH):
            with suppress(FileExistsError):
                os.mkdir(file.parent, 0o700)
            with suppress(FileNotFoundError):
                return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        time.sleep(_PAUSE_SECONDS)
    raise FileNotFoundError(str(file))


@contextmanager
def _lock(root: Path, mode: int) -> Iterator[None]:
    """Let nobody take a folder away while others make files in it, as far as the file system knows of locks."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, mode)
        yield
    finally:
        os.close(descriptor)


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_name(file: Path) -> None:
    _sync_folder(file.parent)
    # It may be new.
    _sync_folder(file.parent.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
