"""The engine process: one thread that loads models and steps every busy engine in turn.

`python -m bitinglip.engine.host` is started by `link.EngineLink` and talks JSON frames over an inherited socket. When
the socket closes, the worker is gone and the process ends at once, in the middle of a step if need be.

Invariant: models are loaded in the one engine thread, so no two loads and no load and step ever overlap:
`from_pretrained` changes process-wide defaults.
"""

import contextlib
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from bitinglip.engine import wire
from bitinglip.engine.activity import Activity, ActivityBoard
from bitinglip.engine.base import Begun, EngineEvent, EngineRequest, Failed, Finished, PutOff
from bitinglip.engine.loaded import Key, LoadedEngines
from bitinglip.errors import BitingLipError, EngineBrokenError
from bitinglip.telemetry import configure_logging, get_logger

PATIENCE_SECONDS = 5.0
"""Once a model has waited so long for room, requests of those in its way wait behind it: or it would wait for ever."""

LOAD_RETRY_SECONDS = 5.0
"""A model that could not be loaded is not tried again before; whoever asks for it meanwhile gets the same answer."""

MEASURE_SECONDS = 1.0
"""From one look at what busy engines hold to the next."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that there is no room for; since when, on the monotonic clock."""

    command: wire.Run
    key: Key
    since: float


class EngineHost:
    """Engines by kind and model, stepped in turn.

    Args:
        send: Delivers messages to the worker.
        board: Where it writes down what it does, for the worker's watchdog.
        devices: Torch devices of this process.
        slots: Requests that compute at once, per engine.
        memory_bytes: What all engines together may hold on each device; None: no limit known.
    """

    def __init__(
        self,
        send: Callable[[list[Any]], None],
        board: ActivityBoard,
        *,
        devices: tuple[str, ...],
        slots: int,
        memory_bytes: int | None,
    ) -> None:
        self._send = send
        self._board = board
        self._engines = LoadedEngines(devices=devices, slots=slots, memory_bytes=memory_bytes)
        self._where: dict[str, Key] = {}
        self._waiting: list[_Waiting] = []
        self._load_seconds: dict[str, float] = {}
        self._broken: dict[Key, tuple[float, str]] = {}
        self._measured_at = 0.0
        self._has_ended = False
        self.inbox: queue.SimpleQueue[wire.Command] = queue.SimpleQueue()

    def run_forever(self) -> None:
        """Obey and step until the process ends.

        Raises:
            EngineBrokenError: If an engine cannot go on; the process must end.
        """
        while True:
            self.take_turn()

    def take_turn(self) -> None:
        """Obey what has come in, or wait for something if there is nothing to do; step every busy engine once.

        Raises:
            EngineBrokenError: If an engine cannot go on; the process must end.
        """
        self._obey(wait=not self._engines.list_busy())
        events: list[EngineEvent] = []
        for engine in self._engines.list_busy():
            self._board.begin(Activity.PREFILL if engine.prefilling else Activity.STEP)
            events += engine.step()
        self._deliver(events)
        if self._has_ended:
            self._has_ended = False
            self._admit_waiting()
        self._measure()

    # Commands

    def _obey(self, *, wait: bool) -> None:
        if wait:
            self._board.begin(Activity.IDLE)
            self._obey_one(self.inbox.get())
        with contextlib.suppress(queue.Empty):
            while True:
                self._obey_one(self.inbox.get_nowait())

    def _obey_one(self, command: wire.Command) -> None:
        match command:
            case wire.Run():
                self._run(command)
            case wire.Cancel(request_id):
                self._cancel(request_id)
            case wire.Preload(kind, model, folder):
                self._preload((kind, model), folder)

    def _cancel(self, request_id: str) -> None:
        key = self._where.get(request_id)
        if key is not None:
            self._engines.get(key).cancel(request_id)
        waiting = [item for item in self._waiting if item.command.request_id != request_id]
        if len(waiting) < len(self._waiting):
            self._waiting = waiting
            message = "cancelled while it waited for room for its model"
            self._deliver([Failed(request_id, "cancelled", message, retryable=False)])

    def _preload(self, key: Key, folder: str) -> None:
        """Load a model before it is asked for; one that cannot be loaded fails the tasks that ask for it, no others."""
        if key in self._engines:
            return
        try:
            if not self._engines.load(key, folder, lambda: self._begin_loading(key, Activity.PRELOAD), may_evict=False):
                log.warning("model_not_preloaded", model=key[1], reason="no room beside those preloaded before it")
        except EngineBrokenError:
            raise
        except Exception:
            log.exception("model_load_failed", model=key[1])
        finally:
            self._report_changes()

    def _run(self, command: wire.Run) -> None:
        key = (command.kind, command.model)
        if self._must_wait(key) or not self._begin(command, key):
            self._waiting.append(_Waiting(command, key, time.monotonic()))
            self._send([PutOff(command.request_id)])

    # Models

    def _must_wait(self, key: Key) -> bool:
        """Whether others wait for room that a request would take, or keep from them for too long."""
        if not self._waiting:
            return False
        is_overdue = time.monotonic() - self._waiting[0].since > PATIENCE_SECONDS
        return key not in self._engines or is_overdue

    def _begin(self, command: wire.Run, key: Key) -> bool:
        """Start a request, or fail it if its model cannot be loaded; False if it has to wait for room."""
        retry_at, reason = self._broken.get(key, (0.0, ""))
        if time.monotonic() < retry_at:
            self._deliver([_fail_load(command, reason)])
            return True
        try:
            if key not in self._engines and not self._load(command, key):
                return False
        except EngineBrokenError:
            raise
        except BitingLipError as exc:
            self._deliver([Failed(command.request_id, exc.code, str(exc), retryable=False)])
        except Exception as exc:
            log.exception("model_load_failed", model=command.model)
            message = f"model {command.model!r} could not be loaded: {type(exc).__name__}: {exc}"
            self._broken[key] = (time.monotonic() + LOAD_RETRY_SECONDS, message)
            self._deliver([_fail_load(command, message)])
        else:
            self._add(command, key)
        return True

    def _load(self, command: wire.Run, key: Key) -> bool:
        """Load what a request needs, at its cost; False if there is no room for it now."""
        began = time.monotonic()
        try:
            is_loaded = self._engines.load(key, command.folder, lambda: self._begin_loading(key, Activity.LOAD))
        finally:
            self._report_changes()
        if is_loaded:
            self._load_seconds[command.request_id] = time.monotonic() - began
        return is_loaded

    def _begin_loading(self, key: Key, activity: Activity) -> None:
        # First: a process that dies afterwards has died of it.
        self._send([wire.Loading(key[1])])
        self._board.begin(activity)

    def _add(self, command: wire.Run, key: Key) -> None:
        self._where[command.request_id] = key
        request = EngineRequest(
            command.request_id, command.payload, command.made_token_ids, command.inputs, command.spool
        )
        self._engines.use(key).add(request)

    def _admit_waiting(self) -> None:
        """Begin what waits, in order, as far as there is room; requests of one model together."""
        while self._waiting:
            key = self._waiting[0].key
            together = [item for item in self._waiting if item.key == key]
            for item in together:
                if not self._begin(item.command, key):
                    return
                self._waiting.remove(item)
                self._send([Begun(item.command.request_id)])

    # Messages

    def _deliver(self, events: list[EngineEvent]) -> None:
        told = [self._end(event) if isinstance(event, Finished | Failed) else event for event in events]
        if told:
            self._send(told)

    def _end(self, event: Finished | Failed) -> Finished | Failed:
        """Forget a request, and charge it the load that it caused."""
        self._has_ended = True
        self._where.pop(event.request_id, None)
        seconds = self._load_seconds.pop(event.request_id, 0.0)
        if not seconds:
            return event
        engine_seconds = event.usage.engine_seconds + seconds
        return replace(event, usage=replace(event.usage, engine_seconds=engine_seconds, load_seconds=seconds))

    def _measure(self) -> None:
        """Tell what the engines hold when it has changed: now and then while they are busy, and when they are idle."""
        now = time.monotonic()
        if now - self._measured_at < MEASURE_SECONDS and self._engines.list_busy():
            return
        self._measured_at = now
        self._report_changes()

    def _report_changes(self) -> None:
        if self._engines.has_changed():
            self._send([self._engines.describe()])


def _fail_load(command: wire.Run, message: str) -> Failed:
    return Failed(command.request_id, "model_load_failed", message, retryable=True)


def main(options: str) -> None:
    """Serve the worker at the other end of an inherited socket.

    Args:
        options: JSON: fd, board_fd, devices, slots, memory_bytes.
    """
    # A signal to the whole group is the worker's to obey: it lets what runs here finish, then closes the socket.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Its last words: where it was when it crashed, or when its worker found that it does not go on.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    # What they say is for people who call them by hand, and here it would stand before the engine's last words.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    configure_logging()
    values = json.loads(options)
    connection: Connection[Any, Any] = Connection(values["fd"])
    host = EngineHost(
        lambda messages: wire.send(connection, messages),
        ActivityBoard(values["board_fd"]),
        devices=tuple(values["devices"]),
        slots=values["slots"],
        memory_bytes=values["memory_bytes"],
    )

    def read_commands() -> None:
        try:
            while True:
                for command in wire.receive(connection):
                    host.inbox.put(command)
        except (EOFError, OSError):
            # The worker is gone: nobody reads what a step would give.
            os._exit(0)

    threading.Thread(target=read_commands, name="commands", daemon=True).start()
    try:
        host.run_forever()
    except Exception:
        traceback.print_exc()
        # Not by an ordinary exit: tearing down a CUDA context that is broken can hang.
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
