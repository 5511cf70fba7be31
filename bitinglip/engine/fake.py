"""The fake engine: the `echo` kind. It gives text back after a while and fails as told, without a model or torch.

For users' own tests, for measuring everything but a model, and for injecting faults.
"""

import heapq
import os
import time
from collections import deque
from dataclasses import dataclass

from pydantic import ValidationError

from bitinglip.domain.payloads import EchoPayload
from bitinglip.domain.task import describe_first_error
from bitinglip.engine.base import (
    EngineConfig,
    EngineEvent,
    EngineRequest,
    Failed,
    Finished,
    Progress,
    Text,
    Usage,
)

_MAX_IDLE_SECONDS = 0.05


def load(config: EngineConfig) -> "FakeEngine":
    """Make a fake engine; nothing is read from disk."""
    return FakeEngine(config)


@dataclass(slots=True)
class _Echo:
    request_id: str
    payload: EchoPayload
    attempt: int
    started: float
    sent: int = 0

    @property
    def due(self) -> float:
        """When the next chunk is due, on the monotonic clock."""
        return self.started + self.payload.seconds * (self.sent + 1) / self.payload.chunks


class FakeEngine:
    """Runs any number of echoes at once; a step takes until the next one is due, 50 ms at most."""

    def __init__(self, config: EngineConfig) -> None:
        self._inbox: deque[EngineRequest] = deque()
        self._running: dict[str, _Echo] = {}
        self._due: list[tuple[float, str]] = []
        self._cancelled: list[str] = []
        self.model = config.model

    def add(self, request: EngineRequest) -> None:
        """Take a request."""
        self._inbox.append(request)

    def cancel(self, request_id: str) -> None:
        """End an echo at the next step."""
        self._cancelled.append(request_id)

    @property
    def busy(self) -> bool:
        """Whether any echo is under way."""
        return bool(self._inbox or self._running or self._cancelled)

    @property
    def prefilling(self) -> bool:
        """Never: an echo has no prompt to read."""
        return False

    @property
    def memory_bytes(self) -> int:
        """None: a fake holds no device memory."""
        return 0

    def close(self) -> None:
        """Forget every echo."""
        self._inbox.clear()
        self._running.clear()
        self._due.clear()

    def step(self) -> list[EngineEvent]:
        """Start what has come in, end what was cancelled, and send every chunk that is due."""
        events: list[EngineEvent] = []
        while self._inbox:
            self._start(self._inbox.popleft(), events)
        for request_id in self._cancelled:
            if self._running.pop(request_id, None) is not None:
                events.append(Failed(request_id, "cancelled", "cancelled while it ran", retryable=False))
        self._cancelled.clear()
        self._send_due(events)
        if not events and self._due:
            time.sleep(max(0.0, min(_MAX_IDLE_SECONDS, self._due[0][0] - time.monotonic())))
            self._send_due(events)
        return events

    def _start(self, request: EngineRequest, events: list[EngineEvent]) -> None:
        try:
            payload = EchoPayload.model_validate(request.payload)
        except ValidationError as exc:
            events.append(Failed(request.id, "invalid_request", str(describe_first_error(exc)), retryable=False))
            return
        echo = _Echo(
            request.id,
            payload,
            attempt=int(request.id.rpartition(":")[2] or 1),
            started=time.monotonic(),
        )
        self._running[request.id] = echo
        heapq.heappush(self._due, (echo.due, request.id))

    def _send_due(self, events: list[EngineEvent]) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, request_id = heapq.heappop(self._due)
            echo = self._running.get(request_id)
            if echo is not None:
                self._send_chunk(echo, events)

    def _send_chunk(self, echo: _Echo, events: list[EngineEvent]) -> None:
        payload = echo.payload
        if payload.fail and echo.attempt <= (payload.fail_attempts or echo.attempt):
            self._fail(echo, events)
            return
        start, echo.sent = echo.sent, echo.sent + 1
        size = len(payload.text)
        chunk = payload.text[start * size // payload.chunks : echo.sent * size // payload.chunks]
        if chunk and payload.chunks > 1:
            events.append(Text(echo.request_id, chunk))
            events.append(Progress(echo.request_id, echo.sent / payload.chunks))
        if echo.sent < payload.chunks:
            heapq.heappush(self._due, (echo.due, echo.request_id))
            return
        del self._running[echo.request_id]
        events.append(Finished(echo.request_id, {"text": payload.text}, Usage(engine_seconds=payload.seconds)))

    def _fail(self, echo: _Echo, events: list[EngineEvent]) -> None:
        match echo.payload.fail:
            case "crash":
                os._exit(70)
            case "hang":
                time.sleep(3_600)
            case "out_of_memory":
                code, retryable = "out_of_memory", True
            case "retryable":
                code, retryable = "echo_retryable", True
            case _:
                code, retryable = "echo_error", False
        del self._running[echo.request_id]
        message = f"fail={echo.payload.fail!r} was asked for; submit without it"
        events.append(Failed(echo.request_id, code, message, retryable=retryable))
