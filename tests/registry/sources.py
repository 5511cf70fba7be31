"""Places to fetch from that do what no good server does: each reads a real file, in its own way."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bitinglip.domain.models import ModelFile

CHUNK_BYTES = 50_000


@dataclass
class Stream:
    """What one connection gives."""

    start: int
    content: bytes
    before_chunk: Callable[[int], object]

    def chunks(self) -> Iterator[bytes]:
        for begin in range(0, len(self.content), CHUNK_BYTES):
            self.before_chunk(self.start + begin)
            yield self.content[begin : begin + CHUNK_BYTES]


@dataclass
class FolderSource:
    """The files of a folder.

    Attributes:
        folder: Where they are.
        name: For people.
        knows_ranges: False: every connection begins at the first byte.
        surplus: Sent after each file's end.
        gives: None: everything; else so many bytes a connection.
        fail: Called when a connection is asked for.
        before_chunk: Called with the byte that comes next, before it does.
        opened: The first byte of every connection, as it was asked for.
    """

    folder: Path
    name: str = "folder"
    knows_ranges: bool = True
    surplus: bytes = b""
    gives: int | None = None
    fail: Callable[[], object] = lambda: None
    before_chunk: Callable[[int], object] = lambda _byte: None
    opened: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def open(self, file: ModelFile, start: int) -> Iterator[Stream]:
        with self.lock:
            self.opened.append(start)
        self.fail()
        begin = start if self.knows_ranges else 0
        content = (self.folder / file.path).read_bytes()[begin:] + self.surplus
        yield Stream(begin, content[: self.gives], self.before_chunk)
