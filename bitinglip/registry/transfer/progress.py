"""How far a download is: counted by its threads, told to whoever asked, now and then."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bitinglip.domain.models import Manifest, ModelFile

TELL_SECONDS = 0.25
NOTE_SECONDS = 2.0

Stage = Literal["waiting", "verifying", "downloading"]


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a download is.

    Attributes:
        stage: `waiting` for another process that fetches it, `verifying` what is there, or `downloading`.
        done_bytes: Of the whole model, that are there.
        total_bytes: Of the whole model; 0: not known yet.
        files: Those in flight: path to bytes that are there, and its size.
    """

    stage: Stage
    done_bytes: int = 0
    total_bytes: int = 0
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Of the whole model, 0 to 1."""
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 0.0

    def to_json(self) -> dict[str, Any]:
        """As a task's events have it."""
        files = {path: list(sizes) for path, sizes in self.files.items()}
        return {"stage": self.stage, "done_bytes": self.done_bytes, "total_bytes": self.total_bytes, "files": files}


class ProgressCounter:
    """Counts a model's bytes, in any number of threads.

    Args:
        manifest: What it is made of.
        on_progress: Told every `TELL_SECONDS` at most, in the thread of whoever counts.
        note: Told the stage and the bytes that are there, every `NOTE_SECONDS` at most.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        on_progress: Callable[[DownloadProgress], None],
        note: Callable[[Stage, int], None],
    ) -> None:
        self._manifest = manifest
        self._on_progress = on_progress
        self._note = note
        self._telling = threading.Lock()
        self._tell_at = 0.0
        self._note_at = 0.0
        self._stage: Stage = "verifying"
        self._positions: dict[str, int] = {}
        self._whole: set[str] = set()

    def begin(self, stage: Stage) -> None:
        """Say what is being done from now on."""
        self._stage = stage
        self.tell(at_once=True)

    def move(self, file: ModelFile, position: int) -> None:
        """So many bytes of a file are there."""
        self._positions[file.digest] = position

    def advance(self, file: ModelFile, count: int) -> None:
        """So many bytes more of a file have been found good. Of one file, one thread at a time may say so."""
        self.move(file, self._positions.get(file.digest, 0) + count)
        self.tell()

    def forget(self, file: ModelFile) -> None:
        """No byte of a file is there, nor comes."""
        self._positions.pop(file.digest, None)

    def finish(self, file: ModelFile) -> None:
        """A file is there, proven."""
        self._whole.add(file.digest)
        self.forget(file)

    def tell(self, *, at_once: bool = False) -> None:
        """Tell those who want to know, if it is time."""
        now = time.monotonic()
        if not at_once and now < self._tell_at:
            return
        if not self._telling.acquire(blocking=at_once):
            return
        try:
            self._tell_at = now + TELL_SECONDS
            progress = self.look()
            self._on_progress(progress)
            if at_once or now >= self._note_at:
                self._note_at = now + NOTE_SECONDS
                self._note(progress.stage, progress.done_bytes)
        finally:
            self._telling.release()

    def look(self) -> DownloadProgress:
        """How far it is now."""
        positions = dict(self._positions)
        done_bytes = 0
        files: dict[str, tuple[int, int]] = {}
        for file in self._manifest.files:
            if file.digest in self._whole:
                done_bytes += file.size
            elif file.digest in positions:
                done_bytes += positions[file.digest]
                if positions[file.digest] < file.size:
                    files[file.path] = (positions[file.digest], file.size)
        return DownloadProgress(self._stage, done_bytes, self._manifest.total_bytes, files)
