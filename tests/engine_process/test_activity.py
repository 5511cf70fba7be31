"""What the engine does is seen from the worker's process, and held against its limits."""

import subprocess
import sys
import time

import pytest

from bitinglip.engine.activity import Activity, ActivityBoard, open_board_file
from bitinglip.engine.limits import EngineLimits, Watchdog

LIMITS = EngineLimits(load_seconds=900, prefill_seconds=300, step_seconds=120)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def board() -> ActivityBoard:
    with open_board_file() as file:
        return ActivityBoard(file.fileno())


def watch(watchdog: Watchdog, clock: Clock, seconds: float, *, every: float = 0.25) -> str | None:
    """What a watchdog says in the end."""
    overrun = None
    for _ in range(round(seconds / every)):
        clock.now += every
        overrun = watchdog.find_overrun()
    return overrun


def test_what_one_process_writes_another_one_reads() -> None:
    program = (
        "import sys\n"
        "from bitinglip.engine.activity import Activity, ActivityBoard\n"
        "ActivityBoard(int(sys.argv[1])).begin(Activity.PREFILL)\n"
    )
    with open_board_file() as file:
        board = ActivityBoard(file.fileno())
        fd = file.fileno()
        assert board.read()[0] is Activity.START
        before = time.monotonic()
        subprocess.run([sys.executable, "-c", program, str(fd)], pass_fds=[fd], check=True)

    activity, began = board.read()
    assert activity is Activity.PREFILL
    assert before < began < time.monotonic()


@pytest.mark.parametrize(
    ("activity", "limit"),
    [(Activity.PRELOAD, 900), (Activity.LOAD, 900), (Activity.PREFILL, 300), (Activity.STEP, 120)],
)
def test_each_activity_has_its_limit(board: ActivityBoard, activity: Activity, limit: float) -> None:
    clock = Clock()
    watchdog = Watchdog(board, LIMITS, clock)
    board.begin(activity)

    assert watch(watchdog, clock, limit - 1) is None
    overrun = watch(watchdog, clock, 2)

    assert overrun is not None
    assert f"(limit {limit} s)" in overrun


def test_a_process_that_never_starts_is_held_to_the_limit_of_a_load(board: ActivityBoard) -> None:
    clock = Clock()
    watchdog = Watchdog(board, LIMITS, clock)

    overrun = watch(watchdog, clock, 901)

    assert overrun is not None
    assert "did not start" in overrun


def test_waiting_has_no_limit(board: ActivityBoard) -> None:
    clock = Clock()
    watchdog = Watchdog(board, LIMITS, clock)
    board.begin(Activity.IDLE)

    assert watch(watchdog, clock, 2000) is None


def test_every_step_begins_anew(board: ActivityBoard) -> None:
    clock = Clock()
    watchdog = Watchdog(board, LIMITS, clock)

    for _ in range(3):
        board.begin(Activity.STEP)
        assert watch(watchdog, clock, 100) is None


def test_an_engine_that_was_frozen_together_with_its_watchdog_is_not_stuck(board: ActivityBoard) -> None:
    clock = Clock()
    watchdog = Watchdog(board, LIMITS, clock)
    board.begin(Activity.STEP)
    watch(watchdog, clock, 1)

    clock.now += 3600

    assert watchdog.find_overrun() is None
