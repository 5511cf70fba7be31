"""The parent's end of the guard: it tells `guard_process.py` which children to stop should this process be killed.

Invariant: from `add` to `remove` a child cannot outlive this process for longer than its own stop time. Only a `kill
-9` of both parent and guard leaves a child behind; the next start finds it by its pid file (`children.py`).
"""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from bitinglip.embedded import guard_process
from bitinglip.embedded.guard_process import Charge


class Guard:
    """One guard process.

    Args:
        log_file: Where it says what it stopped.
        held_fds: Descriptors that stay open in the guard until it is done, so that a lock outlives this process as
            long as its children do.
    """

    def __init__(self, log_file: Path, *, held_fds: Sequence[int] = ()) -> None:
        self._log_file = log_file
        self._held_fds = tuple(held_fds)
        self._charges: dict[str, Charge] = {}
        self._lock = threading.Lock()
        self._process = self._spawn()

    @property
    def pid(self) -> int:
        """The guard's own process."""
        return self._process.pid

    def add(self, charge: Charge) -> None:
        """Stop that process too, before those added earlier, should this one be killed."""
        with self._lock:
            self._charges[charge.name] = charge
            self._tell(f"add {charge.format()}")

    def remove(self, name: str) -> None:
        """Forget a process that has ended."""
        with self._lock:
            if self._charges.pop(name, None):
                self._tell(f"remove {name}")

    def close(self) -> None:
        """End the guard; it stops what was not removed."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        try:
            self._write(line)
        except BrokenPipeError:
            # The guard itself was killed: a new one takes over every charge.
            self._let_go()
            self._process = self._spawn()
            for charge in self._charges.values():
                self._write(f"add {charge.format()}")

    def _write(self, line: str) -> None:
        if self._process.stdin is not None:
            # One write a line, far below PIPE_BUF: the guard never sees half of one.
            os.write(self._process.stdin.fileno(), f"{line}\n".encode())

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log_file.open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", str(Path(guard_process.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=self._held_fds,
            )
