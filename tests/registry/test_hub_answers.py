"""What a server that is no hub, or a poor one, may answer; and what is made of it."""

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bitinglip.domain.models import ModelFile, ModelName
from bitinglip.errors import HubUnreachableError, InvalidModelError
from bitinglip.registry.hub.client import Hub
from tests.conftest import eventually
from tests.registry.open_sockets import count_sockets

NAME = ModelName("org/name")


class Replies:
    """A server that gives each request the next of these replies: status, headers, body."""

    def __init__(self, *replies: tuple[int, dict[str, str], bytes]) -> None:
        self._replies = iter(replies)
        replies_of_server = self._replies

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, headers, body = next(replies_of_server)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Replies":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def describe(**changes: Any) -> tuple[int, dict[str, str], bytes]:
    siblings = [{"rfilename": "config.json", "size": 2, "blobId": "a" * 40}]
    document = {"id": "org/name", "sha": "c" * 40, "siblings": siblings, **changes}
    body = json.dumps(document).encode()
    return 200, {"Content-Length": str(len(body))}, body


def sibling(**changes: Any) -> dict[str, Any]:
    return {"siblings": [{"rfilename": "model.safetensors", "size": 9, "blobId": "a" * 40, **changes}]}


@pytest.mark.parametrize(
    "changes",
    [
        {"sha": "c" * 39},
        {"sha": None},
        {"sha": "main"},
        sibling(size=None),
        sibling(size=-1),
        sibling(size="9"),
        sibling(blobId=None),
        sibling(blobId="../../x"),
        sibling(lfs={"size": 8, "sha256": "b" * 64, "pointerSize": 1}),
        sibling(lfs={"size": 9, "sha256": "b" * 63, "pointerSize": 1}),
        sibling(lfs={"size": 9, "sha256": "", "pointerSize": 1}),
        sibling(lfs={"size": 9, "sha256": 5, "pointerSize": 1}),
        {"siblings": sibling()["siblings"] * 2},
    ],
)
def test_a_manifest_that_does_not_prove_every_byte_is_refused(changes: dict[str, Any]) -> None:
    with (
        Replies(describe(**changes)) as server,
        pytest.raises(InvalidModelError, match=r"the hub itself .*HF_ENDPOINT"),
    ):
        Hub(endpoint=server.url).look_up(NAME)


@pytest.mark.parametrize(
    "reply",
    [
        (200, {"Content-Length": "15"}, b"<html>Welcome!<"),
        (200, {"Content-Length": "2"}, b"[]"),
        (200, {"Content-Length": "2"}, b"{}"),
        (200, {"Content-Length": "2"}, b"\xff\xfe"),
        describe(siblings=[{}]),
        describe(siblings=7),
        (302, {"Location": "/elsewhere", "Content-Length": "0"}, b""),
    ],
)
def test_an_answer_that_is_no_hubs_is_no_model(reply: tuple[int, dict[str, str], bytes]) -> None:
    with Replies(*[reply] * 30) as server, pytest.raises(HubUnreachableError, match=server.url):
        Hub(endpoint=server.url).look_up(NAME)


def test_another_commit_than_was_asked_for_is_refused() -> None:
    with Replies(describe()) as server, pytest.raises(HubUnreachableError, match="it gives cccc"):
        Hub(endpoint=server.url).look_up(NAME, "d" * 40)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def open_from(reply: tuple[int, dict[str, str], bytes], start: int, read: Callable[[Any], Any]) -> tuple[int, Any]:
    with Replies(reply) as server:
        source = Hub(endpoint=server.url, stall_seconds=2).make_source("org/name", "c" * 40)
        with source.open(ModelFile("a.txt", 5, git_sha1="a" * 40), start) as stream:
            return stream.start, read(stream)


def join(stream: Any) -> bytes:
    return b"".join(stream.chunks())


def test_a_server_that_knows_no_ranges_sends_all() -> None:
    assert open_from((200, {"Content-Length": "5"}, b"whole"), 3, join) == (0, b"whole")


@pytest.mark.parametrize("also", [{}, {"Content-Length": "7"}])
def test_a_server_may_send_in_chunks(also: dict[str, str]) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Range": "bytes 3-9/10", **also}
    assert open_from((206, headers, chunked(b"abc", b"defg", b"")), 3, join) == (3, b"abcdefg")


def test_a_server_may_send_without_a_length() -> None:
    assert open_from((200, {}, b"until the end"), 0, join) == (0, b"until the end")


def test_a_chunked_reply_that_ends_early_is_no_whole_file() -> None:
    reply = 200, {"Transfer-Encoding": "chunked"}, chunked(b"abc", b"defg")
    with pytest.raises(HubUnreachableError, match="the connection broke"):
        open_from(reply, 0, join)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "ValueError"),
        ({"Content-Range": "lines 3-7/8"}, "ValueError"),
        ({"Content-Range": "bytes 4-8/9"}, "asked for byte 3 on, it sends 4 on"),
    ],
)
def test_a_part_that_is_not_the_one_asked_for_is_refused_and_its_connection_closed(
    headers: dict[str, str], words: str
) -> None:
    before = count_sockets()
    with pytest.raises(HubUnreachableError, match=words):
        open_from((206, {"Content-Length": "5", **headers}, b"which"), 3, join)
    eventually(lambda: count_sockets() <= before)
