"""What an attempt comes to: from what its engine gave, and why it was stopped, to what is recorded. No I/O.

Blame is fair: an engine that dies takes its whole batch down and nobody's attempts are spent. The suspects run again
one at a time, and only one that loses its engine alone is quarantined as poison. A model that cannot be loaded is not
the task's failure: it tries another worker at no cost, until the model is given up.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any, assert_never

from bitinglip.domain.catalogue import find_kinds
from bitinglip.domain.retry import decide_retry
from bitinglip.engine.base import EngineLost, Failed, Finished, Usage
from bitinglip.store.tasks import ClaimedTask, Ending


class Outcome(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    RETRIED = "retried"
    RELEASED = "released"
    CANCELLED = "cancelled"
    NOT_OURS = "not_ours"


class StopReason(IntEnum):
    """Why an attempt was told to stop, weakest first."""

    TIME_LIMIT = 1
    CANCELLED = 2
    HANDED_BACK = 3
    """The worker leaves; another one takes the task."""
    ABANDONED = 4
    """PostgreSQL says, or may say by now, that it is another worker's; nothing is recorded."""


def decide_ending(
    task: ClaimedTask,
    ended: Finished | Failed | EngineLost,
    *,
    stop: StopReason | None,
    attempt_seconds: float,
    base_retry_seconds: float,
    given_up: str | None = None,
) -> Ending:
    """What to record of an attempt.

    Args:
        task: As it was claimed.
        ended: What its engine gave last.
        stop: Why it was told to stop. A result that was made all the same is kept.
        attempt_seconds: The time limit, for the message.
        base_retry_seconds: Before a first retry, where the kind says nothing else.
        given_up: Why no worker is to try to load its model any more.
    """
    match ended:
        case Finished(_, result, usage):
            return Ending(task.task_id, task.attempt, Outcome.COMPLETED, result=result, usage=_usage_json(usage))
        case EngineLost() if stop is None:
            return _blame(task, ended, given_up)
        case EngineLost():
            usage = Usage()
        case Failed() if stop is None or ended.code != "cancelled":
            return _retry_or_fail(task, ended, base_retry_seconds, given_up)
        case Failed():
            usage = ended.usage
        case _:
            assert_never(ended)
    match stop:
        case StopReason.TIME_LIMIT:
            message = f"ran longer than {attempt_seconds:g} s; ask for less, or raise BITINGLIP_TASK_TIMEOUT"
            error = _error("time_limit", message)
            return Ending(task.task_id, task.attempt, Outcome.FAILED, error=error, usage=_usage_json(usage))
        case StopReason.HANDED_BACK | StopReason.ABANDONED:
            error = _error("handed_back", "its worker was stopped; another one takes it", retryable=True)
            return Ending(task.task_id, task.attempt, Outcome.RELEASED, error=error)
        case StopReason.CANCELLED | None:
            error = _error("cancelled", "cancelled while it ran")
            return Ending(task.task_id, task.attempt, Outcome.CANCELLED, error=error, usage=_usage_json(usage))
        case _:
            assert_never(stop)


def find_load_failure(task: ClaimedTask, ended: Finished | Failed | EngineLost) -> str | None:
    """Why the task's model could not be loaded, if that is what ended the attempt."""
    match ended:
        case Failed(code="model_load_failed", message=message):
            return message
        case EngineLost(message=message, loading=loading) if loading is not None and loading == task.model:
            return f"model {loading!r} could not be loaded: {message}"
    return None


def _release_for_other_worker(task: ClaimedTask, load_failure: str, given_up: str | None) -> Ending:
    if given_up is not None:
        error = _error("model_load_failed", given_up)
        return Ending(task.task_id, task.attempt, Outcome.FAILED, error=error)
    error = _error("model_load_failed", load_failure, retryable=True)
    return Ending(task.task_id, task.attempt, Outcome.RELEASED, error=error)


def _blame(task: ClaimedTask, lost: EngineLost, given_up: str | None) -> Ending:
    if (load_failure := find_load_failure(task, lost)) is not None:
        return _release_for_other_worker(task, load_failure, given_up)
    if not lost.blameless and task.suspect and lost.companions == 0:
        message = f"it ended its engine while it ran alone: {lost.message}"
        return Ending(task.task_id, task.attempt, Outcome.FAILED, error=_error("poison", message))
    error = _error("engine_lost", lost.message, retryable=True)
    suspect = task.suspect or not lost.blameless
    return Ending(task.task_id, task.attempt, Outcome.RELEASED, error=error, suspect=suspect)


def _retry_or_fail(task: ClaimedTask, failed: Failed, base_retry_seconds: float, given_up: str | None) -> Ending:
    if (load_failure := find_load_failure(task, failed)) is not None:
        return _release_for_other_worker(task, load_failure, given_up)
    error = _error(failed.code, failed.message, retryable=failed.retryable)
    usage = _usage_json(failed.usage)
    kind = find_kinds().get(task.type)
    decision = decide_retry(
        failures=task.failures,
        max_attempts=task.max_attempts,
        retryable=failed.retryable,
        base_seconds=(kind and kind.base_retry_seconds) or base_retry_seconds,
    )
    if decision.delay is None:
        return Ending(task.task_id, task.attempt, Outcome.FAILED, error=error, usage=usage)
    seconds = decision.delay.total_seconds()
    return Ending(task.task_id, task.attempt, Outcome.RETRIED, error=error, usage=usage, retry_seconds=seconds)


def _error(code: str, message: str, *, retryable: bool = False) -> Mapping[str, Any]:
    return {"code": code, "message": message, "retryable": retryable}


def _usage_json(usage: Usage) -> dict[str, float | int]:
    caused = {"load_seconds": round(usage.load_seconds, 6)} if usage.load_seconds else {}
    drawn = {"steps": usage.steps, "pixels": usage.pixels} if usage.steps else {}
    return {
        **caused,
        **drawn,
        "engine_seconds": round(usage.engine_seconds, 6),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
