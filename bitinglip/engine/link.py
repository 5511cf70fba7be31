"""The worker's end of an engine process: start it, talk to it, notice its death, start it again.

Invariant: every request that `start` accepted gets exactly one `Finished` or `Failed`, whatever becomes of the process.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from bitinglip.engine import wire
from bitinglip.engine.base import EngineEvent, Failed, Finished
from bitinglip.errors import EngineDiedError
from bitinglip.telemetry import get_logger

LAST_WORDS_LINES = 20
MAX_BACKOFF_SECONDS = 30.0

DEFAULT_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Torch's threads spin while they wait for each other. On cores that the worker and PostgreSQL share, a small model
    # made 169 tokens/s spinning and 4,700 sleeping.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""What an engine process gets unless the worker's environment says otherwise."""

log = get_logger()

Listener = Callable[[EngineEvent], None]


class EngineLink:
    """One engine process and the requests in it.

    Args:
        devices: Torch devices as the process sees them.
        slots: Requests that compute at once.
        memory_bytes: Budget on each device; None: no limit known.
        environment: Added to the process's environment: `CUDA_VISIBLE_DEVICES`, thread counts.
        preload: Loaded at each start.
    """

    def __init__(
        self,
        *,
        devices: tuple[str, ...],
        slots: int,
        memory_bytes: int | None = None,
        environment: Mapping[str, str] | None = None,
        preload: tuple[wire.Preload, ...] = (),
    ) -> None:
        self._options = {"devices": devices, "slots": slots, "memory_bytes": memory_bytes}
        self._environment = {**DEFAULT_ENVIRONMENT, **os.environ, **(environment or {})}
        self._preload = preload
        self._mutex = threading.Lock()
        self._listeners: dict[str, Listener] = {}
        self._closing = False
        self._deaths = 0
        self.holding = wire.Holding()
        self._spawn()

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._process.pid

    def start(self, command: wire.Run, listener: Listener) -> None:
        """Run a request; `listener` is called from the link's thread with each of its events, in order."""
        with self._mutex:
            self._listeners[command.request_id] = listener
        self._command(command)

    def cancel(self, request_id: str) -> None:
        """Stop a request; its listener still gets its `Failed`, or a `Finished` that came first."""
        self._command(wire.Cancel(request_id))

    def close(self) -> None:
        """End the process. Requests in it fail as `engine_died`."""
        self._closing = True
        # Not close(): that would not wake the thread that reads. An error: it has seen the end already.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(timeout=5)

    def _command(self, command: wire.Command) -> None:
        try:
            with self._mutex:
                wire.send(self._connection, [command])
        except OSError:
            # The process died: its reader fails every listener, this one included.
            log.info("engine_unreachable", command=type(command).__name__)

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        options = json.dumps({**self._options, "fd": theirs.fileno()})
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "bitinglip.engine.host", options],
                pass_fds=[theirs.fileno()],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours
        self._connection: Connection[Any, Any] = Connection(os.dup(ours.fileno()))
        self._reader = threading.Thread(target=self._watch, name="engine-reader", daemon=True)
        self._reader.start()
        if self._preload:
            # A process that is dead already is buried by its reader.
            with suppress(OSError):
                wire.send(self._connection, list(self._preload))

    def _watch(self) -> None:
        """Deliver events until the process ends, then fail what it held and start another."""
        last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        ears = threading.Thread(target=self._relay_stderr, args=(last_words,), name="engine-stderr", daemon=True)
        ears.start()
        try:
            while True:
                for message in wire.receive(self._connection):
                    self._deliver(message)
        except (EOFError, OSError):
            pass
        status = self._process.wait()
        ears.join(timeout=1)
        with self._mutex:
            self._connection.close()
            self._socket.close()
        error = EngineDiedError(status, "".join(last_words).strip()[-2000:])
        while not self._bury(error):
            pass

    def _relay_stderr(self, last_words: deque[str]) -> None:
        assert self._process.stderr is not None  # noqa: S101 - a pipe was asked for
        with self._process.stderr as lines:
            for line in lines:
                last_words.append(line)
                sys.stderr.write(line)

    def _deliver(self, message: wire.Message) -> None:
        if isinstance(message, wire.Holding):
            self.holding = message
            return
        self._deaths = 0
        ended = isinstance(message, Finished | Failed)
        with self._mutex:
            listener = (
                self._listeners.pop(message.request_id, None) if ended else self._listeners.get(message.request_id)
            )
        if listener is not None:
            listener(message)

    def _bury(self, error: EngineDiedError) -> bool:
        """Fail every request and start another process; False if none could be started."""
        self.holding = wire.Holding()
        if not self._closing:
            log.warning("engine_died", exit_status=error.exit_status, tasks=len(self._listeners))
            # Whoever asks for the engine meanwhile waits with the others: their listeners are failed below.
            time.sleep(min(MAX_BACKOFF_SECONDS, 0.1 * 2**self._deaths) if self._deaths else 0.0)
            self._deaths += 1
        with self._mutex:
            orphans, self._listeners = self._listeners, {}
            is_served = self._closing or self._try_to_spawn()
        for request_id, listener in orphans.items():
            listener(Failed(request_id, error.code, str(error), retryable=True))
        return is_served

    def _try_to_spawn(self) -> bool:
        try:
            self._spawn()
        except OSError as exc:
            log.error("engine_not_started", reason=str(exc))
            return False
        return True
