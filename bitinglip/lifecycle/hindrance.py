"""What can be in a task's way, by name; and which limit of its agent is."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Row


class Reason(StrEnum):
    """Why a task is where it is. Stable: programs compare it."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CANCELLING = "cancelling"
    IN_PROGRESS = "in_progress"
    RESERVED = "reserved"
    ENGINE_STARTING = "engine_starting"
    WORKER_SILENT = "worker_silent"
    BLOCKED = "blocked"
    SCHEDULED = "scheduled"
    RETRY_LATER = "retry_later"
    AGENT_TAKES_IT = "agent_takes_it"
    AGENT_PAUSED = "agent_paused"
    MAX_RUNNING = "max_running"
    DAILY_BUDGET = "daily_budget"
    NO_WORKER = "no_worker"
    NO_WORKER_FOR_TYPE = "no_worker_for_type"
    NO_WORKER_FOR_MODEL = "no_worker_for_model"
    PASSED_OVER = "passed_over"
    MODEL_BUSY = "model_busy"
    MORE_URGENT_FIRST = "more_urgent_first"
    AGENT_TURN = "agent_turn"
    OLDER_FIRST = "older_first"
    WORKERS_FULL = "workers_full"
    NO_DISPATCHER = "no_dispatcher"
    NEXT = "next"


@dataclass(frozen=True, slots=True)
class ReachedLimit:
    """A limit of an agent that lets nothing more of it begin."""

    reason: Reason
    message: str
    release: str
    details: Mapping[str, Any]


def find_limit(agent: Row[Any], closed: Collection[str | None]) -> ReachedLimit | None:
    """The limit that an agent has reached; None: none.

    Args:
        agent: As `store.explaining.get_limits` gives it.
        closed: What dispatchers say of its lane, in each pool.
    """
    name = f"agent {agent.id!r}"
    if agent.paused:
        return ReachedLimit(Reason.AGENT_PAUSED, f"{name} is paused", f"'bitinglip agent resume {agent.id}'", {})
    if agent.max_running is not None and agent.in_flight >= agent.max_running:
        message = f"{name} may have {agent.max_running:,} tasks at workers, and {agent.in_flight:,} are there"
        details = {"max_running": agent.max_running, "in_flight": agent.in_flight}
        return ReachedLimit(Reason.MAX_RUNNING, message, "the end of one of these, or a higher limit", details)
    if "daily_budget" in closed or _is_spent(agent):
        return _describe_budget(agent)
    return None


def _is_spent(agent: Row[Any]) -> bool:
    budgets = ((agent.daily_seconds, agent.spent_seconds), (agent.daily_tokens, agent.spent_tokens))
    return any(budget is not None and spent >= budget for budget, spent in budgets)


def _describe_budget(agent: Row[Any]) -> ReachedLimit | None:
    used = [
        f"{spent:,.10g} of {budget:,.10g} {unit}"
        for budget, spent, unit in (
            (agent.daily_seconds, agent.spent_seconds, "engine seconds"),
            (agent.daily_tokens, agent.spent_tokens, "tokens"),
        )
        if budget is not None
    ]
    if not used:
        # The budget was taken away since; the lane is offered again with the next round.
        return None
    message = f"agent {agent.id!r} has used {' and '.join(used)} today"
    if not _is_spent(agent):
        message = f"{message}, and its {agent.in_flight:,} tasks at workers may use the rest"
    details = {
        "daily_seconds": agent.daily_seconds,
        "spent_seconds": agent.spent_seconds,
        "daily_tokens": agent.daily_tokens,
        "spent_tokens": agent.spent_tokens,
        "in_flight": agent.in_flight,
        "day_ends_at": agent.day_ends_at,
    }
    release = f"the day's end at {agent.day_ends_at:%Y-%m-%d %H:%M} UTC, or a higher budget"
    return ReachedLimit(Reason.DAILY_BUDGET, message, release, details)
