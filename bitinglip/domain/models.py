"""A model: what it is called, which files it is made of, where it stands.

Invariant: a name, a revision or a path of a file that got through here cannot leave the folder that it is joined to.
After the Hugging Face hub's rules for repository ids, and git's for references.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from bitinglip.errors import InvalidRequestError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REPO = re.compile(rf"{_PART}(?:/{_PART})?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+=@()-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

MAX_FILE_DEPTH = 8


class ModelStatus(StrEnum):
    """Where a registered model stands."""

    QUEUED = "queued"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    AVAILABLE = "available"
    FAILED = "failed"
    REMOVING = "removing"


class CopyState(StrEnum):
    """Where one node's copy of a model stands."""

    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    AVAILABLE = "available"
    DAMAGED = "damaged"


class ModelSource(StrEnum):
    """Where a registered model comes from."""

    HUB = "hub"
    FOLDER = "folder"
    BUNDLED = "bundled"


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model on the hub.

    Attributes:
        repo: `organisation/name`, or the name alone of the oldest ones.
        revision: A branch, a tag or a commit; None: the main branch.
    """

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> Self:
        """The name that `organisation/name` or `organisation/name@revision` stands for.

        Args:
            text: What was written.
            revision: In place of one in the text.

        Raises:
            InvalidRequestError: If it cannot be a model's name.
        """
        repo, at, written = text.partition("@")
        if at and revision is not None and written != revision:
            raise InvalidRequestError("revision", revision, f"the name says {written!r} already; write one of them")
        revision = written if at else revision
        if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
            remedy = "no model's name; write organisation/name, as in the model's address on the hub"
            raise InvalidRequestError("model", text, remedy)
        if revision is not None and not is_revision(revision):
            raise InvalidRequestError("revision", revision, "no revision; write a branch, a tag or a commit")
        return cls(repo, None if revision == "main" else revision)

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def is_revision(text: str) -> bool:
    """Whether it can be a branch, a tag or a commit."""
    return _REVISION.fullmatch(text) is not None and ".." not in text and "//" not in text and not text.endswith("/")


def is_commit(text: str) -> bool:
    """Whether it is a commit's whole hash."""
    return _COMMIT.fullmatch(text) is not None


def is_hub_name(text: str) -> bool:
    """Whether it reads `organisation/name`, with a revision or without: nothing else that tasks name looks like it."""
    repo, _, revision = text.partition("@")
    if repo.count("/") != 1 or (revision and not is_revision(revision)):
        return False
    return _REPO.fullmatch(repo) is not None and ".." not in repo and "--" not in repo


def is_file_path(path: str) -> bool:
    """Whether it names a file within a model's folder, and nothing else anywhere."""
    parts = path.split("/")
    return len(parts) <= MAX_FILE_DEPTH and all(
        _FILE_PART.fullmatch(part) is not None and ".." not in part and not part.endswith((" ", ".")) for part in parts
    )


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model, as its manifest has it.

    Attributes:
        path: Within the model's folder, with slashes.
        size: Bytes.
        sha256: Of its bytes, in hex; None for a small file that the hub keeps in git.
        git_sha1: Of the git blob that it is, in hex; None where sha256 is known.
    """

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    def __post_init__(self) -> None:
        if not is_file_path(self.path):
            raise InvalidRequestError("file", self.path, "no name of a file within a model's folder")
        if self.size < 0:
            raise InvalidRequestError("size", self.size, f"{self.path} cannot have fewer than 0 bytes")
        is_digest = _SHA256.fullmatch(self.sha256) if self.sha256 else _COMMIT.fullmatch(self.git_sha1 or "")
        if not is_digest:
            raise InvalidRequestError("hash", self.sha256 or self.git_sha1, f"{self.path} has no SHA-256 or git hash")

    @property
    def digest(self) -> str:
        """The hash by which it is known: the name of its blob in the hub's cache."""
        return self.sha256 or self.git_sha1 or ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model is at one commit.

    Attributes:
        commit: 40 hex digits; of a local folder, made from its files.
        files: The files that are kept, by path.
    """

    commit: str
    files: tuple[ModelFile, ...]

    def __post_init__(self) -> None:
        if not is_commit(self.commit):
            raise InvalidRequestError("commit", self.commit, "no commit; a hub must give 40 hex digits")
        if len({file.path for file in self.files}) < len(self.files):
            raise InvalidRequestError("files", self.commit, "one path is there twice")

    @property
    def total_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size for file in self.files)

    def get(self, path: str) -> ModelFile | None:
        """The file of that path."""
        return next((file for file in self.files if file.path == path), None)

    @classmethod
    def from_json(cls, commit: str, files: Iterable[dict[str, object]]) -> Self:
        """What the registry recorded.

        Raises:
            InvalidRequestError: If it is no manifest.
        """
        try:
            return cls(commit, tuple(ModelFile(**file) for file in files))  # type: ignore[arg-type]
        except TypeError as exc:
            raise InvalidRequestError("files", commit, f"no manifest: {exc}") from exc
