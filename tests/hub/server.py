"""Two listening sockets, of the hub and of its CDN: they send replies, and the faults into them."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit
from weakref import WeakSet

from tests.hub.faults import Fault, Faults, Kind, Request, RequestLog
from tests.hub.protocol import Protocol, Reply, refuse
from tests.hub.repos import Repo

HOST = "127.0.0.1"
CHUNK_BYTES = 4 * 2**20
PACES_PER_SECOND = 20


class LocalHub:
    """A hub that listens while it is entered; `url` is what `HF_ENDPOINT` is to be.

    Args:
        port: Of the hub; the CDN's is any free one, and so is this if it is 0.
        tokens: Tokens of accounts that may read no more than anyone.
        bytes_per_second: What each reply is limited to; a fault may say otherwise.
    """

    def __init__(self, *, port: int = 0, tokens: Iterable[str] = (), bytes_per_second: float | None = None) -> None:
        self.faults = Faults()
        self.requests = RequestLog()
        self.bytes_per_second = bytes_per_second
        self.closing = threading.Event()
        self._repos: dict[str, Repo] = {}
        self._hub = _Listener(port, self, _classify_hub)
        self._cdn = _Listener(0, self, lambda _path: "cdn")
        self.url = self._hub.url
        self.cdn_url = self._cdn.url
        self.protocol = Protocol(self._repos, tokens, self.url, self.cdn_url)

    def add_repo(
        self, name: str, folder: Path, *, revision: str = "main", readers: Iterable[str] = (), **properties: Any
    ) -> str:
        """Serve a folder; the id of the commit that its files are.

        Args:
            name: Of the form `org/name`.
            folder: Served where it lies.
            revision: The branch.
            readers: The tokens that may read it if it is private or gated.
            properties: Further ones of `Repo`: private, gated, licence, tags, xet, ...
        """
        repo = Repo(name, readers=frozenset(readers), **properties)
        commit = repo.commit(Path(folder), revision)
        self._repos[name] = repo
        return commit.id

    def commit(self, name: str, folder: Path, *, revision: str = "main") -> str:
        """Move a branch of a repository to a folder's files; the new commit's id. Older commits can still be read."""
        return self._repos[name].commit(Path(folder), revision).id

    def __enter__(self) -> Self:
        self._hub.start()
        self._cdn.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and listen no more."""
        self.closing.set()
        self.faults.close()
        self._cdn.stop()
        self._hub.stop()


def _classify_hub(path: str) -> Kind:
    if path.startswith("/api/"):
        return "api"
    return "cas" if path.startswith("/cas/") else "resolve"


class _Listener(ThreadingHTTPServer):
    """One origin. Its threads are joined when it stops, and so it ends their connections."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, port: int, hub: LocalHub, classify: Callable[[str], Kind]) -> None:
        super().__init__((HOST, port), _Handler)
        self.hub = hub
        self.classify = classify
        self.url = f"http://{HOST}:{self.server_address[1]}"
        self._connections: WeakSet[socket.socket] = WeakSet()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name=self.url)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            # Its other end may have been faster.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away is no error of ours.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection, request after request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        request = Request(self.command, self.server.classify(url.path), url.path, url.query, self.headers)
        hub.requests.add(request)
        reply = hub.protocol.answer(request)
        fault = hub.faults.take(request, reply.span if self.command == "GET" else range(0)) or Fault()
        if fault.then:
            fault.then()
        if fault.status:
            reply = _spoil(fault, fault.status)
        self._send(request, reply, fault)

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: there is `hub.requests`."""

    def _send(self, request: Request, reply: Reply, fault: Fault) -> None:
        if fault.stall_after_bytes == 0:
            fault.hold()
        if fault.cut_after_bytes == 0:
            self.close_connection = True
            return
        request.status = reply.status
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.span) + fault.length_off_by))
        self.end_headers()
        if self.command == "HEAD":
            return
        with _open(reply.body) as file:
            self._send_body(request, reply.span, fault, file.fileno())

    def _send_body(self, request: Request, span: range, fault: Fault, descriptor: int) -> None:
        end = min(span.stop, span.stop + fault.length_off_by)
        stall = span.start + fault.stall_after_bytes if fault.stall_after_bytes else None
        cut = span.start + fault.cut_after_bytes if fault.cut_after_bytes else None
        pace = fault.bytes_per_second or self.server.hub.bytes_per_second
        chunk = max(int(pace / PACES_PER_SECOND), 1) if pace else CHUNK_BYTES
        began, position = time.monotonic(), span.start
        while position < end and position != cut:
            if position == stall:
                fault.hold()
            flip = position == fault.flip_at_byte
            marks = (stall, cut, fault.flip_at_byte)
            stop = min([position + chunk, end, *(mark for mark in marks if mark is not None and mark > position)])
            if pace:
                self.server.hub.closing.wait(max((stop - span.start) / pace - (time.monotonic() - began), 0))
            position += self._send_part(request, descriptor, range(position, stop), flip=flip)
        self.close_connection |= position == cut or fault.length_off_by > 0

    def _send_part(self, request: Request, descriptor: int, part: range, *, flip: bool) -> int:
        # Counted first: whoever has read them must find them counted.
        request.sent_bytes += len(part)
        sent = 0
        try:
            if flip:
                (byte,) = os.pread(descriptor, 1, part.start)
                sent = self.connection.send(bytes([255 - byte]))
            else:
                sent = os.sendfile(self.connection.fileno(), descriptor, part.start, len(part))
        finally:
            request.sent_bytes -= len(part) - sent
        if not sent:
            raise ConnectionAbortedError(f"{request.path} has become shorter since it was committed")
        return sent


@contextmanager
def _open(body: bytes | Path) -> Iterator[BinaryIO]:
    if isinstance(body, Path):
        with body.open("rb") as file:
            yield file
    else:
        # Of any length, so that faults need to know one way of sending only.
        with TemporaryFile() as file:
            file.write(body)
            file.flush()
            yield file


def _spoil(fault: Fault, status: int) -> Reply:
    reply = refuse(status, "This failure was asked for", fault.error_code)
    if fault.retry_after_seconds is not None:
        reply.headers["Retry-After"] = str(fault.retry_after_seconds)
    return reply
