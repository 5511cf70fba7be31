"""The bytes of one of the hub's files, as they come over one connection.

They are read from the connection itself once the reply has begun: in larger pieces than httpx reads, which halves the
processor time a byte, and a moment at a time, so that a silent server keeps nobody from stopping.

Weakness: a reply that is compressed, chunked or HTTP/2 is read through httpx, each piece in a thread of its own.
"""

import re
import threading
from collections.abc import Iterator
from typing import Any

import httpcore2
import httpx2

from bitinglip.errors import DownloadStoppedError, HubUnreachableError
from bitinglip.registry.transfer.stopping import call_unless_stopped

READ_BYTES = 256 * 1024
STOP_POLL_SECONDS = 0.25
PARTIAL_CONTENT = 206

_RANGE = re.compile(r"bytes (\d+)-", re.ASCII)


class HubStream:
    """One reply's body, which is read once.

    Args:
        response: Its headers have come.
        model: Whose file it is.
        address: Of the hub.
        stall_seconds: Without a byte before the connection counts as dead.
        stop: Told to end; None: nobody will.

    Attributes:
        start: Where in the file the body begins.

    Raises:
        ValueError: If the response does not say where it begins.
    """

    def __init__(
        self,
        response: httpx2.Response,
        *,
        model: str,
        address: str,
        stall_seconds: float,
        stop: threading.Event | None = None,
    ) -> None:
        self.start = find_start(response)
        self._response = response
        self._model = model
        self._address = address
        self._stall_seconds = stall_seconds
        self._stop = stop
        self._pieces = response.iter_bytes()
        # httpx has read it along with the headers; all that follows is still in the connection.
        self._first = next(self._pieces, b"")

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they come, in pieces of any size.

        Raises:
            HubUnreachableError: If the connection ends early, or no byte comes for too long.
            DownloadStoppedError: If told to stop.
        """
        if self._first:
            yield self._first
        length = find_length(self._response)
        connection = self._response.extensions.get("network_stream")
        if length is not None and connection is not None and length > len(self._first):
            yield from self._read_connection(connection, length - len(self._first))
        else:
            yield from self._read_pieces()

    def close(self) -> None:
        """Let go of the connection."""
        self._response.close()

    def _read_connection(self, connection: Any, left: int) -> Iterator[bytes]:
        idle_seconds = 0.0
        poll_seconds = min(STOP_POLL_SECONDS, self._stall_seconds)
        while left:
            if self._stop is not None and self._stop.is_set():
                raise DownloadStoppedError(self._model)
            try:
                chunk: bytes = connection.read(min(left, READ_BYTES), timeout=poll_seconds)
            except httpcore2.ReadTimeout as exc:
                idle_seconds += poll_seconds
                if idle_seconds >= self._stall_seconds:
                    raise self._give_up(f"no byte for {self._stall_seconds:g} s") from exc
                continue
            except (httpcore2.NetworkError, httpcore2.ProtocolError) as exc:
                raise self._give_up(f"the connection broke: {exc}") from exc
            if not chunk:
                raise self._give_up(f"the connection ended {left:,} bytes early")
            idle_seconds = 0.0
            left -= len(chunk)
            yield chunk

    def _read_pieces(self) -> Iterator[bytes]:
        while True:
            try:
                piece = call_unless_stopped(lambda: next(self._pieces, b""), stop=self._stop, model=self._model)
            except httpx2.TimeoutException as exc:
                raise self._give_up(f"no byte for {self._stall_seconds:g} s") from exc
            except (httpx2.RequestError, httpx2.StreamError) as exc:
                raise self._give_up(f"the connection broke: {exc}") from exc
            if not piece:
                return
            yield piece

    def _give_up(self, reason: str) -> HubUnreachableError:
        return HubUnreachableError(self._address, reason)


def find_start(response: httpx2.Response) -> int:
    """The byte of the file that a reply begins with: 0 if its server knows no ranges.

    Raises:
        ValueError: If it is a part of the file, and does not say which.
    """
    if response.status_code != PARTIAL_CONTENT:
        return 0
    span = response.headers.get("content-range", "")
    found = _RANGE.match(span)
    if found is None:
        message = f"{span!r} is no range of bytes"
        raise ValueError(message)
    return int(found[1])


def find_length(response: httpx2.Response) -> int | None:
    """The bytes of a body that can be read from its connection; None if the body comes in another form."""
    length = response.headers.get("content-length", "")
    plain = response.headers.get("content-encoding", "identity") == "identity"
    framed = "transfer-encoding" in response.headers or response.http_version == "HTTP/2"
    return int(length) if plain and not framed and length.isdecimal() else None
