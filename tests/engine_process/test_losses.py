"""Engine processes that end: each request is told why, and whether it may be to blame; another process serves."""

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bitinglip.engine import process as engine_process
from bitinglip.engine import wire
from bitinglip.engine.activity import Activity
from bitinglip.engine.base import EngineLost, Finished
from bitinglip.engine.limits import EngineLimits
from bitinglip.engine.link import EngineLink
from bitinglip.engine.process import EngineProcess
from tests.conftest import eventually
from tests.engine_process.echoes import Requests

Open = Callable[..., EngineLink]


@pytest.fixture
def open_link() -> Iterator[Open]:
    """Opens links that are closed after the test."""
    opened: list[EngineLink] = []

    def open_one(**options: object) -> EngineLink:
        opened.append(EngineLink(devices=("cpu",), slots=4, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for link in opened:
        link.close()


def is_stuck(link: EngineLink) -> bool:
    """Whether the engine sleeps in the middle of a step."""
    in_step = link._process.board.read()[0] is Activity.STEP
    return in_step and psutil.Process(link.pid).status() == psutil.STATUS_SLEEPING


def test_a_request_that_crashes_its_engine_alone_is_told_so(link: EngineLink, requests: Requests) -> None:
    requests.warm_up()
    first = link.pid

    requests.start("crash:1", fail="crash")
    requests.wait()

    loss = requests.loss("crash:1")
    assert (loss.companions, loss.blameless) == (0, False)
    assert "ended with exit status 70" in loss.message
    requests.start("next:1", text="back")
    requests.wait()
    assert isinstance(requests.ending("next:1"), Finished)
    assert link.pid != first


def test_everyone_in_an_engine_that_crashed_may_be_to_blame(requests: Requests) -> None:
    requests.warm_up()
    requests.start("a:1", seconds=60)
    requests.start("b:1", seconds=60)
    requests.start("done:1")
    requests.wait()
    requests.start("crash:1", fail="crash")
    requests.wait(3)

    losses = [requests.loss(request_id) for request_id in ("a:1", "b:1", "crash:1")]
    assert [(loss.companions, loss.blameless) for loss in losses] == [(2, False)] * 3


def test_a_crash_comes_with_the_last_words(link: EngineLink, requests: Requests) -> None:
    requests.warm_up()
    requests.start("hang:1", fail="hang")
    eventually(lambda: is_stuck(link))

    os.kill(link.pid, signal.SIGSEGV)
    requests.wait()

    message = requests.loss("hang:1").message
    assert "was ended by SIGSEGV; its last words:" in message
    assert "in _fail" in message


def test_an_engine_killed_on_purpose_blames_nobody_and_has_a_successor(
    link: EngineLink, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.warm_up()
    first = link.pid
    # Waits that are asked for are never over within the test.
    monkeypatch.setattr(link, "_back_off", lambda: pytest.fail("waited"))
    for number in range(3):
        requests.start(f"{number}:1", fail="hang")

    link.kill("killed for a reason")
    requests.wait(3)

    losses = [requests.loss(f"{number}:1") for number in range(3)]
    assert [(loss.message, loss.blameless) for loss in losses] == [("killed for a reason", True)] * 3
    requests.start("next:1")
    requests.wait()
    assert isinstance(requests.ending("next:1"), Finished)
    assert link.pid != first


def test_an_engine_is_left_alone_once_the_request_has_ended(link: EngineLink, requests: Requests) -> None:
    requests.warm_up()
    first = link.pid

    link.kill("too late", "warm:1")

    requests.start("next:1")
    requests.wait()
    assert isinstance(requests.ending("next:1"), Finished)
    assert link.pid == first


@pytest.mark.parametrize(("number", "is_seen"), [(signal.SIGKILL, True), (signal.SIGABRT, False)])
def test_a_crash_stays_a_crash_though_the_engine_was_to_be_killed(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, is_seen: bool
) -> None:
    process = EngineProcess({"devices": ["cpu"], "slots": 1, "memory_bytes": None}, os.environ)
    os.kill(process.pid, number)
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    if not is_seen:
        # It dies between the look and the blow.
        monkeypatch.setattr(subprocess.Popen, "poll", lambda _: None)

    process.kill("killed for a reason")
    death = process.bury()

    assert not death.wanted
    assert number.name in death.message


def test_a_step_that_never_ends_is_ended_and_says_where_it_was(open_link: Open) -> None:
    link = open_link(limits=EngineLimits(step_seconds=0.5))
    requests = Requests(link)
    requests.warm_up()
    first = link.pid

    requests.start("hang:1", fail="hang")
    requests.wait()

    loss = requests.loss("hang:1")
    assert (loss.companions, loss.blameless) == (0, False)
    assert "the engine made no step for" in loss.message
    assert "(limit 0.5 s)" in loss.message
    assert "in _fail" in loss.message
    requests.start("next:1")
    requests.wait()
    assert isinstance(requests.ending("next:1"), Finished)
    assert link.pid != first


def test_an_engine_that_waits_for_work_is_within_its_limits(open_link: Open) -> None:
    waiting = open_link(limits=EngineLimits(step_seconds=0.3, prefill_seconds=0.3))
    stuck = open_link(limits=EngineLimits(step_seconds=1))
    requests, clock = Requests(waiting), Requests(stuck)
    requests.warm_up()
    first = waiting.pid

    # Longer than a step may take, in many steps.
    requests.start("long:1", seconds=1)
    requests.wait()
    # And then nothing, until another one has been found stuck for as long.
    clock.start("hang:1", fail="hang")
    clock.wait()

    assert isinstance(requests.ending("long:1"), Finished)
    requests.start("next:1")
    requests.wait()
    assert isinstance(requests.ending("next:1"), Finished)
    assert waiting.pid == first


def test_a_load_that_never_ends_is_ended(open_link: Open, odd_package: Path) -> None:
    link = open_link(
        limits=EngineLimits(load_seconds=4, step_seconds=0.1), environment={"PYTHONPATH": str(odd_package)}
    )
    requests = Requests(link)

    requests.start("load:1", kind="sleeper")
    requests.wait()

    loss = requests.loss("load:1")
    assert "did not finish loading a model for" in loss.message
    assert "in sleep" in loss.message
    assert not loss.blameless


def test_a_broken_engine_ends_at_once_though_its_teardown_hangs(open_link: Open, odd_package: Path) -> None:
    requests = Requests(open_link(environment={"PYTHONPATH": str(odd_package)}))

    requests.start("break:1", kind="breaker")
    requests.wait()

    loss = requests.loss("break:1")
    assert not loss.blameless
    assert "exit status 1" in loss.message
    assert loss.message.endswith("EngineBrokenError: the context is poisoned")


def test_nobody_is_to_blame_for_an_engine_that_dies_before_it_takes_requests(open_link: Open, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nsys.stderr.write('x' * 5000 + ' no driver')\nos._exit(3)\n"
    )
    requests = Requests(open_link(environment={"PYTHONPATH": str(tmp_path)}))

    for number in range(3):
        requests.start(f"{number}:1")
        requests.wait()

        assert requests.loss(f"{number}:1").blameless
    message = requests.loss("0:1").message
    assert message.startswith("the engine process ended with exit status 3; its last words: x")
    assert message.endswith("no driver")
    assert len(message) <= 2000


def test_nobody_is_to_blame_for_a_preload_that_crashes(open_link: Open, odd_package: Path, tmp_path: Path) -> None:
    preload = (wire.Preload("crasher", "m", str(tmp_path)),)
    requests = Requests(open_link(preload=preload, environment={"PYTHONPATH": str(odd_package)}))

    requests.start("a:1")
    requests.wait()

    assert "exit status 4" in requests.loss("a:1").message
    assert requests.loss("a:1").blameless


def test_a_request_that_reached_no_engine_is_not_to_blame(
    link: EngineLink, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.warm_up()
    requests.start("a:1", seconds=60)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    os.kill(link.pid, signal.SIGKILL)
    requests.wait()
    requests.start("b:1")
    requests.wait()

    held, unsent = requests.loss("a:1"), requests.loss("b:1")
    assert (held.companions, held.blameless, unsent.companions, unsent.blameless) == (0, False, 0, True)
    assert "SIGKILL" in held.message
    assert "no engine process could be started" in unsent.message
    monkeypatch.undo()

    def serves() -> bool:
        requests.start("c:1")
        requests.wait()
        return isinstance(requests.ending("c:1"), Finished)

    eventually(serves)


def test_closing_ends_the_process_and_every_request() -> None:
    link = EngineLink(devices=("cpu",), slots=4)
    requests = Requests(link)
    requests.warm_up()
    requests.start("a:1", seconds=60)
    pid = link.pid

    link.close()

    requests.wait()
    assert requests.loss("a:1").blameless
    assert not psutil.pid_exists(pid)
    requests.start("late:1")
    requests.wait()
    assert requests.loss("late:1").blameless


def test_an_engine_whose_memory_stays_has_no_successor(open_link: Open) -> None:
    problem = "GPU 0 still holds 11.2 GB"
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    link = open_link(check_memory=lambda: problem, on_out_of_service=told.put)
    requests = Requests(link)
    requests.warm_up()
    first = link.pid

    requests.start("a:1", seconds=60)
    requests.start("crash:1", fail="crash")
    requests.wait(2)
    requests.start("late:1")
    requests.wait()

    for request_id in ("a:1", "crash:1", "late:1"):
        assert (requests.loss(request_id).message, requests.loss(request_id).blameless) == (problem, True)
    assert told.get(timeout=5) == problem
    assert told.empty()
    assert link.pid == first
    assert [child for child in psutil.Process().children() if "bitinglip.engine.host" in child.cmdline()] == []


def test_an_engine_whose_memory_cannot_be_asked_for_has_a_successor(open_link: Open) -> None:
    def fail() -> None:
        raise RuntimeError("no driver")

    requests = Requests(open_link(check_memory=fail))
    requests.warm_up()

    requests.start("crash:1", fail="crash")
    requests.wait()

    requests.start("next:1")
    requests.wait()
    assert isinstance(requests.ending("next:1"), Finished)


def test_an_engine_that_cannot_be_ended_has_no_successor(open_link: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    link = open_link(on_out_of_service=told.put)
    requests = Requests(link)
    requests.warm_up()
    requests.start("a:1", fail="hang")
    with monkeypatch.context() as kernel:
        # As one that waits in a driver: SIGKILL changes nothing.
        kernel.setattr(subprocess.Popen, "kill", lambda _: None)
        kernel.setattr(engine_process, "LEAVING_SECONDS", 0.1)
        kernel.setattr(engine_process, "KILLING_SECONDS", 0.1)
        link.kill("killed for a reason")
        requests.wait()

    assert isinstance(requests.loss("a:1"), EngineLost)
    assert "does not end, although it was killed" in requests.loss("a:1").message
    assert told.get(timeout=5) == requests.loss("a:1").message
    os.kill(link.pid, signal.SIGKILL)
    eventually(lambda: link._process._popen.poll() is not None)
