"""One engine process as its worker sees it: the pipe to it, what it does now, its last words, how it ended."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from bitinglip.engine import wire
from bitinglip.engine.activity import Activity, ActivityBoard, open_board_file

LAST_WORDS_LINES = 40
MESSAGE_CHARACTERS = 2000
LEAVING_SECONDS = 5.0
"""From a closed pipe to the process's end; then it is killed."""

KILLING_SECONDS = 30.0
"""From SIGKILL to the process's end; one that takes longer hangs in the kernel, in a driver, and stays."""

TRACEBACK_SECONDS = 0.2
"""For a process that is stuck to write where it is."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended.

    Attributes:
        message: What happened, for a person; with its last words.
        blameless: No request in it is to blame.
        wanted: It was ended on purpose and for no fault of its own: the next one need not wait.
        has_ended: False if it is still there, although it was killed.
        loading: The model that it died of while it loaded it.
    """

    message: str
    blameless: bool
    wanted: bool = False
    has_ended: bool = True
    loading: str | None = None


class EngineProcess:
    """A process that was started and has not been buried. Methods may be called from any thread.

    Args:
        options: For `host.main`; it gets the pipe and the board besides.
        environment: All of its environment.

    Raises:
        OSError: If it cannot be started.
    """

    def __init__(self, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            with theirs, open_board_file() as board:
                self.board = ActivityBoard(board.fileno())
                fds = {"fd": theirs.fileno(), "board_fd": board.fileno()}
                self._popen = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [sys.executable, "-m", "bitinglip.engine.host", json.dumps({**options, **fds})],
                    pass_fds=list(fds.values()),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )
        except OSError:
            self._socket.close()
            raise
        self._connection: Connection[Any, Any] = Connection(os.dup(self._socket.fileno()))
        self._sending = threading.Lock()
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        self._killed: Death | None = None
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self._ears = threading.Thread(target=self._relay_stderr, name="engine-stderr", daemon=True)
        self._ears.start()

    @property
    def pid(self) -> int:
        """Its process id, also after its end."""
        return self._popen.pid

    @property
    def is_leaving(self) -> bool:
        """Whether it has ended or was killed; its pipe may stay open meanwhile, held by a child of its own."""
        return self._killed is not None or self._popen.poll() is not None

    def send(self, commands: list[wire.Command]) -> None:
        """Send commands.

        Raises:
            OSError: If the process is gone.
        """
        with self._sending:
            wire.send(self._connection, commands)

    def hears(self, seconds: float) -> bool:
        """Whether `receive` has something to return, or to raise, before so many seconds have passed."""
        return bool(self._poll.poll(seconds * 1000))

    def receive(self) -> list[wire.Message]:
        """Wait for messages.

        Raises:
            EOFError: If the process has closed its end.
            OSError: If the process is gone.
        """
        return wire.receive(self._connection)

    def hang_up(self) -> None:
        """Close the pipe, upon which the process ends by itself, and wake who waits for it."""
        # Not close(): that would not wake a thread that reads or writes. An error: it has seen the end already.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def kill(self, reason: str) -> None:
        """End it for no fault of its requests; nothing happens if it has ended by itself."""
        self._kill(Death(reason, blameless=True, wanted=True))

    def kill_stuck(self, reason: str) -> None:
        """End it because it does not go on, after it has written to stderr where it is."""
        if self.board.read()[0] is not Activity.START:
            self._popen.send_signal(signal.SIGUSR1)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(TRACEBACK_SECONDS)
        self._kill(Death(reason, blameless=False))

    def bury(self) -> Death:
        """Wait until it has ended, by force if need be, and say how. To be called once, when its pipe is done."""
        status = self._wait(LEAVING_SECONDS)
        if status is None:
            self._kill(Death("the engine process closed its pipe and did not end", blameless=False))
            status = self._wait(KILLING_SECONDS)
        self._ears.join(timeout=1)
        self.hang_up()
        with self._sending:
            self._connection.close()
            self._socket.close()
        if status is None:
            message = f"the engine process {self.pid} does not end, although it was killed; restart the machine"
            return Death(message, blameless=True, has_ended=False)
        if self._killed is not None and status == -signal.SIGKILL:
            if self._killed.wanted:
                return self._killed
            return self._describe(self._killed.message)
        return self._describe(f"the engine process {_describe_status(status)}")

    def _kill(self, death: Death) -> None:
        if self._popen.poll() is None:
            self._killed = self._killed or death
            self._popen.kill()

    def _wait(self, seconds: float) -> int | None:
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _describe(self, what: str) -> Death:
        """Its death by a fault; the requests are not to blame where it had not begun to take any."""
        words = "".join(self._last_words).strip()
        prefix = f"{what}; its last words: "
        message = prefix + words[-(MESSAGE_CHARACTERS - len(prefix)) :] if words else f"{what}; it said nothing"
        return Death(message, blameless=self.board.read()[0] in {Activity.START, Activity.PRELOAD})

    def _relay_stderr(self) -> None:
        assert self._popen.stderr is not None  # noqa: S101 - a pipe was asked for
        with self._popen.stderr as lines:
            for line in lines:
                self._last_words.append(line)
                sys.stderr.write(line)


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    hint = " (the kernel does that where memory runs out)" if -status == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"
