"""Nodes take models from each other, so that a model crosses the line from the hub once.

    GET /models/NAME/COMMIT/PATH          NAME and each part of PATH percent-encoded
    Authorization: BitingLip EXPIRES.HMAC SHA-256 over method, path and EXPIRES, by a key that only the cluster has
    Range: bytes=START-

This is the asking side; `server` answers. Nodes that see the same folder (`store_id`) copy nothing: what is proven
for one of them is there for all.

Decisions: A peer is never believed. Its bytes are hashed against the manifest in PostgreSQL like the hub's, so that the
worst it can do is waste time. The key is in PostgreSQL, where every worker can read it and nobody else can; it never
leaves a process, a signature does, and is good for one path and a minute. Rejected: TLS, whose certificates somebody
would have to hand out, for files that are public for the most part; a copy by rsync or a shared disk, which would be
one more thing to set up.

Weakness: Whoever listens on the network between the nodes can read a gated model, or ask for the same file again for a
minute.
"""

import contextlib
import hashlib
import hmac
import http.client
import random
import re
import time
import uuid
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

from bitinglip.domain.models import ModelFile
from bitinglip.errors import HubNotFoundError, HubUnreachableError
from bitinglip.registry.transfer.source import FileSource, FileStream
from bitinglip.settings import ModelSettings, load_settings
from bitinglip.store.copies import find_key, list_peers
from bitinglip.store.database import Database

SIGNED_SECONDS = 60
"""How long a signature is good."""

CLOCK_SECONDS = 30
"""By which the clocks of two nodes may differ."""

ANSWER_SECONDS = 5.0
"""For a peer to accept and to answer: it is near, or it is no help."""

CHUNK_BYTES = 2**20

_SIGNATURE = re.compile(r"BitingLip (\d{1,12})\.([0-9a-f]{64})", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/\d+", re.ASCII)


def list_sources(
    database: Database, node: str, name: str, commit: str, *, store_id: uuid.UUID | None = None
) -> list[FileSource]:
    """The other nodes that serve a model at a commit, in an order of chance: not all are to ask the same one.

    Args:
        database: Where the copies are registered.
        node: Which asks.
        name: Of the model, as it is registered.
        commit: Which it is pinned to.
        store_id: Of the folder that asks; nodes that share it have nothing that is not there already.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction() as connection:
        peers = [row for row in list_peers(connection, name, commit, node) if row.peer_url and row.store_id != store_id]
        key = find_key(connection, "peers") if peers else ""
    stall_seconds = load_settings(ModelSettings).download_stall_seconds
    sources: list[FileSource] = [
        PeerSource(row.name, row.peer_url, key, name, commit, stall_seconds=stall_seconds) for row in peers
    ]
    random.shuffle(sources)
    return sources


def find_shared_copy(database: Database, node: str, name: str, commit: str, store_id: uuid.UUID) -> str | None:
    """The folder of a proven copy that another node has in the same store; None if there is none.

    Its files are this node's as well: there is nothing to fetch or to prove.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction() as connection:
        peers = list_peers(connection, name, commit, node)
    return next((str(row.folder) for row in peers if row.store_id == store_id), None)


def make_path(model: str, commit: str, path: str) -> str:
    """What is asked for to get a file of a model."""
    return f"/models/{quote(model, safe='')}/{commit}/{quote(path)}"


def sign_request(key: str, method: str, path: str, *, now: float) -> str:
    """The `Authorization` of a request that is made now."""
    expires = int(now) + SIGNED_SECONDS
    return f"BitingLip {expires}.{_make_hmac(key, method, path, expires)}"


def is_signed(key: str, authorization: str, method: str, path: str, *, now: float) -> bool:
    """Whether a request was signed with the key for this method and path, a short while ago."""
    found = _SIGNATURE.fullmatch(authorization)
    if found is None:
        return False
    expires = int(found[1])
    is_timely = now < expires <= now + SIGNED_SECONDS + CLOCK_SECONDS
    return hmac.compare_digest(found[2], _make_hmac(key, method, path, expires)) and is_timely


def _make_hmac(key: str, method: str, path: str, expires: int) -> str:
    return hmac.new(key.encode(), f"{method}\n{path}\n{expires}".encode(), hashlib.sha256).hexdigest()


class PeerSource:
    """A model's files from another node.

    Args:
        name: The node's.
        url: Of its server, as the `nodes` table has it.
        key: The cluster's.
        model: As it is registered.
        commit: Which the files are of.
        stall_seconds: Without a byte before the connection counts as dead.
    """

    def __init__(self, name: str, url: str, key: str, model: str, commit: str, *, stall_seconds: float) -> None:
        self.name = f"node {name}"
        self._address = urlsplit(url)
        self._key = key
        self._model = model
        self._commit = commit
        self._stall_seconds = stall_seconds

    @contextlib.contextmanager
    def open(self, file: ModelFile, start: int) -> Iterator[FileStream]:
        """The bytes of a file from one on.

        Raises:
            HubNotFoundError: If the node cannot be reached, or does not give it. Ask another one.
            HubUnreachableError: If the connection failed on the way, or fell silent.
        """
        path = make_path(self._model, self._commit, file.path)
        signature = sign_request(self._key, "GET", path, now=time.time())
        headers = {"Authorization": signature, "Range": f"bytes={start}-"}
        patience = min(ANSWER_SECONDS, self._stall_seconds)
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=patience)
        with contextlib.ExitStack() as opened:
            opened.callback(connection.close)
            try:
                connection.request("GET", path, headers=headers)
                # The answer's from then on, which it may close for the connection.
                peer = connection.sock
                response = opened.enter_context(connection.getresponse())
            except (OSError, http.client.HTTPException) as exc:
                raise HubNotFoundError(self._model, f"{self.name} does not answer ({type(exc).__name__})") from exc
            begins = _find_start(response)
            if begins is None:
                raise HubNotFoundError(self._model, f"{self.name} answers {response.status} for {file.path}")
            peer.settimeout(self._stall_seconds)
            yield _PeerStream(begins, response, self.name)


class _PeerStream:
    """The body of a peer's answer."""

    def __init__(self, start: int, response: http.client.HTTPResponse, name: str) -> None:
        self.start = start
        self._response = response
        self._name = name

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a mebibyte at a time; fewer than there should be if the peer ends early.

        Raises:
            HubUnreachableError: If the connection failed, or fell silent.
        """
        try:
            while chunk := self._response.read(CHUNK_BYTES):
                yield chunk
        except (OSError, http.client.HTTPException) as exc:
            raise HubUnreachableError(self._name, f"the connection failed ({type(exc).__name__})") from exc


def _find_start(response: http.client.HTTPResponse) -> int | None:
    """The byte that an answer begins with; None if it gives no bytes of the file."""
    if response.status == http.HTTPStatus.OK:
        return 0
    found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
    if response.status != http.HTTPStatus.PARTIAL_CONTENT or found is None:
        return None
    return int(found[1])
