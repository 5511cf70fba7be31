"""The pictures of a task as files of this machine.

Invariant: a file appears whole under a name that nothing had before; another file is never written over.
"""

import hashlib
import os
import re
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bitinglip.domain.catalogue import IMAGE
from bitinglip.domain.task import Task
from bitinglip.errors import ArtifactDamagedError, InvalidRequestError

if TYPE_CHECKING:
    from bitinglip.artifacts.store import ArtifactStore

MAX_SLUG_CHARS = 60


def save_pictures(store: "ArtifactStore", task: Task, folder: Path) -> list[Path]:
    """Copy the pictures of a completed task to a folder; return their paths, in the task's order.

    Args:
        store: Where they are.
        task: That made them.
        folder: It is made if need be.

    Raises:
        InvalidRequestError: If the task makes no pictures.
        ArtifactNotFoundError: If one is gone. Those before it are saved.
        ArtifactDamagedError: If one has other bytes than the record says. Try again.
        ArtifactStoreError: If the store cannot be used. Try again.
        OSError: If the folder cannot be written.
    """
    images = list_pictures(task)
    folder.mkdir(parents=True, exist_ok=True)
    slug = make_slug(task.title)
    return [_save_picture(store, image, folder, slug) for image in images]


def list_pictures(task: Task) -> list[dict[str, Any]]:
    """What a task's record says of its pictures, in their order; none before it has completed.

    Raises:
        InvalidRequestError: If it makes none.
    """
    if not makes_pictures(task):
        raise InvalidRequestError("task", str(task.id), f"a task of type {task.type!r} makes no pictures")
    images: list[dict[str, Any]] = (task.result or {}).get(IMAGE.files or "", [])
    return images


def makes_pictures(task: Task) -> bool:
    """Whether pictures are what a task makes; what others say of theirs in a result is not to be believed."""
    return task.type == IMAGE.name


def make_slug(title: str) -> str:
    """The beginning of a file's name: a title in lower-case ASCII letters, digits and hyphens; never empty."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:MAX_SLUG_CHARS].strip("-") or "image"


@contextmanager
def open_draft(folder: Path) -> Iterator[Path]:
    """A path in the folder to write at, for a file that has no name yet; gone at the end, if nobody named it."""
    draft = folder / f".{uuid.uuid4().hex}.part"
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def name_draft(draft: Path, stem: str, suffix: str) -> Path:
    """Give a file its name, or the next one that is free: `stem.suffix`, `stem-2.suffix`, ...

    Raises:
        OSError: If the folder cannot be written.
    """
    for number in count(1):
        path = draft.with_name(f"{stem}.{suffix}" if number == 1 else f"{stem}-{number}.{suffix}")
        try:
            os.link(draft, path)
        except FileExistsError:
            continue
        except OSError:
            # A file system without links, as USB sticks have: there two processes at once could take one name.
            if path.exists():
                continue
            draft.rename(path)
        return path
    raise AssertionError


def _save_picture(store: "ArtifactStore", image: dict[str, Any], folder: Path, slug: str) -> Path:
    name = str(image["artifact"])
    with open_draft(folder) as draft:
        store.fetch(name, draft)
        if _hash_file(draft) != image["sha256"]:
            raise ArtifactDamagedError(name, "its bytes are not those that the task made; try again")
        return name_draft(draft, f"{slug}-{int(image['seed'])}", PurePosixPath(name).suffix.removeprefix("."))


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
