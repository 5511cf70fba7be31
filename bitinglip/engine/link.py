"""The worker's end of an engine process: start it, talk to it, watch it, notice its death, start it again.

Invariant: every request that `start` accepted gets exactly one `Finished`, `Failed` or `EngineLost`, whatever becomes
of the process. A process that cannot be ended, or whose memory does not come back, has no successor: the link is out of
service for good, and says so.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from bitinglip.engine import wire
from bitinglip.engine.activity import Activity
from bitinglip.engine.base import EngineEvent, EngineLost, Failed, Finished
from bitinglip.engine.limits import EngineLimits, Watchdog
from bitinglip.engine.process import Death, EngineProcess
from bitinglip.telemetry import get_logger

MAX_BACKOFF_SECONDS = 30.0
LOOK_SECONDS = 0.25
CLOSE_SECONDS = 10.0

DEFAULT_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Torch's threads spin while they wait for each other. On cores that the worker and PostgreSQL share, a small model
    # made 169 tokens/s spinning and 4,700 sleeping.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""What an engine process gets unless the worker's environment says otherwise."""

__all__ = ["EngineLimits", "EngineLink", "Listener"]

log = get_logger()

Listener = Callable[[EngineEvent], None]

_CLOSED = Death("its worker has closed the engine", blameless=True, wanted=True)


@dataclass(slots=True)
class _Request:
    listener: Listener
    is_sent: bool = False


class EngineLink:
    """One engine process and the requests in it.

    Args:
        devices: Torch devices as the process sees them.
        slots: Requests that compute at once.
        memory_bytes: Budget on each device; None: no limit known.
        environment: Added to the process's environment: `CUDA_VISIBLE_DEVICES`, thread counts.
        preload: Loaded at each start.
        limits: How long it may take over one thing; then it is killed.
        check_memory: Asked between a process's end and the next one's start; a text says why there must be none.
        on_holding: Called from the link's thread with what the process holds, when that has changed.
        on_loss: Called when a process has died, before its requests are told.
        on_out_of_service: Told once, from the link's thread, why there is no engine any more. It should return soon.

    Attributes:
        holding: The models in it and their memory.
        loaded_at: When it last told of an engine that it had loaded, on the monotonic clock; 0: never.

    Raises:
        OSError: If no process can be started.
    """

    def __init__(
        self,
        *,
        devices: tuple[str, ...],
        slots: int,
        memory_bytes: int | None = None,
        environment: Mapping[str, str] | None = None,
        preload: tuple[wire.Preload, ...] = (),
        limits: EngineLimits | None = None,
        check_memory: Callable[[], str | None] | None = None,
        on_holding: Callable[[wire.Holding], None] | None = None,
        on_loss: Callable[[], None] | None = None,
        on_out_of_service: Callable[[str], None] | None = None,
    ) -> None:
        self._options = {"devices": devices, "slots": slots, "memory_bytes": memory_bytes}
        self._environment = {**DEFAULT_ENVIRONMENT, **os.environ, **(environment or {})}
        self._preload = preload
        self._limits = limits or EngineLimits()
        self._check_memory = check_memory
        self._on_holding = on_holding
        self._on_loss = on_loss
        self._on_out_of_service = on_out_of_service
        self._mutex = threading.Lock()
        self._requests: dict[str, _Request] = {}
        self._closing = threading.Event()
        self._retired: Death | None = None
        self._deaths = 0
        self._is_between = False
        self._loading: str | None = None
        self._died_preloading: set[str] = set()
        self.loaded_at = 0.0
        self.holding = wire.Holding()
        self._spawn()

    @property
    def pid(self) -> int:
        """The process that runs now, or ran last."""
        return self._process.pid

    @property
    def is_up(self) -> bool:
        """Whether a process runs that has started and has loaded what it was to load first."""
        return not self._is_between and self._process.board.read()[0] not in {Activity.START, Activity.PRELOAD}

    @property
    def is_loading(self) -> bool:
        """Whether it starts or loads a model now, and everyone in it waits for that."""
        loading = {Activity.START, Activity.PRELOAD, Activity.LOAD}
        return self._is_between or self._process.board.read()[0] in loading

    def start(self, command: wire.Run, listener: Listener) -> None:
        """Run a request; `listener` is called from the link's thread with each of its events, in order.

        Where there is no engine any more, it is called at once, from this thread.
        """
        request = _Request(listener)
        with self._mutex:
            process, death = self._process, self._retired
            if death is None:
                self._requests[command.request_id] = request
        if death is not None:
            _tell({command.request_id: request}, death)
        elif self._send(process, command):
            request.is_sent = True

    def preload(self, command: wire.Preload) -> None:
        """Load a model now, where there is room for it, and at each start from now on."""
        with self._mutex:
            process = self._process
            self._preload = (*self._preload, command)
        self._send(process, command)

    def cancel(self, request_id: str) -> None:
        """Stop a request; its listener still gets its `Failed`, or a `Finished` that came first."""
        self._send(self._process, wire.Cancel(request_id))

    def kill(self, reason: str, request_id: str | None = None) -> None:
        """End the process on purpose; the next one starts at once. Harmless where it has just ended by itself.

        Args:
            reason: What every request in it is told; none of them is to blame.
            request_id: Only while this request has not ended; another process than the one it is in is left alone.
        """
        with self._mutex:
            if request_id is None or request_id in self._requests:
                self._process.kill(reason)

    def close(self) -> None:
        """End the process. Requests in it are lost, blamelessly."""
        with self._mutex:
            self._closing.set()
            process, reader = self._process, self._reader
        process.hang_up()
        reader.join(timeout=CLOSE_SECONDS)

    def _send(self, process: EngineProcess, command: wire.Command) -> bool:
        # Outside the mutex: one that hangs reads nothing, and a full pipe must not keep it from being killed.
        try:
            process.send([command])
        except OSError:
            # The process died: its reader ends every request, this one included.
            log.info("engine_unreachable", command=type(command).__name__)
            return False
        return True

    def _spawn(self) -> None:
        process = EngineProcess(self._options, self._environment)
        self._process = process
        self._loading = None
        self._is_between = False
        self._reader = threading.Thread(target=self._serve, args=(process,), name="engine-reader", daemon=True)
        self._reader.start()
        if self._preload:
            # A process that is dead already is buried by its reader.
            with suppress(OSError):
                process.send(list(self._preload))

    def _serve(self, process: EngineProcess) -> None:
        """See one process through its life, end what it held, and start another."""
        self._listen(process)
        death = self._find_cause(process.bury(), process.board.read()[0])
        self._is_between = True
        self.holding = wire.Holding()
        if not self._closing.is_set():
            self._report_loss()
            if not death.wanted:
                log.warning("engine_died", reason=death.message.partition(";")[0], tasks=len(self._requests))
                # Whoever asks for the engine meanwhile waits with the others, and is told with them.
                self._back_off()
            problem = self._find_problem(death)
            if problem is not None:
                self._retire(Death(problem, blameless=True))
                return
        while (failure := self._replace(death)) is not None:
            death = failure
            self._back_off()

    def _listen(self, process: EngineProcess) -> None:
        """Deliver events until the process has ended; kill it if it takes too long over one thing."""
        watchdog = Watchdog(process.board, self._limits)
        with suppress(EOFError, OSError):
            while True:
                if process.hears(LOOK_SECONDS):
                    for message in process.receive():
                        self._deliver(message)
                elif process.is_leaving:
                    return
                elif (overrun := watchdog.find_overrun()) is not None:
                    process.kill_stuck(overrun)

    def _deliver(self, message: wire.Message) -> None:
        if isinstance(message, wire.Loading):
            self._loading = message.model
            return
        if isinstance(message, wire.Holding):
            self._note_holding(message)
            return
        self._deaths = 0
        ended = isinstance(message, Finished | Failed)
        with self._mutex:
            request = self._requests.pop(message.request_id, None) if ended else self._requests.get(message.request_id)
        if request is not None:
            request.listener(message)

    def _note_holding(self, holding: wire.Holding) -> None:
        if holding.loads > self.holding.loads:
            self.loaded_at = time.monotonic()
        self.holding = holding
        if self._on_holding is not None:
            self._on_holding(holding)

    def _find_cause(self, death: Death, activity: Activity) -> Death:
        """Say of which model a process died while it loaded it: then no request in it is to blame."""
        if death.wanted or not death.has_ended or self._loading is None or self._closing.is_set():
            return death
        match activity:
            case Activity.LOAD:
                return replace(death, blameless=True, loading=self._loading)
            case Activity.PRELOAD if self._loading in self._died_preloading:
                # Or the next process would die of it too, and the next.
                log.error("preload_dropped", model=self._loading)
                with self._mutex:
                    self._preload = tuple(command for command in self._preload if command.model != self._loading)
            case Activity.PRELOAD:
                self._died_preloading.add(self._loading)
        return death

    def _back_off(self) -> None:
        self._closing.wait(min(MAX_BACKOFF_SECONDS, 0.1 * 2**self._deaths) if self._deaths else 0.0)
        self._deaths += 1

    def _report_loss(self) -> None:
        try:
            if self._on_loss is not None:
                self._on_loss()
        except Exception:  # Whoever waits for the next process must not wait for ever.
            log.exception("engine_loss_not_reported")

    def _find_problem(self, death: Death) -> str | None:
        if not death.has_ended:
            return death.message
        try:
            return self._check_memory() if self._check_memory else None
        except Exception:  # Whoever waits for the next process must not wait for ever.
            log.exception("engine_memory_unknown")
            return None

    def _replace(self, death: Death) -> Death | None:
        """Start another process and end what the last one held; returns why none could be started."""
        with self._mutex:
            orphans, self._requests = self._requests, {}
            if self._closing.is_set():
                death = self._retired = _CLOSED
            failure = None if self._retired else self._try_to_spawn()
        _tell(orphans, death)
        return failure

    def _retire(self, death: Death) -> None:
        """End every request, those to come too: there will be no other process."""
        log.error("engine_out_of_service", problem=death.message)
        with self._mutex:
            orphans, self._requests = self._requests, {}
            self._retired = death
        try:
            # First: its requests are free to come back once they are told.
            if self._on_out_of_service is not None:
                self._on_out_of_service(death.message)
        finally:
            _tell(orphans, death)

    def _try_to_spawn(self) -> Death | None:
        try:
            self._spawn()
        except OSError as exc:
            log.error("engine_not_started", reason=str(exc))
            return Death(f"no engine process could be started: {exc}", blameless=True)
        return None


def _tell(orphans: dict[str, _Request], death: Death) -> None:
    """End the requests that a process held, and those that never reached it: these have no part in its end."""
    held = sum(request.is_sent for request in orphans.values())
    for request_id, request in orphans.items():
        if request.is_sent:
            lost = EngineLost(
                request_id, death.message, companions=held - 1, blameless=death.blameless, loading=death.loading
            )
        else:
            lost = EngineLost(request_id, death.message, companions=0, blameless=True)
        request.listener(lost)
