"""The worker's end of an engine process: whatever becomes of the process, each request ends exactly once."""

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bitinglip.engine import wire
from bitinglip.engine.base import EngineEvent, Failed, Finished, Progress, Text
from bitinglip.engine.link import EngineLink
from tests.conftest import eventually


@pytest.fixture
def link() -> Iterator[EngineLink]:
    opened = EngineLink(devices=("cpu",), slots=4)
    yield opened
    opened.close()


class Requests:
    """Sends echoes and collects what comes back."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self.events: dict[str, list[EngineEvent]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self, request_id: str, *, kind: str = "echo", **payload: Any) -> None:
        self.events[request_id] = []

        def hear(event: EngineEvent) -> None:
            self.events[request_id].append(event)
            if isinstance(event, Finished | Failed):
                self._ended.put(request_id)

        self._link.start(wire.Run(request_id, kind, None, None, payload), hear)

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            self._ended.get(timeout=20)

    def ending(self, request_id: str) -> EngineEvent:
        endings = [event for event in self.events[request_id] if isinstance(event, Finished | Failed)]
        assert len(endings) == 1
        return endings[0]


@pytest.fixture
def requests(link: EngineLink) -> Requests:
    return Requests(link)


def code_of(event: EngineEvent) -> str:
    assert isinstance(event, Failed)
    return event.code


def test_text_comes_in_chunks_and_then_whole(requests: Requests) -> None:
    requests.start("a:1", text="abcdef", chunks=3)
    requests.wait()

    events = requests.events["a:1"]
    assert [event.text for event in events if isinstance(event, Text)] == ["ab", "cd", "ef"]
    assert [event.fraction for event in events if isinstance(event, Progress)][-1] == 1
    ending = requests.ending("a:1")
    assert isinstance(ending, Finished)
    assert ending.result == {"text": "abcdef"}


def test_requests_run_side_by_side(requests: Requests) -> None:
    for number in range(50):
        requests.start(f"{number}:1", text=str(number), seconds=0.3)
    requests.wait(50)

    assert all(isinstance(requests.ending(f"{number}:1"), Finished) for number in range(50))


def test_a_request_is_cancelled_at_the_next_step(link: EngineLink, requests: Requests) -> None:
    requests.start("a:1", seconds=60)
    requests.start("b:1", seconds=0.2)
    link.cancel("a:1")
    link.cancel("unknown:1")
    requests.wait(2)

    assert code_of(requests.ending("a:1")) == "cancelled"
    assert isinstance(requests.ending("b:1"), Finished)


@pytest.mark.parametrize(
    ("fail", "code", "retryable"),
    [("error", "echo_error", False), ("retryable", "echo_retryable", True), ("out_of_memory", "out_of_memory", True)],
)
def test_a_request_fails_as_told_and_alone(requests: Requests, fail: str, code: str, retryable: bool) -> None:
    requests.start("bad:1", fail=fail)
    requests.start("good:1", text="fine", seconds=0.1)
    requests.wait(2)

    ending = requests.ending("bad:1")
    assert isinstance(ending, Failed)
    assert (ending.code, ending.retryable) == (code, retryable)
    assert isinstance(requests.ending("good:1"), Finished)


def test_a_payload_that_makes_no_sense_fails_alone(link: EngineLink, requests: Requests) -> None:
    requests.start("good:1", text="fine", seconds=0.5)
    first = link.pid
    requests.start("bad:1", nonsense=1)
    requests.start("odd:1", kind="telepathy")
    requests.wait(3)

    assert code_of(requests.ending("bad:1")) == "invalid_request"
    assert code_of(requests.ending("odd:1")) == "invalid_request"
    assert isinstance(requests.ending("good:1"), Finished)
    assert link.pid == first


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_requests_of_an_engine_that_died_fail_and_the_next_one_serves(
    link: EngineLink, requests: Requests, end: str
) -> None:
    requests.start("first:1", text="x")
    requests.wait()
    first = link.pid
    requests.start("other:1", seconds=60)
    if end == "crash":
        requests.start("crash:1", fail="crash")
    else:
        os.kill(first, signal.SIGKILL)
    requests.wait(2 if end == "crash" else 1)

    died = requests.ending("other:1")
    assert isinstance(died, Failed)
    assert (died.code, died.retryable) == ("engine_died", True)
    requests.start("next:1", text="back")
    requests.wait()
    assert isinstance(requests.ending("next:1"), Finished)
    assert link.pid != first


def test_requests_end_even_where_no_other_engine_can_be_started(
    link: EngineLink, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.start("a:1", seconds=60)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    os.kill(link.pid, signal.SIGKILL)
    requests.wait()
    assert code_of(requests.ending("a:1")) == "engine_died"

    monkeypatch.undo()
    requests.start("b:1", text="back")
    requests.wait()


def test_a_request_that_never_returns_ends_with_its_process(link: EngineLink, requests: Requests) -> None:
    requests.start("warm:1")
    requests.wait()
    requests.start("hang:1", fail="hang")
    eventually(lambda: psutil.Process(link.pid).status() == psutil.STATUS_SLEEPING)
    os.kill(link.pid, signal.SIGKILL)
    requests.wait()

    assert code_of(requests.ending("hang:1")) == "engine_died"


def test_closing_ends_the_process_and_every_request() -> None:
    link = EngineLink(devices=("cpu",), slots=4)
    requests = Requests(link)
    requests.start("warm:1")
    requests.wait()
    requests.start("a:1", seconds=60)
    pid = link.pid

    link.close()

    requests.wait()
    assert code_of(requests.ending("a:1")) == "engine_died"
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_engine_leaves_signals_to_its_worker(link: EngineLink, requests: Requests, number: signal.Signals) -> None:
    requests.start("warm:1")
    requests.wait()
    requests.start("a:1", text="through", seconds=0.5)
    os.kill(link.pid, number)
    requests.wait()

    assert isinstance(requests.ending("a:1"), Finished)


def test_an_engine_ends_with_its_worker(tmp_path: Path) -> None:
    program = (
        "from bitinglip.engine.link import EngineLink\n"
        "link = EngineLink(devices=('cpu',), slots=1)\n"
        "print(link.pid, flush=True)\n"
        "input()\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    engine = psutil.Process(int(worker.stdout.readline()))

    worker.kill()
    worker.communicate()

    eventually(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
