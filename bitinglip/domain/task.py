"""The task: what is asked (`TaskRequest`) and what is recorded (`Task`).

The bounds here are repeated by CHECK constraints in the database: the one gives a clear error, the other holds against
every other writer.
"""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self

import uuid_utils.compat
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bitinglip.domain.artifacts import Maker, find_maker
from bitinglip.domain.catalogue import Kind, get_kind
from bitinglip.domain.models import is_hub_name
from bitinglip.domain.payloads import CleanText, Payload, dump_json
from bitinglip.errors import InvalidRequestError, TaskNotFoundError
from bitinglip.settings import MAX_TTL_SECONDS, MIN_TTL_SECONDS

MAX_METADATA_BYTES = 65_536
MAX_PARENTS = 1_000
MAX_DAYS_AHEAD = 366


class Status(StrEnum):
    """Where a task stands. There are no other statuses."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows it."""
        return self in {Status.COMPLETED, Status.FAILED, Status.CANCELLED}


class QueueState(StrEnum):
    """Where a pending task stands."""

    READY = "ready"
    RESERVED = "reserved"
    SCHEDULED = "scheduled"
    BLOCKED = "blocked"


class Priority(StrEnum):
    """The bands, most urgent first."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for the most urgent."""
        return list(Priority).index(self)


def _check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    size = len(dump_json(metadata).encode())
    if size > MAX_METADATA_BYTES:
        message = f"is {size:,} bytes of JSON; at most {MAX_METADATA_BYTES:,}"
        raise ValueError(message)
    return metadata


def _check_not_before(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        message = "has no time zone; add one, such as +00:00"
        raise ValueError(message)
    ahead = moment - datetime.now(UTC)
    if not timedelta(0) < ahead < timedelta(days=MAX_DAYS_AHEAD):
        message = f"is not ahead of now ({datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}) by at most {MAX_DAYS_AHEAD} days"
        raise ValueError(message)
    return moment


Metadata = Annotated[dict[str, Any], AfterValidator(_check_metadata)]
Title = Annotated[CleanText, Field(min_length=1, max_length=200)]
Description = Annotated[CleanText, Field(max_length=2_000)]
AgentId = Annotated[CleanText, Field(min_length=1, max_length=100)]
ChannelId = Annotated[str, Field(pattern=r"^[0-9]{17,19}$")]


class TaskRequest(BaseModel):
    """A task that is asked for, valid in everything that needs no model and no database.

    Attributes:
        ttl: Seconds in the queue before it expires; None: as the settings say.
        not_before: It does not start before then.
        depends_on: Tasks of the same agent that must complete first.
        idempotency_key: A second submission of the agent with the same key is the same task.
        max_attempts: Attempts that it may spend; None: as its kind or the settings say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: uuid.UUID = Field(default_factory=uuid_utils.compat.uuid7)
    type: str
    payload: Payload
    agent_id: AgentId = "default"
    priority: Priority = Priority.MEDIUM
    model: Annotated[CleanText, Field(min_length=1, max_length=500)] | None = None
    user_id: Annotated[CleanText, Field(min_length=1, max_length=100)] | None = None
    channel_id: ChannelId | None = None
    title: Title
    description: Description | None = None
    metadata: Metadata = Field(default_factory=dict)
    ttl: int | None = Field(default=None, ge=MIN_TTL_SECONDS, le=MAX_TTL_SECONDS)
    not_before: Annotated[datetime, AfterValidator(_check_not_before)] | None = None
    depends_on: list[uuid.UUID] = Field(default_factory=list, max_length=MAX_PARENTS)
    idempotency_key: Annotated[CleanText, Field(min_length=1, max_length=200)] | None = None
    max_attempts: int | None = Field(default=None, ge=1, le=11)

    @model_validator(mode="after")
    def _check_parents(self) -> Self:
        if self.id in self.depends_on:
            message = "depends_on: a task cannot wait for itself; name others"
            raise ValueError(message)
        return self


def make_request(kind_name: str, payload: Mapping[str, Any], **fields: Any) -> TaskRequest:
    """Validate what a caller asks for.

    Args:
        kind_name: A kind of the catalogue: `text`, `echo`, ...
        payload: The kind's own fields.
        **fields: Fields of `TaskRequest`; None means absent. `model` is the payload's, for a kind that is about models.

    Raises:
        InvalidRequestError: Naming the first bad field, its value and what would be right.
    """
    kind = get_kind(kind_name)
    given = {name: value for name, value in fields.items() if value is not None}
    if isinstance(model := given.get("model"), str) and is_hub_name(model):
        given["model"] = model.removesuffix("@main")
    if "model" in given and not kind.needs_model and "model" in kind.payload.model_fields:
        payload = {"model": given.pop("model"), **payload}
    if kind.needs_model and "model" not in given:
        raise InvalidRequestError("model", None, f"a task of type {kind_name} names a model")
    try:
        checked = kind.payload.model_validate(dict(payload))
        given.setdefault("title", checked.make_title())
        given.setdefault("max_attempts", kind.max_attempts)
        if made := find_made(kind, checked):
            # So that the files are kept until they have been used, and only the agent's own can be.
            makers = [maker.task_id for maker in made.values()]
            given["depends_on"] = list(dict.fromkeys([*given.get("depends_on", ()), *makers]))
        return TaskRequest(type=kind_name, payload=checked, **given)
    except ValidationError as exc:
        raise describe_first_error(exc) from exc


def find_made(kind: Kind, payload: Payload) -> dict[str, Maker]:
    """Who made what a task takes, by the payload's field that names it; what was brought has no maker."""
    taken = {field: getattr(payload, field) for field in kind.inputs}
    return {field: maker for field, name in taken.items() if name is not None and (maker := find_maker(name))}


def describe_first_error(exc: ValidationError) -> InvalidRequestError:
    """The first of pydantic's errors as one of ours: the field, the value, the remedy."""
    error = exc.errors(include_url=False)[0]
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        field, _, remedy = message.partition(": ")
        given = error["input"].get(field) if isinstance(error["input"], dict) else getattr(error["input"], field, None)
        return InvalidRequestError(field, given, remedy)
    field = ".".join(str(part) for part in error["loc"])
    bounds = error.get("ctx", {})
    match error["type"]:
        case "too_short" | "string_too_short":
            remedy = f"too short; at least {bounds['min_length']:,} long"
        case "too_long" | "string_too_long":
            remedy = f"too long; at most {bounds['max_length']:,} long"
        case "string_pattern_mismatch":
            remedy = f"does not match {bounds['pattern']}"
        case "extra_forbidden":
            remedy = "no such field; remove it"
        case _:
            remedy = message[:1].lower() + message[1:]
    return InvalidRequestError(field, error["input"], remedy)


class TaskError(BaseModel):
    """Why a task failed or was cancelled."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    retryable: bool = False


class Attempt(BaseModel):
    """One try at a task that has ended."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    worker_name: str | None
    started_at: datetime | None
    finished_at: datetime
    outcome: str
    error: TaskError | None
    usage: dict[str, Any] | None


class Task(BaseModel):
    """The record of a task. Times are PostgreSQL's, UTC."""

    model_config = ConfigDict(frozen=True)

    id: uuid.UUID
    seq: int
    type: str
    title: str
    description: str | None
    status: Status
    queue_state: QueueState | None
    priority: Priority
    agent_id: str
    user_id: str | None
    channel_id: str | None
    model: str | None
    payload: dict[str, Any]
    metadata: dict[str, Any]
    result: dict[str, Any] | None
    error: TaskError | None
    usage: dict[str, Any] | None
    progress: float
    attempt: int
    failures: int
    max_attempts: int
    worker_id: uuid.UUID | None
    not_before: datetime | None
    expires_at: datetime | None
    depends_on: list[uuid.UUID]
    idempotency_key: str | None
    cancel_requested_at: datetime | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def parse_task_id(text: str | uuid.UUID) -> uuid.UUID:
    """The id that a caller wrote.

    Raises:
        TaskNotFoundError: If it is no UUID, and so no task's.
    """
    try:
        return text if isinstance(text, uuid.UUID) else uuid.UUID(text)
    except ValueError as exc:
        raise TaskNotFoundError(text) from exc
