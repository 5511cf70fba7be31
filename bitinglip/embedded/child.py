"""One child process: started, watched until its end, stopped.

Each child leads its own session, so that Ctrl-C on the terminal reaches only the parent, which stops its children in
order. When a child ends, what it leaves in its process group is killed before the child is reaped: until then the
number is still the child's own, so nobody else's group can be hit.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bitinglip.embedded.accounts import Account
from bitinglip.embedded.guard_process import POLL_SECONDS, Charge, find_start
from bitinglip.errors import ServerUnreachableError

KEPT_LOG_BYTES = 10_000_000
LAST_WORDS_LINES = 12
ORPHAN_STOP_SECONDS = 30.0
"""At most, for the guard: after a `kill -9` of the parent, the next one waits for the end of its children."""

HURRIED_STOP_SECONDS = 0.5
INSIST_SECONDS = 0.5


class ChildStartError(ServerUnreachableError):
    """A child ended, or stayed silent, before it was ready.

    Args:
        name: The program's name.
        reason: What it did instead.
        last_words: The end of its log.
        log_file: None if it wrote where its parent does.
    """

    code = "child_start"

    def __init__(self, name: str, reason: str, last_words: str, log_file: Path | None) -> None:
        self.name = name
        self.last_words = last_words
        where = f"; {log_file} ends with:\n{last_words or '(nothing)'}" if log_file else ""
        super().__init__(f"{name} {reason}{where}")


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run and how to stop it.

    Attributes:
        name: Unique among its parent's children, without spaces; names its pid file.
        argv: Holds no password: other users can read it.
        log_file: Takes its output, appended; None: it writes where we do.
        env: The whole environment; None inherits ours.
        folder: The working folder, entered before the account is taken on; None inherits ours.
        account: Whom to run it as; None: as ourselves.
        stdin: What it reads there.
        stop_signal: What it takes as a request to end.
        stop_seconds: How long it may take before SIGKILL.
        hurried_stop_seconds: How long it may take once it is hurried: asked a second time.
        group: Neighbours on the stack that have the same one are stopped together; empty: each in its turn. Without
            spaces.
        may_leave: Whether it ends for good when it ends by itself with status 0; otherwise it is started again.
        prepare: Called before each start, with what was started last if that was not stopped in order.
        wait_ready: Called after each start; returns when it can be used, raises ChildStartError if it never will.
    """

    name: str
    argv: tuple[str, ...]
    log_file: Path | None
    env: Mapping[str, str] | None = None
    folder: Path | None = None
    account: Account | None = None
    stdin: str = ""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10
    hurried_stop_seconds: float = HURRIED_STOP_SECONDS
    group: str = ""
    may_leave: bool = False
    prepare: Callable[[Charge | None], None] = field(default=lambda _: None)
    wait_ready: Callable[["Child"], None] = field(default=lambda _: None)


class Child:
    """A program that has been started once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.exit_status: int | None = None
        self._ended = threading.Event()
        self._log_start = _rotate(program.log_file) if program.log_file else 0
        self._born = time.monotonic()
        self._process = _spawn(program)
        self.pid = self._process.pid
        orphan_seconds = min(program.stop_seconds, ORPHAN_STOP_SECONDS)
        started_at = find_start(self.pid) or "ended"
        self.charge = Charge(program.name, self.pid, started_at, program.stop_signal, orphan_seconds, program.group)
        threading.Thread(target=self._reap, name=f"reap-{program.name}", daemon=True).start()

    @property
    def lived_seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self._born

    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._ended.is_set()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Whether it is gone, at the latest after so many seconds."""
        return self._ended.wait(timeout_seconds)

    def read_log(self) -> str:
        """What it wrote since this start; nothing if it has no log of its own."""
        return _read_from(self.program.log_file, self._log_start) if self.program.log_file else ""

    def wait_until(self, is_ready: Callable[[], bool], *, within_seconds: float) -> None:
        """Return when it says that it is ready.

        Raises:
            ChildStartError: If it ends first, or takes longer.
        """
        deadline = time.monotonic() + within_seconds
        while not is_ready():
            if self.has_ended():
                raise self._fail(f"ended with {self.exit_status} before it was ready")
            if time.monotonic() > deadline:
                raise self._fail(f"was not ready within {within_seconds:g} s")
            self.wait(POLL_SECONDS)

    def stop(self, is_hurried: Callable[[], bool] = lambda: False) -> None:
        """Ask it to end, wait its time, then kill its group.

        Args:
            is_hurried: Asked while waiting; once true, it is asked to end again and gets `hurried_stop_seconds`.
        """
        if self.has_ended():
            return
        self._ask_to_end()
        deadline = time.monotonic() + self.program.stop_seconds
        while not self.wait(POLL_SECONDS):
            if is_hurried():
                self._insist()
                return
            if time.monotonic() > deadline:
                self._kill()
                return

    def _insist(self) -> None:
        """Ask again, and again: a signal that comes too soon after another is heard as the same one."""
        deadline = time.monotonic() + self.program.hurried_stop_seconds
        while time.monotonic() < deadline:
            self._ask_to_end()
            if self.wait(INSIST_SECONDS):
                return
        self._kill()

    def _ask_to_end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, self.program.stop_signal)

    def _kill(self) -> None:
        self._kill_group()
        self.wait()

    def _fail(self, reason: str) -> ChildStartError:
        log_file = self.program.log_file
        last_words = read_last_words(log_file, self._log_start) if log_file else ""
        return ChildStartError(self.program.name, reason, last_words, log_file)

    def _reap(self) -> None:
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self._kill_group()
        self.exit_status = self._process.wait()
        self._ended.set()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def read_last_words(log_file: Path, start: int = 0) -> str:
    """The end of a log, for an error's message."""
    return "\n".join(_read_from(log_file, start).splitlines()[-LAST_WORDS_LINES:])


def _read_from(log_file: Path, start: int) -> str:
    with log_file.open("rb") as log:
        log.seek(start)
        return log.read().decode(errors="replace")


def _rotate(log_file: Path) -> int:
    """Keep one old log of at most 10 MB; return where the new lines will begin."""
    size = log_file.stat().st_size if log_file.exists() else 0
    if size <= KEPT_LOG_BYTES:
        return size
    log_file.replace(log_file.with_suffix(".old.log"))
    return 0


def _spawn(program: Program) -> subprocess.Popen[bytes]:
    account = program.account
    with program.log_file.open("ab") if program.log_file else nullcontext() as log:
        process = subprocess.Popen(  # noqa: S603
            program.argv,
            stdin=subprocess.PIPE if program.stdin else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT if log else None,
            env=program.env,
            cwd=program.folder,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    if process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(program.stdin.encode())
    return process
