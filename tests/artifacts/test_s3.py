"""A store in S3, and a server that is away, dies, is silent, or does not know us."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bitinglip.artifacts import remote
from bitinglip.artifacts.store import ArtifactStore
from bitinglip.errors import ArtifactStoreError
from tests.artifacts.places import Place, list_names, name_upload, put, read, write_source
from tests.artifacts.s3_server import S3Server, find_port, serve_s3, set_keys

MOST_SECONDS = 15


def make_calls(store: ArtifactStore, source: Path) -> list[Callable[[], object]]:
    return [
        store.check_reachable,
        store.find_id,
        lambda: put(store, source),
        lambda: read(store, name_upload()),
        store.list_folders,
        lambda: store.list_files("uploads"),
    ]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_a_file_has_a_url(bucket: Place, tmp_path: Path) -> None:
    store = bucket.open()
    name = put(store, write_source(tmp_path))
    assert store.locate(name) == f"{bucket.url}/{name}"
    assert not store.is_folder
    store.check_room()


def test_a_bucket_may_be_all_of_the_place(s3: S3Server, tmp_path: Path) -> None:
    store = ArtifactStore(f"s3://{s3.make_bucket()}/", endpoint_url=s3.url)
    assert store.list_folders() == []
    name = put(store, write_source(tmp_path))
    assert list_names(store) == [name]
    assert store.find_id() == store.find_id()


def test_a_server_that_is_away_is_said_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_keys(monkeypatch, tmp_path)
    url = f"http://127.0.0.1:{find_port()}"
    store = ArtifactStore("s3://bucket/prefix", endpoint_url=url)
    for call in make_calls(store, write_source(tmp_path)):
        with within(MOST_SECONDS), pytest.raises(ArtifactStoreError, match=f'Could not connect.*"{url}/bucket'):
            call()


def test_a_bucket_that_is_not_there_is_said(s3: S3Server, tmp_path: Path) -> None:
    store = ArtifactStore("s3://no-such-bucket/prefix", endpoint_url=s3.url)
    for call in make_calls(store, write_source(tmp_path)):
        with pytest.raises(ArtifactStoreError, match=r"s3://no-such-bucket/prefix.*bucket does not exist"):
            call()


def test_keys_that_the_server_does_not_know_are_said(tmp_path: Path) -> None:
    with serve_s3(tmp_path) as server:
        store = ArtifactStore(f"s3://{server.make_bucket()}", endpoint_url=server.url)
        server.ask_for_keys()
        for call in make_calls(store, write_source(tmp_path)):
            with pytest.raises(ArtifactStoreError, match=r"Access Key Id you provided does not exist|Forbidden"):
                call()


def test_keys_that_are_missing_are_said(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bucket = s3.make_bucket()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # Another name of the same server: a connection with keys is not taken again.
    store = ArtifactStore(f"s3://{bucket}", endpoint_url=f"http://localhost:{s3.port}")
    with within(MOST_SECONDS), pytest.raises(ArtifactStoreError, match="Unable to locate credentials"):
        put(store, write_source(tmp_path))


def test_a_server_that_dies_while_a_file_is_put_keeps_none_of_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ended: list[BaseException | None] = []

    with serve_s3(tmp_path) as server:
        store = ArtifactStore(f"s3://{server.make_bucket()}", endpoint_url=server.url)

        def put_from_pipe() -> None:
            try:
                store.put(pipe, name_upload(), size=40_000_000, sha256="0" * 64)
            except BaseException as exc:
                ended.append(exc)

        putting = threading.Thread(target=put_from_pipe)
        putting.start()
        with within(2 * MOST_SECONDS), suppress(BrokenPipeError), pipe.open("wb") as source:
            source.write(bytes(20_000_000))
            server.stop()
            source.write(bytes(20_000_000))
        putting.join()

    assert [type(exc) for exc in ended] == [ArtifactStoreError]


def test_a_server_that_dies_while_a_file_is_read_is_said(tmp_path: Path) -> None:
    with serve_s3(tmp_path) as server:
        store = ArtifactStore(f"s3://{server.make_bucket()}", endpoint_url=server.url)
        name = put(store, write_source(tmp_path, bytes(40_000_000)))

        def read_while_it_dies() -> None:
            with store.open(name) as file:
                file.read(1)
                server.stop()
                file.read()

        with within(MOST_SECONDS), pytest.raises(ArtifactStoreError):
            read_while_it_dies()


def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    with serve_s3(tmp_path) as server:
        store = ArtifactStore(f"s3://{server.make_bucket()}", endpoint_url=server.url)
        store.find_id()
        server.stop()
        with pytest.raises(ArtifactStoreError):
            store.list_folders()
        server.start()
        with pytest.raises(ArtifactStoreError, match="bucket does not exist"):
            store.list_folders()


def test_a_server_that_is_silent_is_asked_a_few_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_keys(monkeypatch, tmp_path)
    monkeypatch.setattr(remote, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        store = ArtifactStore("s3://bucket", endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        for call in make_calls(store, write_source(tmp_path)):
            with within(2 * MOST_SECONDS), pytest.raises(ArtifactStoreError, match="Read timeout"):
                call()
            # Some calls look twice: for the file, then for a folder of its name.
            assert count_callers(silent) <= 12


def test_no_error_tells_a_password(tmp_path: Path) -> None:
    url = f"http://me:secret@127.0.0.1:{find_port()}/folder"
    store = ArtifactStore(url)
    for call in (store.list_folders, store.find_id, lambda: put(store, write_source(tmp_path))):
        with pytest.raises(ArtifactStoreError) as caught:
            call()
        assert url.replace("me:secret@", "") in str(caught.value)
        assert "secret" not in str(caught.value)
    assert remote.hide_credentials(f"no answer from {url}, s3://a:b@c@d/e@f") == (
        f"no answer from {url.replace('me:secret@', '')}, s3://d/e@f"
    )


def count_callers(listener: socket.socket) -> int:
    listener.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count
