"""Which tasks are meant: what `TaskManager` lists, cancels, retries and deletes by."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, TypedDict

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from bitinglip.domain.payloads import CleanJson, CleanText
from bitinglip.domain.task import Priority, Status, describe_first_error
from bitinglip.errors import InvalidRequestError
from bitinglip.store.queries import MAX_PAGE

LARGEST_SEQ = 2**63 - 1


class TaskFilter(TypedDict, total=False):
    """Conditions that a task meets all of, by the names of its record's fields.

    Attributes:
        statuses: Any of these.
        priorities: Any of these.
        agent_id: Of this agent.
        channel_id: Of this channel.
        type_: Of this kind.
        model: Of this model.
        error_code: Failed for this reason.
        metadata: Its metadata contains this.
        since: Created at or after; with a time zone.
        before_seq: Older than the task of this number: the next page.
    """

    statuses: Sequence[Status | str]
    priorities: Sequence[Priority | str]
    agent_id: str | None
    channel_id: str | None
    type_: str | None
    model: str | None
    error_code: str | None
    metadata: Mapping[str, Any] | None
    since: datetime | None
    before_seq: int | None


# Empty would mean nobody's, and is most often a variable that was not set: never everybody's.
Name = Annotated[CleanText, Field(min_length=1)]


class _CheckedFilter(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    statuses: list[Status] = Field(default_factory=list)
    priorities: list[Priority] = Field(default_factory=list)
    agent_id: Name | None = None
    channel_id: Name | None = None
    type_: Name | None = None
    model: Name | None = None
    error_code: Name | None = None
    metadata: CleanJson | None = None
    since: AwareDatetime | None = None
    before_seq: Annotated[int, Field(ge=1, le=LARGEST_SEQ)] | None = None


def check_filter(conditions: TaskFilter) -> dict[str, Any]:
    """The conditions that are given, as `store.queries` takes them.

    Raises:
        InvalidRequestError: Naming the first bad condition.
    """
    try:
        checked = _CheckedFilter.model_validate(conditions)
    except ValidationError as exc:
        raise describe_first_error(exc) from exc
    return {name: value for name, value in checked.model_dump().items() if value}


def check_limit(limit: int) -> int:
    """How many to list at most.

    Raises:
        InvalidRequestError: If it is out of bounds.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequestError("limit", limit, f"1 to {MAX_PAGE:,}; ask for the next page with before_seq")
    return limit
