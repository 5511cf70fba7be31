"""The children of one parent, as a stack: started in order, restarted when they die, stopped in reverse order.

    start ──► wait_ready ──► supervise ──► died ──► on_death, wait 0.1, 0.2, 0.4 ... 10 s ──► start
                                      ├──► left for good: on_death
                                      └──► stop

Every child is with the guard from its first moment to its last. It also has a pid file, by which the next start finds
and stops it in the one case that the guard cannot cover, its own kill -9.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from bitinglip.embedded.child import Child, ChildStartError, Program
from bitinglip.embedded.guard import Guard
from bitinglip.embedded.guard_process import Charge, parse_charge, stop_process
from bitinglip.embedded.private_files import write_private
from bitinglip.errors import BitingLipError
from bitinglip.telemetry import get_logger

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0
HEALTHY_SECONDS = 60.0


@dataclass(frozen=True)
class ChildDeath:
    """A child ended without being asked, or by a signal: in either case it cannot have left in order.

    Attributes:
        name: The program's name.
        pid: What it was.
        exit_status: As `subprocess` gives it: negative for a signal.
        restart_seconds: The wait before it is started again; None: it is not.
        problem: Why a restart failed; empty if it died while it ran.
    """

    name: str
    pid: int
    exit_status: int | None
    restart_seconds: float | None
    problem: str = ""


def log_death(death: ChildDeath) -> None:
    """Report a death where the logs go."""
    if death.exit_status == 0 and death.restart_seconds is None:
        get_logger().info("child_left", child=death.name, pid=death.pid, restarts=False)
        return
    get_logger().warning(
        "child_died",
        child=death.name,
        pid=death.pid,
        exit_status=death.exit_status,
        restart_seconds=death.restart_seconds,
        problem=death.problem,
    )


class ProcessStack:
    """Children that live and end with this process.

    Args:
        folder: Holds the pid files.
        guard: Stops the children should this process be killed.
        on_death: Called for each end that was not asked for, before the restart, and for each that a signal forced when
            the stack stops; in a thread of that child alone.
    """

    def __init__(self, folder: Path, guard: Guard, *, on_death: Callable[[ChildDeath], None] = log_death) -> None:
        self._folder = folder
        self._guard = guard
        self._on_death = on_death
        self._children: dict[str, Child] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def start(self, program: Program) -> Child:
        """Start it on top of the others and return when it is ready; from then on it is restarted when it dies.

        Raises:
            ChildStartError: If it never was; nothing of it is left.
        """
        child = self._launch(program)
        try:
            program.wait_ready(child)
        except BaseException:
            self._take_down(child)
            raise
        threading.Thread(target=self._supervise, args=(child,), name=f"supervise-{program.name}", daemon=True).start()
        return child

    def find_pids(self) -> dict[str, int]:
        """The children that run now, in the order of their start."""
        with self._lock:
            return {name: child.pid for name, child in self._children.items() if not child.has_ended()}

    def is_empty(self) -> bool:
        """Whether no child runs or waits to be started again."""
        with self._lock:
            return not self._children

    def stop(self, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Stop every child, the last started first, those of one group together. Idempotent.

        Args:
            is_hurried: Asked while waiting; once true, every child is asked twice and gets its `hurried_stop_seconds`.
        """
        self._stopping.set()
        while group := self._find_last_group():
            with ThreadPoolExecutor(len(group), thread_name_prefix="stop") as threads:
                list(threads.map(lambda child: self._stop_child(child, is_hurried), group))

    def _stop_child(self, child: Child, is_hurried: Callable[[], bool]) -> None:
        is_reported = child.has_ended()
        self._take_down(child, is_hurried)
        if not is_reported and child.exit_status is not None and child.exit_status < 0:
            self._on_death(ChildDeath(child.program.name, child.pid, child.exit_status, None))

    def _find_last_group(self) -> list[Child]:
        with self._lock:
            groups = groupby(reversed(self._children.values()), lambda child: child.program.group or child.program.name)
            return next((list(group) for _, group in groups), [])

    def _launch(self, program: Program) -> Child:
        pid_file = self._folder / f"{program.name}.pid"
        program.prepare(_stop_leftover(pid_file))
        with self._lock:
            if self._stopping.is_set():
                raise ChildStartError(program.name, "was not started, the others are stopping", "", program.log_file)
            child = self._children[program.name] = Child(program)
            self._guard.add(child.charge)
        write_private(pid_file, child.charge.format())
        return child

    def _take_down(self, child: Child, is_hurried: Callable[[], bool] = lambda: False) -> None:
        child.stop(is_hurried)
        self._guard.remove(child.program.name)
        (self._folder / f"{child.program.name}.pid").unlink(missing_ok=True)
        with self._lock:
            if self._children.get(child.program.name) is child:
                del self._children[child.program.name]

    def _supervise(self, child: Child) -> None:
        delay_seconds = FIRST_DELAY_SECONDS
        problem = ""
        while child.wait() and not self._stopping.is_set():
            if child.program.may_leave and child.exit_status == 0:
                self._on_death(ChildDeath(child.program.name, child.pid, child.exit_status, None))
                self._take_down(child)
                return
            if child.lived_seconds > HEALTHY_SECONDS:
                delay_seconds = FIRST_DELAY_SECONDS
            self._on_death(ChildDeath(child.program.name, child.pid, child.exit_status, delay_seconds, problem))
            if self._stopping.wait(delay_seconds):
                return
            delay_seconds = min(2 * delay_seconds, LONGEST_DELAY_SECONDS)
            child, problem = self._restart(child)

    def _restart(self, dead: Child) -> tuple[Child, str]:
        """Return the new child, or one that has ended, and why."""
        child = dead
        try:
            child = self._launch(dead.program)
            dead.program.wait_ready(child)
        except (BitingLipError, OSError) as exc:
            child.stop()
            return child, str(exc)
        return child, ""


def _stop_leftover(pid_file: Path) -> Charge | None:
    """Stop what an earlier parent left running after it and its guard were both killed; return what it was."""
    try:
        charge = parse_charge(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    with suppress(ProcessLookupError):
        stop_process(charge)
    return charge
