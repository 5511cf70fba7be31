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
import traceback
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bitinglip.domain.catalogue import get_kind
from bitinglip.engine import wire
from bitinglip.engine.activity import Activity, ActivityBoard
from bitinglip.engine.base import Engine, EngineConfig, EngineEvent, EngineRequest, Failed
from bitinglip.errors import BitingLipError, EngineBrokenError
from bitinglip.telemetry import configure_logging, get_logger

Key = tuple[str, str | None]

log = get_logger()


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
        self._devices = devices
        self._slots = slots
        self._memory_bytes = memory_bytes
        self._engines: OrderedDict[Key, Engine] = OrderedDict()
        self._where: dict[str, Key] = {}
        self.inbox: queue.SimpleQueue[wire.Command] = queue.SimpleQueue()

    def run_forever(self) -> None:
        """Obey and step until the process ends.

        Raises:
            EngineBrokenError: If an engine cannot go on; the process must end.
        """
        while True:
            self._obey(wait=not any(engine.busy for engine in self._engines.values()))
            events: list[EngineEvent] = []
            for engine in list(self._engines.values()):
                if engine.busy:
                    self._board.begin(Activity.PREFILL if engine.prefilling else Activity.STEP)
                    events += engine.step()
            self._deliver(events)

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
                key = self._where.get(request_id)
                if key is not None:
                    self._engines[key].cancel(request_id)
            case wire.Preload(kind, model, folder):
                self._preload((kind, model), folder)

    def _preload(self, key: Key, folder: str) -> None:
        """Load a model before it is asked for; one that cannot be loaded fails the tasks that ask for it, no others."""
        try:
            self._load(key, folder, Activity.PRELOAD)
        except EngineBrokenError:
            raise
        except Exception:
            log.exception("model_load_failed", model=key[1])

    def _run(self, command: wire.Run) -> None:
        key = (command.kind, command.model)
        try:
            engine = self._engines.get(key) or self._load(key, command.folder, Activity.LOAD)
        except EngineBrokenError:
            raise
        except BitingLipError as exc:
            self._deliver([Failed(command.request_id, exc.code, str(exc), retryable=False)])
            return
        except Exception as exc:
            log.exception("model_load_failed", model=command.model)
            message = f"model {command.model!r} could not be loaded: {type(exc).__name__}: {exc}"
            self._deliver([Failed(command.request_id, "model_load_failed", message, retryable=True)])
            return
        self._engines.move_to_end(key)
        self._where[command.request_id] = key
        engine.add(EngineRequest(command.request_id, command.payload, command.made_token_ids))

    def _load(self, key: Key, folder: str | None, activity: Activity) -> Engine:
        if key in self._engines:
            return self._engines[key]
        self._board.begin(activity)
        kind, model = key
        config = EngineConfig(
            model=model or kind,
            folder=Path(folder) if folder else None,
            devices=self._devices,
            max_rows=self._slots,
            memory_bytes=self._make_room(folder),
        )
        log.info("model_loading", kind=kind, model=model)
        engine: Engine = get_kind(kind).import_engine()(config)
        self._engines[key] = engine
        self._report()
        return engine

    def _make_room(self, folder: str | None) -> int | None:
        """Close idle engines, the longest unused first, until the weights fit; returns what is left for the new one."""
        if self._memory_bytes is None:
            return None
        weights = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) if folder else 0
        for key in list(self._engines):
            if self._held() + weights <= self._memory_bytes:
                break
            if not self._engines[key].busy:
                log.info("model_evicted", model=key[1])
                self._engines.pop(key).close()
        return self._memory_bytes - self._held()

    def _held(self) -> int:
        return sum(engine.memory_bytes for engine in self._engines.values())

    def _deliver(self, events: list[EngineEvent]) -> None:
        for event in events:
            if type(event).__name__ in {"Finished", "Failed"}:
                self._where.pop(event.request_id, None)
        if events:
            self._send(events)

    def _report(self) -> None:
        self._send([wire.Holding([key[1] for key in self._engines if key[1]], self._held())])


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
