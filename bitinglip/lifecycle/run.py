"""Step 3 of 4: run one attempt, from its doorbell to its recorded end.

Invariant: an attempt runs at most once at a time in a process, however often its doorbell rings, and what an engine
gives is recorded only while the attempt is this worker's.
"""

import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import assert_never

from bitinglip.artifacts.spool import Spool
from bitinglip.domain.artifacts import Maker
from bitinglip.domain.catalogue import Kind, find_kinds, get_kind
from bitinglip.engine import wire
from bitinglip.engine.base import Begun, EngineEvent, EngineLost, Failed, Finished, Progress, PutOff, Text
from bitinglip.engine.link import EngineLink
from bitinglip.errors import BitingLipError, DatabaseUnreachableError, InvalidModelError
from bitinglip.lifecycle.outcome import Outcome, StopReason, decide_ending, find_load_failure
from bitinglip.lifecycle.solitude import Solitude
from bitinglip.registry.transfer.progress import DownloadProgress
from bitinglip.store.tasks import ClaimedTask, Doorbell, Ending
from bitinglip.streams.events import EventName
from bitinglip.streams.writer import AttemptEvents, EventWriter
from bitinglip.telemetry import get_logger

DATABASE_RETRY_SECONDS = 0.5

log = get_logger()


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended, for whoever rang the doorbell."""

    outcome: Outcome
    error: str = ""


NOT_OURS = RunReport(Outcome.NOT_OURS)


UseModel = Callable[[str, threading.Event, Callable[[DownloadProgress], None]], AbstractContextManager[str]]


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How long things may take.

    Attributes:
        attempt_seconds: An attempt, from its engine's start to its end; not of kinds that are not timed.
        stop_seconds: A request that was told to stop, before its engine is killed.
        base_retry_seconds: Before the first retry of a task that failed.
    """

    attempt_seconds: float = 300.0
    stop_seconds: float = 5.0
    base_retry_seconds: float = 2.0


class _Stop:
    """In an attempt's queue of events: look at `stop` again."""


@dataclass(slots=True)
class RunningAttempt:
    """An attempt that this process works on.

    Attributes:
        claimed_at: On the monotonic clock; None before the claim has succeeded.
        stop: Why it was told to stop; None: it was not.
        is_stopped: Set once it was told to stop.
        last_text: The end of its text, which is shown when the ending has been recorded.
    """

    doorbell: Doorbell
    claimed_at: float | None = None
    stop: StopReason | None = None
    is_stopped: threading.Event = field(default_factory=threading.Event)
    last_text: Text | None = None
    events: "queue.SimpleQueue[EngineEvent | _Stop]" = field(default_factory=queue.SimpleQueue)

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
        spool: Where attempts find the files that they take, and leave those that they make.
        use_model: The folder of a model for the length of a block, or an error that says why it cannot be used. It may
            take its time, tells how far it is, and gives up when the event is set.
        doubt_model: Told that the files of a model could not be used; whether another attempt may find better ones.
        report_load_failure: Told that a kind's model could not be loaded, and why; a text says that it is given up.
        slots: Attempts that run at once.
        limits: How long things may take.
    """

    def __init__(
        self,
        claim: Callable[[Doorbell], ClaimedTask | None],
        finish: Callable[[Ending], str | None],
        link: EngineLink,
        writer: EventWriter,
        *,
        spool: Spool,
        use_model: UseModel,
        doubt_model: Callable[[str], bool],
        report_load_failure: Callable[[str, str, str], str | None],
        slots: int,
        limits: RunLimits,
    ) -> None:
        self._claim = claim
        self._finish = finish
        self._spool = spool
        self._use_model = use_model
        self._doubt_model = doubt_model
        self._report_load_failure = report_load_failure
        self._link = link
        self._writer = writer
        self._slots = threading.Semaphore(slots)
        self._limits = limits
        self._solitude = Solitude()
        self._mutex = threading.Lock()
        self._running: dict[Doorbell, RunningAttempt] = {}

    def list_running(self) -> dict[Doorbell, RunningAttempt]:
        """The attempts that this process works on now."""
        with self._mutex:
            return dict(self._running)

    def stop_attempt(self, attempt: RunningAttempt, reason: StopReason) -> None:
        """Stop an attempt at its engine's next step; returns at once. A stronger reason replaces a weaker one."""
        with self._mutex:
            if attempt.stop is not None and reason <= attempt.stop:
                return
            attempt.stop = reason
        attempt.is_stopped.set()
        attempt.events.put(_Stop())
        self._solitude.look_again()

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
        if attempt.stop is not None:
            return NOT_OURS
        try:
            task = self._claim(attempt.doorbell)
        except DatabaseUnreachableError as exc:
            # The reservation stays, and the heartbeat brings it back.
            log.warning("claim_failed", task_id=str(attempt.doorbell.task_id), reason=str(exc))
            return NOT_OURS
        if task is None:
            return NOT_OURS
        attempt.claimed_at = time.monotonic()
        kind = find_kinds().get(task.type)
        events, made_token_ids = self._writer.begin_attempt(
            task.task_id, task.attempt, task.agent_id, continues=kind is not None and kind.continues
        )
        try:
            with self._solitude.enter(alone=task.suspect, gives_up=lambda: attempt.stop is not None) as admitted:
                if admitted:
                    ended = self._compute(attempt, task, events, made_token_ids)
                else:
                    ended = Failed(attempt.request_id, "cancelled", "stopped before it began", retryable=False)
        except Exception as exc:
            # Whatever it was: a task that nobody ends would be claimed again at each heartbeat, for ever.
            log.exception("attempt_broken", task_id=str(task.task_id), attempt=task.attempt)
            self._link.cancel(attempt.request_id)
            message = f"the worker could not run it: {type(exc).__name__}: {exc}"
            ended = Failed(attempt.request_id, "internal_error", message, retryable=True)
        return self._record(attempt, task, ended, events)

    def _compute(
        self, attempt: RunningAttempt, task: ClaimedTask, events: AttemptEvents, made_token_ids: list[int]
    ) -> Finished | Failed | EngineLost:
        try:
            ended = self._use_files(get_kind(task.type), attempt, task, events, made_token_ids)
        except BitingLipError as exc:
            ended = Failed(attempt.request_id, exc.code, str(exc), retryable=exc.retryable)
        if isinstance(ended, Failed) and ended.code == InvalidModelError.code and self._doubt_model(task.model or ""):
            return replace(ended, retryable=True)
        return ended

    def _use_files(
        self,
        kind: Kind,
        attempt: RunningAttempt,
        task: ClaimedTask,
        events: AttemptEvents,
        made_token_ids: list[int],
    ) -> Finished | Failed | EngineLost:
        """Run the engine between fetching what the task takes and storing what it made."""
        with self._spool.open(kind, Maker(task.task_id, task.attempt), task.payload) as files:
            spool = str(files.folder) if files.folder is not None else None
            command = wire.Run(
                attempt.request_id, task.type, task.model, None, task.payload, made_token_ids, dict(files.inputs), spool
            )
            ended = self._run_engine(kind, attempt, command, events)
            if not isinstance(ended, Finished):
                return ended
            try:
                return replace(ended, result=files.keep(ended.result, attempt.is_stopped))
            except BitingLipError as exc:
                return Failed(attempt.request_id, exc.code, str(exc), retryable=exc.retryable, usage=ended.usage)

    def _run_engine(
        self, kind: Kind, attempt: RunningAttempt, command: wire.Run, events: AttemptEvents
    ) -> Finished | Failed | EngineLost:
        limit_seconds = self._limits.attempt_seconds if kind.timed else math.inf
        if not kind.needs_model:
            self._link.start(command, attempt.events.put)
            return self._await_end(attempt, events, limit_seconds=limit_seconds)
        model = command.model or ""
        with self._use_model(model, attempt.is_stopped, lambda progress: _publish(events, progress)) as folder:
            self._link.start(replace(command, folder=folder), attempt.events.put)
            return self._await_end(attempt, events, limit_seconds=limit_seconds)

    def _await_end(
        self, attempt: RunningAttempt, events: AttemptEvents, *, limit_seconds: float
    ) -> Finished | Failed | EngineLost:
        """Pass on what the engine gives, and see to it that it ends in time."""
        began = time.monotonic()
        out_of_time_at = began + limit_seconds
        killed_at = math.inf
        while True:
            patience = min(out_of_time_at, killed_at) - time.monotonic()
            try:
                event = attempt.events.get(timeout=None if math.isinf(patience) else max(0.0, patience))
            except queue.Empty:
                if time.monotonic() >= killed_at:
                    killed_at = math.inf
                    self._kill_engine(attempt)
                elif (more := self._find_time_left(began, limit_seconds)) > 0:
                    out_of_time_at = time.monotonic() + more
                else:
                    out_of_time_at = math.inf
                    self.stop_attempt(attempt, StopReason.TIME_LIMIT)
                continue
            match event:
                case Finished() | Failed() | EngineLost():
                    return event
                case PutOff() | Begun():
                    began = time.monotonic()
                    is_waiting = isinstance(event, PutOff) or attempt.stop is not None
                    out_of_time_at = math.inf if is_waiting else began + limit_seconds
                case Text(last=True):
                    attempt.last_text = event
                case Text(_, text, token_ids):
                    events.publish(EventName.TEXT, text=text, token_ids=token_ids)
                case Progress(_, fraction, detail):
                    events.publish(EventName.PROGRESS, fraction=fraction, **detail)
                case _Stop():
                    out_of_time_at = math.inf
                    # A stronger reason does not give more time.
                    killed_at = min(killed_at, time.monotonic() + self._limits.stop_seconds)
                    self._link.cancel(attempt.request_id)
                case _:
                    assert_never(event)

    def _find_time_left(self, began: float, limit_seconds: float) -> float:
        """Seconds that an attempt may still run; until the engine is up and has loaded its models it has not begun."""
        if self._link.is_loading:
            return limit_seconds
        return max(began, self._link.loaded_at) + limit_seconds - time.monotonic()

    def _kill_engine(self, attempt: RunningAttempt) -> None:
        seconds = self._limits.stop_seconds
        log.warning("engine_killed", task_id=str(attempt.doorbell.task_id), reason=attempt.stop, waited_seconds=seconds)
        self._link.kill(f"killed, because another request did not stop within {seconds:g} s", attempt.request_id)

    def _record(
        self, attempt: RunningAttempt, task: ClaimedTask, ended: Finished | Failed | EngineLost, events: AttemptEvents
    ) -> RunReport:
        if attempt.stop is StopReason.ABANDONED:
            return NOT_OURS
        load_failure = find_load_failure(task, ended)
        # Before the task is free: it is to go to another worker.
        given_up = self._report_load_failure(task.type, task.model or "", load_failure) if load_failure else None
        ending = decide_ending(
            task,
            ended,
            stop=attempt.stop,
            given_up=given_up,
            attempt_seconds=self._limits.attempt_seconds,
            base_retry_seconds=self._limits.base_retry_seconds,
        )
        recorded = self._finish_surely(attempt, ending)
        if recorded is None:
            log.info("result_discarded", task_id=str(task.task_id), attempt=task.attempt)
            return NOT_OURS
        outcome = Outcome(recorded)
        error = str(ending.error["message"]) if ending.error else ""
        match outcome:
            case Outcome.RETRIED:
                log.info("task_retried", task_id=str(task.task_id), attempt=task.attempt, delay=ending.retry_seconds)
                events.publish(EventName.RETRIED, attempt=task.attempt, error=ending.error)
            case Outcome.RELEASED:
                log.info("task_released", task_id=str(task.task_id), attempt=task.attempt, suspect=ending.suspect)
                events.publish(EventName.RELEASED, attempt=task.attempt, error=ending.error)
            case _:
                if attempt.last_text is not None and outcome is Outcome.COMPLETED:
                    last = attempt.last_text
                    events.publish(EventName.TEXT, text=last.text, token_ids=last.token_ids)
                events.publish(EventName.FINISHED, status=outcome, error=ending.error)
        return RunReport(outcome, error)

    def _finish_surely(self, attempt: RunningAttempt, ending: Ending) -> str | None:
        """Record an ending, however long PostgreSQL is away, unless the attempt was given to others meanwhile."""
        while attempt.stop is not StopReason.ABANDONED:
            try:
                return self._finish(ending)
            except DatabaseUnreachableError as exc:
                log.warning("finish_delayed", task_id=str(ending.task_id), reason=str(exc))
                time.sleep(DATABASE_RETRY_SECONDS)
        return None


def _publish(events: AttemptEvents, progress: DownloadProgress) -> None:
    """Tell whoever follows a task how far the model is that it waits for."""
    events.publish(EventName.PROGRESS, fraction=progress.fraction, **progress.to_json())
