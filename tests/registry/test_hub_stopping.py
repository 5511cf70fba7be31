"""A download is told to stop, at whatever it waits for."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitinglip.domain.models import ModelName
from bitinglip.errors import DownloadStoppedError, HubUnreachableError
from bitinglip.registry.hub.client import Hub
from bitinglip.registry.transfer.stopping import call_unless_stopped
from tests.conftest import eventually
from tests.hub import Fault, LocalHub
from tests.registry.asking import WEIGHTS, WEIGHTS_PATH, make_folder
from tests.registry.open_sockets import count_sockets

NAME = ModelName("org/name")


@pytest.fixture
def local() -> Iterator[LocalHub]:
    with LocalHub() as running:
        yield running


@pytest.fixture
def commit(local: LocalHub, tmp_path: Path) -> str:
    return local.add_repo("org/name", make_folder(tmp_path / "model"))


@pytest.fixture
def hub(local: LocalHub) -> Hub:
    return Hub(endpoint=local.url, stall_seconds=5)


def read(hub: Hub, commit: str, stop: threading.Event | None = None) -> bytes:
    return hub.read_file("org/name", commit, WEIGHTS_PATH, max_bytes=10**6, stop=stop)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="api", stall_after_bytes=0),
        Fault(kind="resolve", stall_after_bytes=0),
        Fault(kind="cdn", stall_after_bytes=0),
        Fault(kind="cdn", stall_after_bytes=10),
        Fault(kind="cdn", stall_after_bytes=90_000),
    ],
)
def test_whatever_a_hub_keeps_silent_about_a_stop_ends_it_within_a_second(
    local: LocalHub, hub: Hub, commit: str, fault: Fault
) -> None:
    local.faults.add(fault)
    stop, told = threading.Event(), [0.0]

    def tell() -> None:
        told[0] = time.monotonic()
        stop.set()

    timer = threading.Timer(0.4, tell)
    timer.start()

    def ask() -> None:
        hub.look_up(NAME, stop=stop)
        read(hub, commit, stop)

    with pytest.raises(DownloadStoppedError):
        ask()
    assert time.monotonic() - told[0] < 1
    timer.join()
    local.faults.clear()
    assert read(hub, commit) == WEIGHTS


def test_a_stop_ends_a_name_that_is_never_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = threading.Event()

    def resolve(*_: Any, **__: Any) -> Any:
        resolved.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    hub = Hub(endpoint="http://hub.invalid")
    began = time.monotonic()
    with pytest.raises(DownloadStoppedError):
        hub.look_up(NAME, stop=stop)
    assert time.monotonic() - began < 1.2
    resolved.set()


def test_what_nobody_waits_for_any_more_is_let_go_of_when_it_comes() -> None:
    begun, may_end, stop = threading.Event(), threading.Event(), threading.Event()
    discarded: list[str] = []

    def call() -> str:
        begun.set()
        stop.set()
        may_end.wait(10)
        return "connection"

    with pytest.raises(DownloadStoppedError):
        call_unless_stopped(call, stop=stop, model="org/name", discard=discarded.append)
    assert begun.is_set()
    assert not discarded
    may_end.set()
    eventually(lambda: discarded == ["connection"])


def test_a_call_that_fails_fails_here_unless_nobody_waits_any_more(caplog: pytest.LogCaptureFixture) -> None:
    failed, stop = threading.Event(), threading.Event()

    def fail() -> None:
        failed.set()
        raise HubUnreachableError("address", "reason")

    with pytest.raises(HubUnreachableError):
        call_unless_stopped(fail, stop=stop, model="org/name")
    stop.set()
    failed.clear()
    with pytest.raises(DownloadStoppedError):
        call_unless_stopped(fail, stop=stop, model="org/name", discard=lambda _: None)
    eventually(lambda: failed.is_set() and "fetch-org/name" not in {thread.name for thread in threading.enumerate()})
    assert not caplog.records


def test_a_reply_that_nobody_waits_for_any_more_is_let_go_of(local: LocalHub, hub: Hub, commit: str) -> None:
    assert read(hub, commit) == WEIGHTS
    before = count_sockets()
    stall = local.faults.add(Fault(kind="cdn", stall_after_bytes=0))
    stop = threading.Event()
    stall.then = stop.set
    with pytest.raises(DownloadStoppedError):
        read(hub, commit, stop)
    stall.release()
    eventually(lambda: local.requests.matching("cdn")[-1].sent_bytes)
    eventually(lambda: count_sockets() <= before)
