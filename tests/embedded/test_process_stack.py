"""Children come back when they die and go in reverse order when asked."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitinglip.embedded import ChildStartError, ProcessStack, Program
from bitinglip.embedded.child import Child
from bitinglip.embedded.children import ChildDeath
from bitinglip.embedded.guard import Guard

ORDER = "trap 'echo {name} >> \"{order}\"; exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done"
LISTEN = "while :; do sleep 1000 & wait; done"
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
    assert deaths == [ChildDeath("child", child.pid, -signal.SIGKILL, 0.1)]


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


def test_a_deaf_child_is_killed_after_its_time_and_reported(
    stack: ProcessStack, make_program: MakeProgram, deaths
) -> None:
    child = stack.start(make_program("child", DEAF, stop_seconds=0.1))
    stack.stop()
    assert child.exit_status == -signal.SIGKILL
    assert deaths == [ChildDeath("child", child.pid, -signal.SIGKILL, None)]


def test_one_group_stops_together(stack: ProcessStack, make_program: MakeProgram, tmp_path: Path) -> None:
    script = f"trap 'echo > {{own}}; until [ -e {{other}} ]; do sleep 0.02; done; exit 0' TERM; echo ready; {LISTEN}"
    left, right = tmp_path / "left", tmp_path / "right"
    children = [
        stack.start(make_program(own.name, script.format(own=own, other=other), group="pair", stop_seconds=5))
        for own, other in ((left, right), (right, left))
    ]
    stack.stop()
    assert [child.exit_status for child in children] == [0, 0]


def test_a_hurried_child_is_asked_again(stack: ProcessStack, make_program: MakeProgram, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    script = f"trap 'echo >> {asked}; [ $(wc -l < {asked}) -lt 2 ] || exit 0' TERM; echo ready; {LISTEN}"
    child = stack.start(make_program("child", script, stop_seconds=60, hurried_stop_seconds=30))
    stack.stop(is_hurried=asked.exists)
    assert child.exit_status == 0


def test_a_signal_that_is_lost_in_a_hurry_is_sent_again(
    stack: ProcessStack, make_program: MakeProgram, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    script = f"trap 'echo >> {asked}; [ $(wc -l < {asked}) -lt 3 ] || exit 0' TERM; echo ready; {LISTEN}"
    child = stack.start(make_program("child", script, stop_seconds=60, hurried_stop_seconds=30))
    stack.stop(is_hurried=asked.exists)
    assert child.exit_status == 0


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


def test_a_child_that_may_leave_is_not_started_again(
    tmp_path: Path, stack: ProcessStack, make_program: MakeProgram, deaths, eventually
) -> None:
    leaver = stack.start(make_program("leaver", f"trap 'exit 0' TERM; echo ready; {LISTEN}", may_leave=True))
    os.kill(leaver.pid, signal.SIGTERM)
    eventually(stack.is_empty)
    assert deaths == [ChildDeath("leaver", leaver.pid, 0, None)]
    assert not list(tmp_path.glob("*.pid"))


def test_a_child_that_may_leave_is_started_again_when_it_fails(
    stack: ProcessStack, make_program: MakeProgram, deaths, eventually
) -> None:
    stack.start(make_program("child", "echo ready; exit 3", may_leave=True))
    eventually(lambda: len(deaths) == 2)
    assert not stack.is_empty()


def test_a_slow_report_of_one_death_holds_up_no_other_child(
    tmp_path: Path, guard: Guard, make_program: MakeProgram, eventually
) -> None:
    release = threading.Event()
    slow = ProcessStack(tmp_path, guard, on_death=lambda death: release.wait() if death.name == "first" else None)
    first, second = slow.start(make_program("first")), slow.start(make_program("second"))
    os.kill(first.pid, signal.SIGKILL)
    os.kill(second.pid, signal.SIGKILL)
    eventually(lambda: slow.find_pids().get("second", second.pid) != second.pid)
    slow.stop()
    assert slow.is_empty()
    release.set()


def test_a_child_without_a_log_writes_where_its_parent_does(
    stack: ProcessStack, make_program: MakeProgram, capfd: pytest.CaptureFixture[str]
) -> None:
    program = make_program(
        "child",
        "echo out; echo err >&2; exit 7",
        wait_ready=lambda child: child.wait_until(lambda: False, within_seconds=10),
    )
    with pytest.raises(ChildStartError, match=r"child ended with 7 before it was ready$"):
        stack.start(dataclasses.replace(program, log_file=None))
    assert capfd.readouterr() == ("out\n", "err\n")


def test_an_orphan_is_not_given_the_time_of_a_long_drain(stack: ProcessStack, make_program: MakeProgram) -> None:
    assert stack.start(make_program("child", stop_seconds=86_400)).charge.stop_seconds == 30


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
