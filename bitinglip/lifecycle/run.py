"""Step 3 of 4: run one attempt, from its doorbell to its recorded end.

Invariant: an attempt runs at most once at a time in a process, however often its doorbell rings, and what an engine
gives is recorded only while the attempt is this worker's.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from bitinglip.domain.catalogue import get_kind
from bitinglip.domain.retry import decide_retry
from bitinglip.engine import wire
from bitinglip.engine.base import EngineEvent, Failed, Finished, Progress, Text, Usage
from bitinglip.engine.link import EngineLink
from bitinglip.errors import BitingLipError, DatabaseUnreachableError
from bitinglip.registry.locate import locate_model
from bitinglip.store.tasks import ClaimedTask, Doorbell, Ending
from bitinglip.streams.events import EventName
from bitinglip.streams.writer import AttemptEvents, EventWriter
from bitinglip.telemetry import get_logger

DATABASE_RETRY_SECONDS = 0.5

log = get_logger()


class Outcome(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    RETRIED = "retried"
    CANCELLED = "cancelled"
    NOT_OURS = "not_ours"


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended, for whoever rang the doorbell."""

    outcome: Outcome
    error: str = ""


NOT_OURS = RunReport(Outcome.NOT_OURS)


@dataclass(slots=True)
class RunningAttempt:
    """An attempt that this process works on.

    Attributes:
        claimed_at: On the monotonic clock; None before the claim has succeeded.
        abandoned: PostgreSQL says that it is no longer this worker's.
    """

    doorbell: Doorbell
    claimed_at: float | None = None
    abandoned: bool = False
    events: "queue.SimpleQueue[EngineEvent]" = field(default_factory=queue.SimpleQueue)

    @property
    def request_id(self) -> str:
        """Its id in the engine."""
        return f"{self.doorbell.task_id}:{self.doorbell.attempt}"


class TaskRunner:
    """Runs attempts on one engine process.

    Args:
        claim: Takes the lease on one attempt, or returns None.
        finish: Records one ending and returns its outcome; None if the attempt was no longer this worker's.
        link: The engine process.
        writer: Where events go.
        slots: Attempts that run at once.
        base_retry_seconds: Before the first retry of a task that failed.
    """

    def __init__(
        self,
        claim: Callable[[Doorbell], ClaimedTask | None],
        finish: Callable[[Ending], str | None],
        link: EngineLink,
        writer: EventWriter,
        *,
        slots: int,
        base_retry_seconds: float,
    ) -> None:
        self._claim = claim
        self._finish = finish
        self._link = link
        self._writer = writer
        self._slots = threading.Semaphore(slots)
        self._base_retry_seconds = base_retry_seconds
        self._mutex = threading.Lock()
        self._running: dict[Doorbell, RunningAttempt] = {}
        self._folders: dict[str, str] = {}

    def list_running(self) -> dict[Doorbell, RunningAttempt]:
        """The attempts that this process works on now."""
        with self._mutex:
            return dict(self._running)

    def stop_attempt(self, attempt: RunningAttempt, *, abandoned: bool) -> None:
        """Stop an attempt at its engine's next step.

        Args:
            attempt: From `list_running`.
            abandoned: It is no longer this worker's; nothing is recorded.
        """
        attempt.abandoned = attempt.abandoned or abandoned
        self._link.cancel(attempt.request_id)

    def run(self, doorbell: Doorbell) -> RunReport:
        """Claim, compute, record. Blocks until the attempt has ended; a repeated doorbell returns at once."""
        attempt = RunningAttempt(doorbell)
        with self._mutex:
            if doorbell in self._running:
                return NOT_OURS
            self._running[doorbell] = attempt
        try:
            with self._slots:
                return self._run_claimed(attempt)
        finally:
            with self._mutex:
                del self._running[doorbell]

    def _run_claimed(self, attempt: RunningAttempt) -> RunReport:
        try:
            task = self._claim(attempt.doorbell)
        except DatabaseUnreachableError as exc:
            # The reservation stays, and the heartbeat brings it back.
            log.warning("claim_failed", task_id=str(attempt.doorbell.task_id), reason=str(exc))
            return NOT_OURS
        if task is None:
            return NOT_OURS
        attempt.claimed_at = time.monotonic()
        events = self._writer.open_attempt(task.task_id, task.attempt)
        events.publish(EventName.STARTED, attempt=task.attempt)
        ended = self._compute(attempt, task, events)
        return self._record(attempt, task, ended, events)

    def _compute(self, attempt: RunningAttempt, task: ClaimedTask, events: AttemptEvents) -> Finished | Failed:
        try:
            kind = get_kind(task.type)
            folder = self._find_folder(task.model or "") if kind.needs_model else None
        except BitingLipError as exc:
            return Failed(attempt.request_id, exc.code, str(exc), retryable=False)
        command = wire.Run(attempt.request_id, task.type, task.model, folder, task.payload)
        self._link.start(command, attempt.events.put)
        while True:
            event = attempt.events.get()
            match event:
                case Finished() | Failed():
                    return event
                case Text(_, text, token_ids):
                    events.publish(EventName.TEXT, text=text, token_ids=token_ids)
                case Progress(_, fraction):
                    events.publish(EventName.PROGRESS, fraction=fraction)
                case _:
                    assert_never(event)

    def _find_folder(self, model: str) -> str:
        """The model's folder, inspected the first time this process uses it."""
        if model not in self._folders:
            self._folders[model] = str(locate_model(model).path)
        return self._folders[model]

    def _record(
        self, attempt: RunningAttempt, task: ClaimedTask, ended: Finished | Failed, events: AttemptEvents
    ) -> RunReport:
        ending = self._decide_ending(task, ended)
        recorded = self._finish_surely(attempt, ending)
        if recorded is None:
            log.info("result_discarded", task_id=str(task.task_id), attempt=task.attempt)
            return NOT_OURS
        outcome = Outcome(recorded)
        error = str(ending.error["message"]) if ending.error else ""
        if outcome is Outcome.RETRIED:
            log.info("task_retried", task_id=str(task.task_id), attempt=task.attempt, delay=ending.retry_seconds)
            events.publish(EventName.RETRIED, attempt=task.attempt, error=ending.error)
        else:
            events.publish(EventName.FINISHED, status=outcome, error=ending.error)
        return RunReport(outcome, error)

    def _decide_ending(self, task: ClaimedTask, ended: Finished | Failed) -> Ending:
        usage = _usage_json(ended.usage)
        if isinstance(ended, Finished):
            return Ending(task.task_id, task.attempt, Outcome.COMPLETED, result=ended.result, usage=usage)
        error = {"code": ended.code, "message": ended.message, "retryable": ended.retryable}
        if ended.code == "cancelled":
            return Ending(task.task_id, task.attempt, Outcome.CANCELLED, error=error, usage=usage)
        decision = decide_retry(
            failures=task.failures,
            max_attempts=task.max_attempts,
            retryable=ended.retryable,
            base_seconds=self._base_retry_seconds,
        )
        if decision.delay is None:
            return Ending(task.task_id, task.attempt, Outcome.FAILED, error=error, usage=usage)
        seconds = decision.delay.total_seconds()
        return Ending(task.task_id, task.attempt, Outcome.RETRIED, error=error, usage=usage, retry_seconds=seconds)

    def _finish_surely(self, attempt: RunningAttempt, ending: Ending) -> str | None:
        """Record an ending, however long PostgreSQL is away, unless the attempt was given to others meanwhile."""
        while not attempt.abandoned:
            try:
                return self._finish(ending)
            except DatabaseUnreachableError as exc:
                log.warning("finish_delayed", task_id=str(ending.task_id), reason=str(exc))
                time.sleep(DATABASE_RETRY_SECONDS)
        return None


def _usage_json(usage: Usage) -> dict[str, float | int]:
    return {
        "engine_seconds": round(usage.engine_seconds, 6),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
