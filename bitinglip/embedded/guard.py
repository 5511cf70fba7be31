"""The parent's end of the guard: it tells `guard_process.py` which children to stop should this process be killed.

Invariant: from `add` to `remove` a child cannot outlive this process for longer than its own stop time. Only a `kill
-9` of both parent and guard leaves a child behind; the next start finds it by its pid file (`children.py`).
"""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bitinglip.embedded import guard_process
from bitinglip.embedded.guard_process import Charge
from bitinglip.telemetry import get_logger

RESTART_SECONDS = 0.1


class Guard:
    """One guard process, replaced when it dies.

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
        self._closing = threading.Event()
        self._process, self._pipe = self._spawn()
        threading.Thread(target=self._replace_dead, name="watch-guard", daemon=True).start()

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
        """End the guard; it stops what was not removed. Idempotent."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            os.close(self._pipe)
            process = self._process
        process.wait()

    def _tell(self, line: str) -> None:
        if self._closing.is_set():
            return
        # One that was killed a moment ago is replaced, and the next one is told everything.
        with suppress(BrokenPipeError):
            # One write a line, far below PIPE_BUF: the guard never sees half of one.
            os.write(self._pipe, f"{line}\n".encode())

    def _replace_dead(self) -> None:
        while True:
            self._process.wait()
            if self._closing.wait(RESTART_SECONDS):
                return
            get_logger().warning("guard_died", exit_status=self._process.returncode)
            with self._lock:
                if self._closing.is_set():
                    return
                os.close(self._pipe)
                self._process, self._pipe = self._spawn()
                for charge in self._charges.values():
                    self._tell(f"add {charge.format()}")

    def _spawn(self) -> tuple["subprocess.Popen[bytes]", int]:
        """Return the guard and the only descriptor in the world that its stdin hears."""
        reader, writer = os.pipe()
        with self._log_file.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", str(Path(guard_process.__file__))],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=self._held_fds,
            )
        os.close(reader)
        return process, writer
