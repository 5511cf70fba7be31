"""The guard stops what a killed parent left, and nothing else."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitinglip.embedded.guard import Guard
from bitinglip.embedded.guard_process import Charge, find_start

ORDER = "trap 'echo {name} >> \"{order}\"; exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done"


@pytest.fixture
def start_child(request: pytest.FixtureRequest) -> Callable[..., "subprocess.Popen[str]"]:
    def start(script: str) -> "subprocess.Popen[str]":
        child = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
        request.addfinalizer(lambda: end(child))
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    def end(child: "subprocess.Popen[str]") -> None:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()

    return start


def make_charge(child: "subprocess.Popen[str]", name: str = "child", stop_seconds: float = 5) -> Charge:
    return Charge(name, child.pid, find_start(child.pid) or "", signal.SIGTERM, stop_seconds)


def test_the_last_added_is_stopped_first(tmp_path: Path, guard: Guard, start_child) -> None:
    order = tmp_path / "order"
    for name in ("first", "second", "third"):
        guard.add(make_charge(start_child(ORDER.format(name=name, order=order)), name))
    guard.close()
    assert order.read_text().split() == ["third", "second", "first"]


def test_a_replaced_child_keeps_its_place(tmp_path: Path, guard: Guard, start_child) -> None:
    order = tmp_path / "order"
    for name in ("first", "second", "first"):
        guard.add(make_charge(start_child(ORDER.format(name=name, order=order)), name))
    guard.close()
    assert order.read_text().split() == ["second", "first"]


def test_neighbours_of_one_group_are_stopped_together(tmp_path: Path, guard: Guard, start_child) -> None:
    script = "trap 'echo > {own}; until [ -e {other} ]; do sleep 0.02; done; exit 0' TERM; echo ready; {listen}"
    left, right = tmp_path / "left", tmp_path / "right"
    children = []
    for own, other in ((left, right), (right, left)):
        children.append(start_child(script.format(own=own, other=other, listen="while :; do sleep 1000 & wait; done")))
        guard.add(make_charge(children[-1], own.name)._replace(group="pair"))
    guard.close()
    assert [child.wait(5) for child in children] == [0, 0]


def test_a_child_that_ignores_its_signal_is_killed(guard: Guard, start_child) -> None:
    child = start_child("trap '' TERM; echo ready; while :; do sleep 1000; done")
    guard.add(make_charge(child, stop_seconds=0.2))
    guard.close()
    assert child.wait(5) == -signal.SIGKILL


def test_a_recycled_pid_is_left_alone(guard: Guard, start_child) -> None:
    child = start_child("echo ready; exec sleep 1000")
    guard.add(make_charge(child)._replace(started_at="1-of-an-earlier-owner"))
    guard.close()
    assert child.poll() is None


def test_a_removed_child_is_left_alone(guard: Guard, start_child) -> None:
    child = start_child("echo ready; exec sleep 1000")
    guard.add(make_charge(child))
    guard.remove("child")
    guard.close()
    assert child.poll() is None


def test_a_killed_guard_is_replaced_with_all_its_charges(guard: Guard, start_child, eventually, is_gone) -> None:
    first, second = (start_child("echo ready; exec sleep 1000") for _ in range(2))
    guard.add(make_charge(first, "first"))
    killed = guard.pid
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: is_gone(killed))
    guard.add(make_charge(second, "second"))
    eventually(lambda: guard.pid != killed)
    guard.close()
    assert first.wait(5) == second.wait(5) == -signal.SIGTERM


def test_signals_to_every_process_of_a_service_do_not_end_the_guard(guard: Guard, start_child, eventually) -> None:
    child = start_child("echo ready; exec sleep 1000")
    guard.add(make_charge(child))
    eventually(lambda: ignored_signals(guard.pid) >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guard.pid, number)
    assert find_start(guard.pid) is not None
    guard.close()
    assert child.wait(5) == -signal.SIGTERM


def ignored_signals(pid: int) -> set[int]:
    mask = int(Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_the_guard_leads_its_own_session_and_is_small(guard: Guard) -> None:
    assert os.getsid(guard.pid) == guard.pid
    pages = int(Path(f"/proc/{guard.pid}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < 20_000_000


def test_the_guard_imports_nothing_of_ours() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import bitinglip.embedded.guard_process as g; print(g.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    alone = subprocess.run(
        [sys.executable, "-I", "-S", loaded], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
