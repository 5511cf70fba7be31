"""Names of artifacts: the files that tasks make, and those that people bring for them.

    <task id>/<attempt>-<index>-<8 hex digits>.<suffix>    made by one attempt
    uploads/<32 hex digits>.<suffix>                       brought; whoever knows the name may use it

A name is all that a record holds of a file: where the files are is a setting, and may change. The digits of what is
made are by chance: no two files ever have one name, even where a crash of PostgreSQL let an attempt begin twice. Those
of what is brought are of its hash: brought twice, it is one file, and a submission that is repeated is the same.
"""

import re
import secrets
import uuid
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

UPLOADS = "uploads"

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SUFFIX = "[a-z0-9]{1,8}"
_MADE = re.compile(rf"({_UUID})/([1-9][0-9]{{0,8}})-(0|[1-9][0-9]{{0,3}})-[0-9a-f]{{8}}\.{_SUFFIX}")
_UPLOADED = re.compile(rf"{UPLOADS}/[0-9a-f]{{32}}\.{_SUFFIX}")


@dataclass(frozen=True, slots=True)
class Maker:
    """The attempt that made a file."""

    task_id: uuid.UUID
    attempt: int


def make_name(maker: Maker, index: int, suffix: str) -> str:
    """A name that no file has yet.

    Args:
        maker: Who makes the file.
        index: Among the attempt's files, from 0.
        suffix: Of its format, without the dot.
    """
    return f"{maker.task_id}/{maker.attempt}-{index}-{secrets.token_hex(4)}.{suffix}"


def find_maker(name: str) -> Maker | None:
    """The attempt that made a file of that name; None if none did."""
    found = _MADE.fullmatch(name)
    return Maker(uuid.UUID(found[1]), int(found[2])) if found else None


def make_upload_name(sha256: str, suffix: str) -> str:
    """The name of a file that somebody brings.

    Args:
        sha256: Of its bytes, in hex digits.
        suffix: Of its format, without the dot.
    """
    return f"{UPLOADS}/{sha256[:32]}.{suffix}"


def is_artifact_name(text: str) -> bool:
    """Whether a file could have that name."""
    return bool(_MADE.fullmatch(text) or _UPLOADED.fullmatch(text))


def _check_name(text: str) -> str:
    if is_artifact_name(text):
        return text
    message = "no artifact has such a name; give one that a task's result names, or that an upload returned"
    raise ValueError(message)


ArtifactName = Annotated[str, Field(max_length=100), AfterValidator(_check_name)]
