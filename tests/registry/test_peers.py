"""Nodes serve each other what is proven and registered, to those only who have the cluster's key."""

import hashlib
import http.client
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bitinglip.domain.models import CopyState, Manifest, ModelFile, ModelSource
from bitinglip.errors import HubNotFoundError, HubUnreachableError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.peers import server as peer_server
from bitinglip.registry.peers.server import PeerServer
from bitinglip.registry.peers.sources import find_shared_copy, is_signed, list_sources, make_path, sign_request
from bitinglip.registry.transfer.source import FileSource
from bitinglip.store.copies import Node, find_key, note_copy, note_node
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelCopy, ModelRecord, insert_entry, set_removing
from bitinglip.telemetry import configure_logging
from tests.conftest import eventually, forget_settings

NAME = "org/model"
COMMIT = "a" * 40
BYTES = {"config.json": b"{}", "weights/model part-1.safetensors": os.urandom(3_000_000), "empty.txt": b""}
WEIGHTS = "weights/model part-1.safetensors"


def make_file(path: str) -> ModelFile:
    return ModelFile(path, len(BYTES[path]), sha256=hashlib.sha256(BYTES[path]).hexdigest())


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    """Of node `a`, with one model."""
    made = ModelCache(tmp_path / "a")
    manifest = Manifest(COMMIT, tuple(map(make_file, BYTES)))
    for file in manifest.files:
        blob = made.find_blob(NAME, file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(BYTES[file.path])
    made.link(NAME, manifest, None)
    return made


@pytest.fixture
def copy(database: Database, cache: ModelCache) -> ModelCopy:
    """The model's copy on node `a`, registered and proven."""
    manifest = Manifest(COMMIT, tuple(map(make_file, BYTES)))
    made = ModelCopy(NAME, "a", CopyState.AVAILABLE, str(cache.find_snapshot(NAME, COMMIT)), COMMIT)
    with database.transaction() as connection:
        insert_entry(connection, ModelRecord(NAME, ModelSource.HUB, repo=NAME, manifest=manifest))
        note_copy(connection, made)
    return made


@contextmanager
def serving(database: Database, cache: ModelCache, node: str = "a") -> Iterator[PeerServer]:
    server = PeerServer(database, node=node, cache=cache, host="127.0.0.1", port=0)
    server.start()
    note(database, node, cache.find_store_id(), server.url)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server(database: Database, cache: ModelCache, copy: ModelCopy) -> Iterator[PeerServer]:
    """Of node `a`."""
    with serving(database, cache) as started:
        yield started


def note(database: Database, node: str, store_id: uuid.UUID, url: str | None) -> None:
    with database.transaction() as connection:
        note_node(connection, Node(node, store_id, "/models", url, 1, 1))


def register(database: Database, copy: ModelCopy) -> None:
    with database.transaction() as connection:
        note_copy(connection, copy)


def read_key(database: Database) -> str:
    with database.transaction() as connection:
        return find_key(connection, "peers")


@contextmanager
def connected(server: PeerServer) -> Iterator[http.client.HTTPConnection]:
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    try:
        yield connection
    finally:
        connection.close()


def ask(
    server: PeerServer, path: str, *, method: str = "GET", key: str = "", authorization: str = "", **headers: str
) -> tuple[int, bytes]:
    signature = authorization or (sign_request(key, method, path, now=time.time()) if key else "")
    with connected(server) as connection:
        connection.request(method, path, headers={"Authorization": signature, **headers})
        response = connection.getresponse()
        return response.status, response.read()


def fetch(source: FileSource, path: str, start: int = 0) -> tuple[int, bytes]:
    with source.open(make_file(path), start) as stream:
        return stream.start, b"".join(stream.chunks())


def test_a_node_gets_every_file_of_a_model_from_its_peer(database: Database, server: PeerServer) -> None:
    (source,) = list_sources(database, "b", NAME, COMMIT)

    assert source.name == "node a"
    assert {path: fetch(source, path) for path in BYTES} == {path: (0, content) for path, content in BYTES.items()}
    assert fetch(source, WEIGHTS, 2_999_000) == (2_999_000, BYTES[WEIGHTS][2_999_000:])


def test_nobody_gets_anything_without_the_clusters_key(database: Database, server: PeerServer) -> None:
    path, now = make_path(NAME, COMMIT, "config.json"), time.time()
    key = read_key(database)
    good = sign_request(key, "GET", path, now=now)
    forged = {
        "nothing": " ",
        "another key": sign_request("0" * 64, "GET", path, now=now),
        "another path": sign_request(key, "GET", make_path(NAME, COMMIT, WEIGHTS), now=now),
        "another method": sign_request(key, "HEAD", path, now=now),
        "a longer life": good.replace(str(int(now) + 60), str(int(now) + 80)),
        "too old": sign_request(key, "GET", path, now=now - 61),
        "too new": sign_request(key, "GET", path, now=now + 40),
        "another scheme": good.replace("BitingLip", "Bearer"),
        "digits of another script": good.replace("BitingLip 1", "BitingLip \N{ARABIC-INDIC DIGIT ONE}"),
    }

    assert ask(server, path, authorization=good) == (200, b"{}")
    answers = {how: ask(server, path, authorization=value.encode().decode("latin-1")) for how, value in forged.items()}
    assert answers == dict.fromkeys(forged, (401, b""))


def test_clocks_may_differ_by_half_a_minute() -> None:
    signature = sign_request("key", "GET", "/models", now=1_000)

    moments = (969, 970, 1_030, 1_059, 1_060)
    accepted = [now for now in moments if is_signed("key", signature, "GET", "/models", now=now)]
    assert accepted == [970, 1_030, 1_059]


def test_only_files_of_the_manifest_are_served(
    database: Database, server: PeerServer, cache: ModelCache, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (cache.find_snapshot(NAME, COMMIT) / "extra.bin").write_text("nobody proved it")
    key = read_key(database)
    paths = [
        make_path(NAME, COMMIT, "extra.bin"),
        make_path(NAME, COMMIT, "../../../../secret"),
        make_path(NAME, COMMIT, "weights"),
        make_path(NAME, COMMIT, "../" + COMMIT + "/config.json"),
        f"/models/org%2Fmodel/{COMMIT}/%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fsecret",
        f"/models/..%2F..%2Fsecret/{COMMIT}/config.json",
        f"/models//{COMMIT}/{tmp_path / 'secret'}",
        make_path(NAME, "b" * 40, "config.json"),
        make_path("org/other", COMMIT, "config.json"),
        f"/models/org%2Fmodel/{COMMIT}",
        "/",
    ]

    assert {path: ask(server, path, key=key) for path in paths} == dict.fromkeys(paths, (404, b""))


@pytest.mark.parametrize("state", [CopyState.DOWNLOADING, CopyState.VERIFYING, CopyState.DAMAGED])
def test_a_copy_that_is_not_proven_is_not_served(
    database: Database, server: PeerServer, copy: ModelCopy, state: CopyState
) -> None:
    register(database, replace(copy, state=state))

    assert ask(server, make_path(NAME, COMMIT, "config.json"), key=read_key(database)) == (404, b"")
    assert list_sources(database, "b", NAME, COMMIT) == []


@pytest.mark.parametrize("asked", [COMMIT, "b" * 40])
def test_a_copy_of_another_commit_than_the_models_is_not_served(
    database: Database, server: PeerServer, copy: ModelCopy, asked: str
) -> None:
    register(database, replace(copy, commit="b" * 40))

    assert ask(server, make_path(NAME, asked, "config.json"), key=read_key(database)) == (404, b"")


def test_a_model_that_is_being_removed_is_not_served(database: Database, server: PeerServer) -> None:
    with database.transaction() as connection:
        set_removing(connection, NAME)

    assert ask(server, make_path(NAME, COMMIT, "config.json"), key=read_key(database)) == (404, b"")


def test_a_copy_that_only_another_node_has_is_not_served(
    database: Database, cache: ModelCache, copy: ModelCopy
) -> None:
    with serving(database, cache, node="c") as server:
        assert ask(server, make_path(NAME, COMMIT, "config.json"), key=read_key(database)) == (404, b"")


def test_a_file_of_another_length_is_not_served(database: Database, server: PeerServer, cache: ModelCache) -> None:
    (cache.find_snapshot(NAME, COMMIT) / "config.json").resolve().write_text("{}more")

    with pytest.raises(HubNotFoundError, match="node a answers 404 for config"):
        fetch(list_sources(database, "b", NAME, COMMIT)[0], "config.json")


def test_nothing_can_be_written_or_deleted(database: Database, server: PeerServer) -> None:
    path, key = make_path(NAME, COMMIT, "config.json"), read_key(database)

    assert [ask(server, path, method=method, key=key)[0] for method in ("PUT", "POST", "DELETE")] == [501, 501, 501]
    assert read_raw(server, "HEAD", path, key).endswith(b"\r\n\r\n")
    assert read_raw(server, "GET", path, key).endswith(b"\r\n\r\n{}")


def read_raw(server: PeerServer, method: str, path: str, key: str) -> bytes:
    """Everything that the server sends in answer."""
    address = urlsplit(server.url)
    signature = sign_request(key, method, path, now=time.time())
    with socket.create_connection((address.hostname, address.port or 0), timeout=10) as peer:
        peer.sendall(f"{method} {path} HTTP/1.0\r\nAuthorization: {signature}\r\n\r\n".encode())
        return b"".join(iter(lambda: peer.recv(65_536), b""))


def test_ranges_are_answered_as_http_says(database: Database, server: PeerServer) -> None:
    path, key, content = make_path(NAME, COMMIT, WEIGHTS), read_key(database), BYTES[WEIGHTS]

    assert ask(server, path, key=key, Range="bytes=5-9") == (206, content[5:10])
    assert ask(server, path, key=key, Range="bytes=0-") == (200, content)
    assert ask(server, path, key=key, Range=f"bytes=7-{len(content) * 2}") == (206, content[7:])
    assert ask(server, path, key=key, Range=f"bytes={len(content)}-") == (416, b"")
    assert ask(server, path, key=key, Range="bytes=9-5") == (416, b"")
    assert ask(server, path, key=key, Range="nonsense") == (200, content)


def test_a_file_is_not_deleted_while_it_is_sent(database: Database, server: PeerServer, cache: ModelCache) -> None:
    path = make_path(NAME, COMMIT, WEIGHTS)
    signature = sign_request(read_key(database), "GET", path, now=time.time())
    address = urlsplit(server.url)
    with socket.socket() as peer:
        # It takes so little at a time that the rest waits in the server.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        peer.connect((address.hostname, address.port))
        peer.sendall(f"GET {path} HTTP/1.0\r\nAuthorization: {signature}\r\n\r\n".encode())
        assert peer.recv(10)

        assert not is_free(cache)

    eventually(lambda: is_free(cache))


def is_free(cache: ModelCache) -> bool:
    with cache.lock_to_delete(NAME) as free:
        return free


def test_whoever_does_not_finish_his_request_is_cut_off(
    database: Database, server: PeerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_server, "REQUEST_SECONDS", 0.5)
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port or 0), timeout=10) as slow:
        began = time.monotonic()
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012 - until it is cut
            # Never silent for long, and never done.
            while time.monotonic() - began < 8:
                slow.sendall(b"GET")
                threading.Event().wait(0.1)

    assert time.monotonic() - began < 5


def test_one_connection_too_many_is_turned_away(database: Database, server: PeerServer) -> None:
    address = urlsplit(server.url)
    idle = [socket.create_connection((address.hostname, address.port or 0)) for _ in range(peer_server.MAX_CONNECTIONS)]
    try:
        with pytest.raises(HubNotFoundError, match="node a does not answer"):
            fetch(list_sources(database, "b", NAME, COMMIT)[0], "config.json")
    finally:
        for connection in idle:
            connection.close()

    eventually(lambda: can_fetch(list_sources(database, "b", NAME, COMMIT)[0]))


def can_fetch(source: FileSource) -> bool:
    try:
        return fetch(source, "config.json") == (0, b"{}")
    except HubNotFoundError:
        return False


def test_a_node_that_is_gone_is_passed_over(database: Database, server: PeerServer) -> None:
    (source,) = list_sources(database, "b", NAME, COMMIT)
    server.close()

    with pytest.raises(HubNotFoundError, match="node a does not answer"):
        fetch(source, "config.json")


def test_a_node_that_falls_silent_counts_as_failed(
    database: Database, copy: ModelCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITINGLIP_DOWNLOAD_STALL_SECONDS", "0.3")
    forget_settings()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        note(database, "a", uuid.uuid4(), f"http://127.0.0.1:{listener.getsockname()[1]}")
        (source,) = list_sources(database, "b", NAME, COMMIT)
        answering = threading.Thread(target=answer_half, args=(listener,))
        answering.start()
        with pytest.raises(HubUnreachableError, match="node a"):
            fetch(source, WEIGHTS)
        answering.join()


def answer_half(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 3000000\r\n\r\nhalf")
        # Until the other side has had enough.
        connection.recv(1)


def test_a_signature_is_in_no_log(database: Database, server: PeerServer, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    path = make_path(NAME, COMMIT, "config.json")
    signature = sign_request(read_key(database), "GET", path, now=time.time())

    ask(server, path, authorization=signature)
    ask(server, path, authorization=signature[:-1] + "0")

    written = "".join(capfd.readouterr())
    assert signature.rpartition(".")[2][:20] not in written
    assert path not in written


def test_nodes_that_share_a_folder_copy_nothing(database: Database, server: PeerServer, cache: ModelCache) -> None:
    store_id, folder = cache.find_store_id(), str(cache.find_snapshot(NAME, COMMIT))

    assert list_sources(database, "b", NAME, COMMIT, store_id=store_id) == []
    assert find_shared_copy(database, "b", NAME, COMMIT, store_id) == folder
    assert find_shared_copy(database, "b", NAME, COMMIT, uuid.uuid4()) is None
    assert find_shared_copy(database, "b", NAME, "b" * 40, store_id) is None
    assert find_shared_copy(database, "a", NAME, COMMIT, store_id) is None


def test_a_node_is_no_peer_of_itself_and_one_that_serves_nothing_of_nobody(
    database: Database, server: PeerServer, cache: ModelCache
) -> None:
    assert list_sources(database, "a", NAME, COMMIT) == []
    note(database, "a", cache.find_store_id(), None)
    assert list_sources(database, "b", NAME, COMMIT) == []
