"""The guard: a child that outlives a killed parent just long enough to stop what the parent left behind.

It reads lines on stdin, `add NAME PID STARTED_AT SIGNAL SECONDS [GROUP]` and `remove NAME`. End of file means that the
parent is gone, however it went: nothing else holds the other end. Then it stops what is left, the last added first,
neighbours of one group together. A name that is added again keeps its place: a database that was restarted is still
stopped after what uses it.

Run by path with `python -I -S` (9 MB of memory), so it imports the standard library only. Its neighbours import
`find_start` and `stop_process` from here, so that a process is named and stopped in one way everywhere.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 0.01
KILL_SECONDS = 5.0


class Charge(NamedTuple):
    """One process and how it wants to be stopped.

    Attributes:
        name: Unique among its parent's children; without spaces.
        pid: The process, which leads its own session.
        started_at: Its start in the kernel's words. (pid, started_at) is never used again; a pid is.
        stop_signal: What it takes as a request to end.
        stop_seconds: How long it may take before SIGKILL.
        group: Neighbours that have the same one are stopped together; empty: each in its turn. Without spaces.
    """

    name: str
    pid: int
    started_at: str
    stop_signal: int
    stop_seconds: float
    group: str = ""

    def format(self) -> str:
        """The charge as one line of words."""
        return (
            f"{self.name} {self.pid} {self.started_at} {self.stop_signal:d} {self.stop_seconds} {self.group}".rstrip()
        )


def parse_charge(line: str) -> Charge:
    """The charge that `format` made the line from.

    Raises:
        ValueError: If it did not.
    """
    name, pid, started_at, stop_signal, stop_seconds, *group = line.split()
    return Charge(name, int(pid), started_at, int(stop_signal), float(stop_seconds), " ".join(group))


def find_start(pid: int) -> str | None:
    """Return when the process started, in the kernel's words, or None if it has ended (reaped or not)."""
    if sys.platform != "linux":
        return _ask_ps(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else f"{fields[19]}-{_read_boot_id()}"


def stop_process(charge: Charge) -> None:
    """Stop it: its own signal, its time, then SIGKILL to what is left of its group. A later owner of the pid is spared.

    Weakness: between the end of the process, seen within 10 ms, and the kill of its group, every other number would
    have to be used up for this one to name a new group.
    """
    if not _lives(charge):
        return
    os.kill(charge.pid, charge.stop_signal)
    _wait_for_end(charge, charge.stop_seconds)
    with suppress(ProcessLookupError):
        os.killpg(charge.pid, signal.SIGKILL)
    _wait_for_end(charge, seconds=KILL_SECONDS)


def watch_parent() -> None:
    """Follow the parent's lines until end of file, then stop what is left."""
    charges: dict[str, Charge] = {}
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "add":
            charge = parse_charge(rest)
            charges[charge.name] = charge
        else:
            charges.pop(rest, None)
    for _, group in groupby(reversed(charges.values()), lambda charge: charge.group or charge.name):
        threads = [threading.Thread(target=_stop_orphan, args=(charge,)) for charge in group]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _stop_orphan(charge: Charge) -> None:
    _log(f"the parent is gone: stopping {charge.name} ({charge.pid})")
    try:
        stop_process(charge)
    except (ProcessLookupError, PermissionError) as exc:
        _log(f"cannot stop {charge.name} ({charge.pid}): {exc}")


def _log(message: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}\n")
    sys.stderr.flush()


def _lives(charge: Charge) -> bool:
    return find_start(charge.pid) == charge.started_at


def _wait_for_end(charge: Charge, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _lives(charge):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


@cache
def _read_boot_id() -> str:
    """Which boot the kernel's clock counts from: after another one, a pid and its start may both come again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _ask_ps(pid: int) -> str | None:
    command = ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)]
    state, _, started_at = subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition(" ")  # noqa: S603
    return None if state in {"", "Z"} else "_".join(started_at.split())


if __name__ == "__main__":
    # A service manager signals every process of the unit; the guard's only cue is end of file.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watch_parent()
