"""One file, from the first source that has it, going on where it was cut, and proven before it gets its name.

What goes wrong, and what is done:

    the connection is cut, or silent    the same source is asked for what is missing, after a pause that doubles;
                                        a source that gives nothing again and again is given up
    the source says when to come back   no sooner, and no later than `MAX_PAUSE_SECONDS`
    the bytes are others                the whole file is fetched anew, from the next source
    the source knows no ranges          what is there already is skipped as it comes
    the disk is full                    an error; whoever called deletes what there is

Invariant: a file of the manifest's name holds the manifest's bytes. They are hashed as they are written, those of an
earlier attempt are hashed first.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bitinglip.domain.models import ModelFile
from bitinglip.errors import (
    BitingLipError,
    DownloadStoppedError,
    GatedModelError,
    HubNotFoundError,
    HubUnreachableError,
    ModelDamagedError,
)
from bitinglip.registry.transfer.inflow import Inflow
from bitinglip.registry.transfer.part import Part
from bitinglip.registry.transfer.source import FileSource
from bitinglip.registry.transfer.throttle import Throttle
from bitinglip.telemetry import get_logger

MAX_PAUSE_SECONDS = 60.0
MAX_FUTILE_ROUNDS = 6
"""Connections to the last source that bring next to nothing, one after the other, before it is given up."""

FUTILE_BYTES = 64 * 1024
"""A connection that has brought as much was worth it."""

MAX_DAMAGED_FILES = 3
"""How often the last source may give wrong bytes before they are said to be what it has."""

log = get_logger()


class FileFetcher:
    """Fetches files of one model; several threads may use it at once.

    Args:
        model: Its name, for errors and the log.
        sources: Who is asked, in this order; one that fails is asked for no further file, unless it is the last.
        throttle: Shared with all other downloads.
        stall_seconds: Without a byte before a connection counts as dead.
        stop: Ends it from another thread.
        pause_seconds: Before the first connection after a futile one; doubled for each one after it, jittered.
    """

    def __init__(
        self,
        model: str,
        sources: Sequence[FileSource],
        *,
        throttle: Throttle,
        stall_seconds: float,
        stop: threading.Event,
        pause_seconds: float = 0.5,
    ) -> None:
        self._model = model
        self._sources = tuple(sources)
        self._throttle = throttle
        self._stall_seconds = stall_seconds
        self._stop = stop
        self._pause_seconds = pause_seconds
        self._given_up: set[int] = set()

    def fetch(self, file: ModelFile, *, part: Path, blob: Path, on_position: Callable[[int], None]) -> None:
        """Return when the file is there, proven.

        Args:
            file: What is fetched.
            part: Where its bytes are until it is whole; what is there already is used.
            blob: Where it is then.
            on_position: Told how many bytes are there, whenever that changes; fewer if they were wrong.

        Raises:
            DownloadStoppedError: If told to stop. The part stays.
            ModelDamagedError: If the last source gives wrong bytes again and again. The part is deleted.
            DiskFullError: If there is no room for it. The part stays: what is deleted is the caller's choice.
            HubUnreachableError: If the last source cannot be reached. The part stays.
            HubNotFoundError: If the last source does not have it.
            GatedModelError: If the last source does not give it.
            OSError: If it cannot be written.
        """
        with Part(part, file, model=self._model, on_position=on_position, stop=self._stop) as open_part:
            self._fill(open_part)
            open_part.keep(blob)

    def _fill(self, part: Part) -> None:
        """Return when the part is proven."""
        error: BitingLipError = HubNotFoundError(self._model, f"nobody has its {part.file.path}")
        for number, source, is_last in self._list_sources():
            for _ in range(MAX_DAMAGED_FILES if is_last else 1):
                try:
                    if self._fill_from(source, part, is_last=is_last):
                        return
                except (HubUnreachableError, HubNotFoundError, GatedModelError) as exc:
                    error = exc
                    break
                error = ModelDamagedError(self._model, describe_damage(part.file, source.name))
            self._given_up.add(number)
            log.info("source_given_up", model=self._model, source=source.name, file=part.file.path, reason=str(error))
        if isinstance(error, ModelDamagedError):
            part.delete()
        raise error

    def _list_sources(self) -> Iterator[tuple[int, FileSource, bool]]:
        last = len(self._sources) - 1
        for number, source in enumerate(self._sources):
            if number == last or number not in self._given_up:
                yield number, source, number == last

    def _fill_from(self, source: FileSource, part: Part, *, is_last: bool) -> bool:
        """Whether the part is proven, once it is whole; it is empty again if not."""
        was_resumed = part.resumed
        self._complete(source, part, is_last=is_last)
        if not part.is_proven and was_resumed:
            # The wrong bytes may be of an earlier attempt: no reason to think ill of this source.
            part.restart()
            self._complete(source, part, is_last=is_last)
        if part.is_proven:
            return True
        log.warning("file_damaged", model=self._model, source=source.name, file=part.file.path)
        part.restart()
        return False

    def _complete(self, source: FileSource, part: Part, *, is_last: bool) -> None:
        """Return when no byte is missing."""
        futile_rounds = 0
        while not part.is_whole:
            before = part.position
            error = self._receive(source, part)
            if part.is_whole:
                return
            brought = part.position - before
            futile_rounds = 0 if brought >= FUTILE_BYTES else futile_rounds + 1
            if futile_rounds >= (MAX_FUTILE_ROUNDS if is_last else 1):
                raise error
            log.info("fetch_cut", model=self._model, source=source.name, file=part.file.path, brought_bytes=brought)
            self._pause(futile_rounds, error.retry_after_seconds)

    def _receive(self, source: FileSource, part: Part) -> HubUnreachableError:
        """Take what one connection gives; returns why it did not give more."""
        inflow = Inflow(source, part.file, part.position, stall_seconds=self._stall_seconds)
        try:
            while not part.is_whole:
                pieces = inflow.take(self._stop)
                if not pieces:
                    reason = f"{part.file.path} ended after {part.position:,} of {part.file.size:,} bytes"
                    return HubUnreachableError(source.name, reason)
                for piece in pieces:
                    self._throttle.take(len(piece), self._stop)
                    part.append(piece)
        except HubUnreachableError as exc:
            return exc
        finally:
            inflow.leave()
        return HubUnreachableError(source.name, f"{part.file.path} has come")

    def _pause(self, futile_rounds: int, asked_seconds: float | None) -> None:
        doubled = self._pause_seconds * 2 ** (futile_rounds - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if self._stop.wait(min(max(doubled, asked_seconds or 0.0), MAX_PAUSE_SECONDS)):
            raise DownloadStoppedError(self._model)


def describe_damage(file: ModelFile, source: str) -> str:
    """What is to be said of a file whose bytes are others, again and again."""
    known = f"SHA-256 {file.sha256}" if file.sha256 else f"git hash {file.git_sha1}"
    return (
        f"{file.path} from {source} is not what it should be: {file.size:,} bytes with {known}; "
        "try again, or ask who runs that server"
    )
