"""Where a file's bytes can be had: what the hub and other nodes have in common."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from bitinglip.domain.models import ModelFile


class FileStream(Protocol):
    """A file's bytes as they come, from a byte on to its end."""

    @property
    def start(self) -> int:
        """The byte of the file that comes first: the one asked for, or 0 if the source knows no ranges."""

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in pieces of any length; larger ones cost less.

        It may end early: what is missing is asked for again.

        Raises:
            HubUnreachableError: If the source fell silent or the connection failed.
        """


class FileSource(Protocol):
    """Where a model's files can be had. Used by several threads at once."""

    @property
    def name(self) -> str:
        """For people: a node's name, the hub's address."""

    def open(self, file: ModelFile, start: int) -> AbstractContextManager[FileStream]:
        """The bytes of a file from one on; entering asks, leaving closes the connection.

        It may block for as long as its own time-outs: it is called in a thread that is left behind if it must be.

        Raises:
            HubUnreachableError: Try again later; `retry_after_seconds` says when, if that is known.
            HubNotFoundError: It has no such file.
            GatedModelError: It does not give it to us.
        """
