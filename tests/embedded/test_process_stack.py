"""Children come back when they die and go in reverse order when asked."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitinglip.embedded import ChildStartError, ProcessStack, Program
from bitinglip.embedded.child import Child
from bitinglip.embedded.children import ChildDeath
from bitinglip.embedded.guard import Guard

ORDER = "trap 'echo {name} >> \"{order}\"; exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 1000; done"

MakeProgram = Callable[..., Program]


def test_children_stop_in_reverse_order(tmp_path: Path, stack: ProcessStack, make_program: MakeProgram) -> None:
    order = tmp_path / "order"
    for name in ("first", "second", "third"):
        stack.start(make_program(name, ORDER.format(name=name, order=order)))
    stack.stop()
    assert order.read_text().split() == ["third", "second", "first"]
    assert not list(tmp_path.glob("*.pid"))


def test_a_killed_child_is_reported_and_comes_back(
    stack: ProcessStack, make_program: MakeProgram, deaths, eventually
) -> None:
    child = stack.start(make_program("child"))
    os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: stack.find_pids().get("child", child.pid) != child.pid)
    assert deaths == [ChildDeath("child", -signal.SIGKILL, 0.1)]


def test_a_restarted_child_is_still_stopped_in_its_turn(
    tmp_path: Path, stack: ProcessStack, make_program: MakeProgram, eventually
) -> None:
    order = tmp_path / "order"
    first = stack.start(make_program("first", ORDER.format(name="first", order=order)))
    stack.start(make_program("second", ORDER.format(name="second", order=order)))
    os.kill(first.pid, signal.SIGKILL)
    log = tmp_path / "first.log"
    eventually(lambda: log.read_text().count("ready") == 2)
    stack.stop()
    assert order.read_text().split() == ["second", "first"]


def test_the_wait_before_a_restart_doubles(stack: ProcessStack, make_program: MakeProgram, deaths, eventually) -> None:
    stack.start(make_program("child", "echo ready; exit 3"))
    eventually(lambda: len(deaths) == 4)
    assert [death.restart_seconds for death in deaths[:4]] == [0.1, 0.2, 0.4, 0.8]
    assert {death.exit_status for death in deaths} == {3}


def test_a_child_that_never_gets_ready_shows_its_last_words(stack: ProcessStack, make_program: MakeProgram) -> None:
    with pytest.raises(ChildStartError, match=r"(?s)ended with 7.*cannot find the moon"):
        stack.start(make_program("child", "echo cannot find the moon; exit 7"))
    assert stack.find_pids() == {}


def test_a_child_that_stays_silent_is_stopped(stack: ProcessStack, make_program: MakeProgram, is_gone) -> None:
    seen: list[Child] = []

    def wait_ready(child: Child) -> None:
        seen.append(child)
        child.wait_until(lambda: False, within_seconds=0.1)

    with pytest.raises(ChildStartError, match=r"not ready within 0\.1 s"):
        stack.start(make_program("child", wait_ready=wait_ready))
    assert is_gone(seen[0].pid)


def test_what_a_dead_child_leaves_in_its_group_is_killed(
    tmp_path: Path, stack: ProcessStack, make_program: MakeProgram, eventually, is_gone
) -> None:
    child = stack.start(make_program("child", f"sleep 1000 & echo $! > '{tmp_path}/pid'; echo ready; wait"))
    grandchild = int((tmp_path / "pid").read_text())
    os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: is_gone(grandchild))


def test_a_deaf_child_is_killed_after_its_time(stack: ProcessStack, make_program: MakeProgram) -> None:
    child = stack.start(make_program("child", DEAF, stop_seconds=0.1))
    stack.stop()
    assert child.exit_status == -signal.SIGKILL


def test_a_hurried_stop_cuts_the_time(stack: ProcessStack, make_program: MakeProgram) -> None:
    child = stack.start(make_program("child", DEAF, stop_seconds=60))
    begun = time.monotonic()
    stack.stop(is_hurried=lambda: True)
    assert child.exit_status == -signal.SIGKILL
    assert time.monotonic() - begun < 10


def test_a_stop_does_not_wait_for_a_restart(stack: ProcessStack, make_program: MakeProgram, deaths, eventually) -> None:
    stack.start(make_program("child", "echo ready; exit 3"))
    eventually(lambda: len(deaths) == 3)
    stack.stop()
    assert stack.find_pids() == {}


def test_nothing_starts_on_a_stopped_stack(stack: ProcessStack, make_program: MakeProgram) -> None:
    stack.stop()
    with pytest.raises(ChildStartError, match="stopping"):
        stack.start(make_program("child"))


def test_children_lead_their_own_session(stack: ProcessStack, make_program: MakeProgram) -> None:
    child = stack.start(make_program("child"))
    assert os.getsid(child.pid) == child.pid


def test_what_an_earlier_stack_left_is_stopped_first(
    tmp_path: Path, guard: Guard, stack: ProcessStack, make_program: MakeProgram
) -> None:
    forgotten = stack.start(make_program("child"))
    later = ProcessStack(tmp_path, guard)
    child = later.start(make_program("child"))
    assert forgotten.wait(5)
    assert child.pid != forgotten.pid
    later.stop()


def test_a_long_log_is_put_aside(tmp_path: Path, stack: ProcessStack, make_program: MakeProgram) -> None:
    log = tmp_path / "child.log"
    with log.open("wb") as file:
        file.truncate(10_000_001)
    stack.start(make_program("child"))
    assert log.read_text() == "ready\n"
    assert (tmp_path / "child.old.log").stat().st_size == 10_000_001
