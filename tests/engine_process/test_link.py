"""The worker's end of an engine process that lives: each request ends exactly once, and fails alone."""

import os
import queue
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bitinglip.engine import wire
from bitinglip.engine.base import EngineEvent, Failed, Finished, Progress, Text
from bitinglip.engine.link import EngineLink
from tests.conftest import eventually
from tests.engine_process.echoes import Requests, code_of


def test_text_comes_in_chunks_and_then_whole(requests: Requests) -> None:
    requests.start("a:1", text="abcdef", chunks=3)
    requests.wait()

    events = requests.events["a:1"]
    assert [event.text for event in events if isinstance(event, Text)] == ["ab", "cd", "ef"]
    assert [event.fraction for event in events if isinstance(event, Progress)][-1] == 1
    ending = requests.ending("a:1")
    assert isinstance(ending, Finished)
    assert ending.result == {"text": "abcdef"}


def test_a_request_says_what_earlier_attempts_made(odd_package: Path) -> None:
    link = EngineLink(devices=("cpu",), slots=1, environment={"PYTHONPATH": str(odd_package)})
    events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()

    link.start(wire.Run("a:2", "teller", None, None, {}, [7, 8]), events.put)

    ending = events.get(timeout=20)
    link.close()
    assert isinstance(ending, Finished)
    assert ending.result == {"text": "[7, 8]"}


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
