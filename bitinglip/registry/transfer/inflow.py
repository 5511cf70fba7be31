"""What a source sends, read ahead in a thread of its own.

Whoever takes the bytes out, hashes them and writes them meanwhile, and can end at any moment: a thread that waits for a
silent server is left behind, and writes nothing. So neither a stall nor a stop depends on what a source's library can
interrupt: the look-up of a name, the handshake, or a read.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator

from bitinglip.domain.models import ModelFile
from bitinglip.errors import DownloadStoppedError, HubUnreachableError
from bitinglip.registry.transfer.source import FileSource, FileStream

AHEAD_BYTES = 2 * 2**20
POLL_SECONDS = 0.2


class Inflow:
    """One connection to a source.

    Args:
        source: Who is asked.
        file: For what.
        start: From which byte on; of a source that begins before it, the first bytes are dropped.
        stall_seconds: Without a byte before it counts as dead.
    """

    def __init__(self, source: FileSource, file: ModelFile, start: int, *, stall_seconds: float) -> None:
        self._source = source
        self._file = file
        self._start = start
        self._stall_seconds = stall_seconds
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._came_at = time.monotonic()
        self._error: BaseException | None = None
        self._ended = False
        self._left = False
        threading.Thread(target=self._read, name=f"fetch-{file.path}", daemon=True).start()

    def take(self, stop: threading.Event) -> deque[bytes]:
        """What has come since the last time, or what comes next; nothing at the end.

        Raises:
            DownloadStoppedError: If told to stop.
            HubUnreachableError: If nothing has come for too long, or the source says so.
            BitingLipError: Whatever else the source raised.
        """
        began = time.monotonic()
        with self._changed:
            while not self._pieces and not self._ended and not stop.is_set():
                # Whoever took his time with the last pieces kept the source from sending meanwhile.
                if time.monotonic() - max(began, self._came_at) >= self._stall_seconds:
                    reason = f"no byte of {self._file.path} for {self._stall_seconds:g} s"
                    raise HubUnreachableError(self._source.name, reason)
                self._changed.wait(min(POLL_SECONDS, self._stall_seconds))
            if stop.is_set():
                raise DownloadStoppedError(self._file.path)
            if self._error is not None and not self._pieces:
                raise self._error
            pieces, self._pieces = self._pieces, deque()
            self._held_bytes = 0
            self._changed.notify_all()
        return pieces

    def leave(self) -> None:
        """Let the thread end, when it can."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            with self._source.open(self._file, self._start) as stream:
                for chunk in self._skip(stream):
                    if not self._put(chunk):
                        return
        except BaseException as exc:
            error = exc
        finally:
            with self._changed:
                self._error = error
                self._ended = True
                self._changed.notify_all()

    def _skip(self, stream: FileStream) -> Iterator[bytes]:
        surplus = self._start - stream.start
        if surplus < 0:
            reason = f"asked for {self._file.path} from byte {self._start:,} on, it begins at {stream.start:,}"
            raise HubUnreachableError(self._source.name, reason)
        for chunk in stream.chunks():
            self._came_at = time.monotonic()
            if surplus < len(chunk):
                yield chunk[surplus:] if surplus else chunk
            surplus = max(0, surplus - len(chunk))

    def _put(self, chunk: bytes) -> bool:
        with self._changed:
            while self._held_bytes >= AHEAD_BYTES and not self._left:
                self._changed.wait()
            self._pieces.append(chunk)
            self._held_bytes += len(chunk)
            self._changed.notify_all()
            return not self._left
