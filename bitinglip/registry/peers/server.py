"""What other nodes take from this one: files of models of which it has a proven copy, and nothing else.

A request is answered in this order: signed by the cluster's key, or 401; a model that is registered, of which this node
has an available copy at that commit, and a file of its manifest, or 404; then its bytes, with the model's use lock held
so that nobody deletes it meanwhile.

Invariant: no path is made of what was asked. The path that is opened is the manifest's, below the folder that this node
itself has registered.

Python's own `http.server` is enough here: it is asked by the nodes of one cluster, a few connections at a time, and the
kernel sends the bytes (`sendfile`), so that serving costs the worker next to nothing. Rejected: an ASGI server, one
more dependency to copy bytes through Python; serving the cache folder as it is, in which there may be what nobody has
proven, and models that are not registered.
"""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, BinaryIO
from urllib.parse import unquote

from bitinglip.domain.models import CopyState, ModelFile, ModelSource, ModelStatus
from bitinglip.errors import BitingLipError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.peers.sources import is_signed
from bitinglip.store.copies import find_key
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, list_entries
from bitinglip.telemetry import get_logger

MAX_CONNECTIONS = 32

REQUEST_SECONDS = 5.0
"""For a request to arrive, from its first byte to its last."""

STALL_SECONDS = 30.0
"""For a peer to take some of the bytes that it has asked for."""

_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})?", re.ASCII)

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Served:
    """A file that may be served.

    Attributes:
        path: Where it is.
        repo: Whose lock is to be held.
    """

    path: Path
    repo: str
    file: ModelFile


class PeerServer:
    """Serves this node's models from `start` to `close`.

    Args:
        database: Where copies are registered.
        node: This one's name.
        cache: Where its models are.
        host: The address that it listens at; others reach it by the same.
        port: 0: any that is free.

    Attributes:
        url: By which it is reached.

    Raises:
        OSError: If it cannot listen there.
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def __init__(self, database: Database, *, node: str, cache: ModelCache, host: str, port: int) -> None:
        with database.transaction() as connection:
            key = find_key(connection, "peers")
        self._listener = _Listener(host, port, _Shelf(database, node, cache), key)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._listener.server_address[1]}"
        self._thread = threading.Thread(target=self._listener.serve_forever, name="peer-server", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more; whoever is being sent something is cut off when the process ends."""
        self._listener.shutdown()
        self._listener.server_close()


class _Shelf:
    """What this node serves."""

    def __init__(self, database: Database, node: str, cache: ModelCache) -> None:
        self._database = database
        self._node = node
        self._cache = cache

    def find(self, path: str) -> _Served | None:
        """The file that a request's path names; None if it is none of ours to give.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        root, _, rest = path.removeprefix("/").partition("/")
        name, _, rest = rest.partition("/")
        commit, _, name_of_file = rest.partition("/")
        if root != "models" or not name_of_file:
            return None
        with self._database.transaction() as connection:
            entry = next(iter(list_entries(connection, [unquote(name)])), None)
        return None if entry is None else self._find_file(entry, commit, unquote(name_of_file))

    def _find_file(self, entry: ModelEntry, commit: str, name: str) -> _Served | None:
        record = entry.record
        if record.source is not ModelSource.HUB or record.repo is None or entry.status is ModelStatus.REMOVING:
            return None
        copies = (copy for copy in entry.copies if copy.node == self._node and copy.commit == commit)
        copy = next((copy for copy in copies if copy.state is CopyState.AVAILABLE), None)
        if copy is None or record.manifest is None or record.manifest.commit != commit:
            return None
        file = record.manifest.get(name)
        return None if file is None else _Served(Path(copy.folder) / file.path, record.repo, file)

    @contextlib.contextmanager
    def open(self, served: _Served) -> Iterator[BinaryIO | None]:
        """The file, which nobody deletes meanwhile; None if it is not there, or not whole."""
        lock = self._cache.lock_to_use(served.repo)
        try:
            with contextlib.ExitStack() as opened:
                stream: BinaryIO | None = None
                with contextlib.suppress(OSError):
                    stream = opened.enter_context(served.path.open("rb"))
                if stream is not None and os.fstat(stream.fileno()).st_size != served.file.size:
                    stream = None
                yield stream
        finally:
            os.close(lock)


class _Listener(ThreadingMixIn, HTTPServer):
    """Accepts connections, so many at once; one too many is closed without a word, and its peer asks elsewhere."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS
    # Two workers of one node may be told the same port: the second has to be refused it.
    allow_reuse_port = False

    def __init__(self, host: str, port: int, shelf: _Shelf, key: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.shelf = shelf
        self.key = key
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind, without the question to DNS that `HTTPServer` asks."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if one is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            log.info("peer_turned_away", connections=MAX_CONNECTIONS)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and let the next one in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what ended a connection; a peer that goes away is nothing to act on."""
        log.info("peer_connection_failed", peer=str(client_address[0]), exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request."""

    server: _Listener
    server_version = "BitingLip"
    sys_version = ""
    timeout = REQUEST_SECONDS

    def setup(self) -> None:
        """Give the request its time: a peer that sends a byte now and then would keep a place for ever."""
        super().setup()
        self._alarm = threading.Timer(REQUEST_SECONDS, self._hang_up)
        self._alarm.daemon = True
        self._alarm.start()

    def finish(self) -> None:
        """Let go of the alarm as well."""
        self._alarm.cancel()
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        """Send a file, or a part of it."""
        self._answer()

    def do_HEAD(self) -> None:
        """Say how long a file is."""
        self._answer()

    def log_message(self, *_: object) -> None:
        """Log nothing by itself: a request's line is nobody's business, and its headers hold a signature."""

    def _answer(self) -> None:
        self._alarm.cancel()
        self.close_connection = True
        if not is_signed(
            self.server.key, self.headers.get("Authorization", ""), self.command, self.path, now=time.time()
        ):
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        try:
            served = self.server.shelf.find(self.path)
        except BitingLipError:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        if served is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with self.server.shelf.open(served) as stream:
            if stream is None:
                log.warning("copy_incomplete", repo=served.repo, path=served.file.path)
                self._refuse(HTTPStatus.NOT_FOUND)
            else:
                self._send(stream, served.file.size)

    def _send(self, stream: BinaryIO, size: int) -> None:
        span = _find_span(self.headers.get("Range"), size)
        if not span and size:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if len(span) < size:
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {span.start}-{span.stop - 1}/{size}")
        else:
            self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(span)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.flush()
        if span and self.command == "GET":
            self.connection.settimeout(STALL_SECONDS)
            self.connection.sendfile(stream, span.start, len(span))

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _find_span(asked: str | None, size: int) -> range:
    """The bytes that are asked for; empty if the file has none of them."""
    if asked is None:
        return range(size)
    found = _RANGE.fullmatch(asked)
    if found is None:
        return range(size)
    first, last = int(found[1]), int(found[2]) + 1 if found[2] else size
    return range(first, max(first, min(last, size)))
