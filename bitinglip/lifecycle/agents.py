"""What an operator says of an agent: how much of the workers is its share, how urgently and how much it may ask."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitinglip.domain.task import AgentId, Priority, describe_first_error
from bitinglip.store import agents
from bitinglip.store.database import Database


class AgentEdit(BaseModel):
    """What may be changed in an agent; what is not given stays.

    Attributes:
        agent_id: The agent; it need not have asked for anything yet.
        weight: Its share of the workers, relative to the others' weights.
        max_priority: The most urgent priority it may submit with; None: any.
        max_queued: Tasks of it that may wait at once; None: as the settings say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent_id: AgentId
    weight: float = Field(default=1.0, gt=0, le=1_000)
    max_priority: Priority | None = None
    max_queued: int | None = Field(default=None, ge=1, le=10_000_000)


def edit_agent(database: Database, agent_id: str, **fields: Any) -> Mapping[str, Any]:
    """Change an agent and return it: id, weight, max_priority, max_queued, created_at.

    Tasks that wait already stay, even if there are more of them than it may have from now on.

    Raises:
        InvalidRequestError: Naming the field, the value and what would be right.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    try:
        edit = AgentEdit(agent_id=agent_id, **fields)
    except ValidationError as exc:
        raise describe_first_error(exc) from exc
    with database.transaction() as connection:
        changes = edit.model_dump(exclude_unset=True, exclude={"agent_id"})
        return dict(agents.set_agent(connection, edit.agent_id, **changes)._mapping)
