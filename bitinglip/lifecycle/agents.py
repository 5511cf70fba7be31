"""What an operator says of an agent: how much of the workers is its share, how urgently and how much it may ask.

A change takes effect with the next round of the dispatcher: it is made under the lock under which tasks are given out,
with the agent's lanes closed or offered again in the same transaction. What workers have been given goes on; nothing is
taken back. A change that would be broken from the start is refused with the numbers, unless it is forced: a limit below
what runs, a daily budget that is spent already.

`edit_agent` makes an agent that nobody has heard of, so that limits can be set before its first task. A pause or a
resume of such an agent is most likely a misspelt name, and is refused.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, text

from bitinglip.domain.task import AgentId, Priority, describe_first_error
from bitinglip.errors import AgentNotFoundError, InvalidRequestError
from bitinglip.store import agents
from bitinglip.store.database import Database
from bitinglip.store.lanes import reopen_agent
from bitinglip.store.queues import lock_dispatch, notify_dispatchers

LARGEST_BUDGET = 1_000_000_000_000


class AgentEdit(BaseModel):
    """What may be changed in an agent; what is not given stays.

    Attributes:
        agent_id: The agent; it need not have asked for anything yet.
        weight: Its share of the workers, relative to the others' weights.
        max_priority: The most urgent priority it may submit with; None: any.
        max_queued: Tasks of it that may wait at once; None: as the settings say.
        max_running: Tasks of it that workers may hold at once; None: any number.
        daily_seconds: Engine seconds that it may use from midnight to midnight UTC; None: any number.
        daily_tokens: Tokens likewise, those of prompts included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    agent_id: AgentId
    weight: float = Field(default=1.0, ge=0.001, le=1_000)
    max_priority: Priority | None = None
    max_queued: int | None = Field(default=None, ge=1, le=10_000_000)
    max_running: int | None = Field(default=None, ge=1, le=1_000_000)
    daily_seconds: float | None = Field(default=None, gt=0, le=LARGEST_BUDGET)
    daily_tokens: int | None = Field(default=None, gt=0, le=LARGEST_BUDGET)


def edit_agent(database: Database, agent_id: str, *, force: bool = False, **fields: Any) -> Mapping[str, Any]:
    """Change an agent, from the next round on, and return it: id, weight, its limits, paused, created_at.

    Tasks that wait already stay, even if there are more of them than it may have from now on.

    Args:
        database: Where it is recorded.
        agent_id: The agent; made if nobody has heard of it.
        force: Accept a limit below what runs and a budget that is spent: then nothing of it begins until there is room.
        **fields: Of `AgentEdit`.

    Raises:
        InvalidRequestError: Naming the field, the value and what would be right.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    try:
        edit = AgentEdit(agent_id=agent_id, **fields)
    except ValidationError as exc:
        raise describe_first_error(exc) from exc
    changes = edit.model_dump(exclude_unset=True, exclude={"agent_id"})
    with database.transaction() as connection:
        _lock(connection)
        if "weight" in changes:
            agents.reweigh_agent(connection, edit.agent_id, edit.weight)
        changed = agents.set_agent(connection, edit.agent_id, **changes)
        agents.recount_in_flight(connection, edit.agent_id)
        if edit.max_running is not None and not force:
            _check_running(connection, edit.agent_id, edit.max_running)
        if edit.daily_seconds is not None or edit.daily_tokens is not None:
            spent = agents.count_spent(connection, edit.agent_id)
            if not force:
                _check_budget("daily_seconds", edit.daily_seconds, spent.spent_seconds, "engine seconds")
                _check_budget("daily_tokens", edit.daily_tokens, spent.spent_tokens, "tokens")
        _offer_lanes(connection, edit.agent_id, paused=changed.paused)
    return dict(changed._mapping)


def pause_agent(database: Database, agent_id: str) -> Mapping[str, Any]:
    """Give workers nothing more of an agent until it is resumed; returns the agent, as `edit_agent` does.

    It may go on to submit, and what workers have been given goes on. Work that it takes itself is not held back.

    Raises:
        AgentNotFoundError: If nobody has heard of it.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    return _set_paused(database, agent_id, paused=True)


def resume_agent(database: Database, agent_id: str) -> Mapping[str, Any]:
    """Undo a pause; returns the agent, as `edit_agent` does. It does not claim the time that it was away.

    Raises:
        AgentNotFoundError: If nobody has heard of it.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    return _set_paused(database, agent_id, paused=False)


def _set_paused(database: Database, agent_id: str, *, paused: bool) -> Mapping[str, Any]:
    with database.transaction() as connection:
        _lock(connection)
        if "\0" in agent_id or agents.get_agent(connection, agent_id) is None:
            raise AgentNotFoundError(agent_id)
        changed = agents.set_agent(connection, agent_id, paused=paused)
        _offer_lanes(connection, agent_id, paused=paused)
    return dict(changed._mapping)


def _lock(connection: Connection) -> None:
    lock_dispatch(connection)
    # Unlike a round's work, an operator's word is not done again after a crash of PostgreSQL.
    connection.execute(text("SET LOCAL synchronous_commit TO DEFAULT"))


def _offer_lanes(connection: Connection, agent_id: str, *, paused: bool) -> None:
    if paused:
        agents.close_lanes(connection, agent_id)
    else:
        # The next round closes those again that are still over a limit.
        reopen_agent(connection, agent_id)
    notify_dispatchers(connection)


def _check_running(connection: Connection, agent_id: str, max_running: int) -> None:
    in_flight = agents.count_in_flight(connection, agent_id)
    if in_flight > max_running:
        remedy = f"workers hold {in_flight:,} of its tasks now; allow as many, wait or pause it, or force the limit"
        raise InvalidRequestError("max_running", max_running, f"{remedy}: those go on")


def _check_budget(field: str, budget: float | None, spent: float, unit: str) -> None:
    if budget is not None and spent >= budget:
        remedy = f"it has used {spent:,.10g} {unit} since midnight UTC; allow more, or force the limit"
        raise InvalidRequestError(field, budget, f"{remedy}: nothing more of it begins today")
