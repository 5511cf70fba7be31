"""`beat/schedule.toml`: what recurs, and when. Checked as a whole before anything runs."""

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bitinglip.beat.times import Interval, Times, parse_cron
from bitinglip.domain.catalogue import get_kind
from bitinglip.domain.payloads import CleanText
from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.errors import ConfigurationError, InvalidRequestError
from bitinglip.settings import BeatSettings, find_operator_file, load_settings

MAX_EVERY_SECONDS = 366 * 86_400


class Chore(StrEnum):
    """What BitingLip does for itself: a Celery task that any worker runs."""

    PURGE_FINISHED = "purge_finished"
    REPORT_DAY = "report_day"
    SWEEP_ARTIFACTS = "sweep_artifacts"


_REQUEST_FIELDS = {
    "agent": "agent_id",
    "model": "model",
    "priority": "priority",
    "user": "user_id",
    "channel": "channel_id",
    "title": "title",
    "description": "description",
    "metadata": "metadata",
    "ttl": "ttl",
}
"""As `Client.submit` calls them, and as a request does. All else belongs to the kind's payload."""


class Recurring(BaseModel):
    """One table of schedule.toml; a task's own fields are in `model_extra`.

    Attributes:
        cron: `minute hour day month weekday`.
        every: Seconds, in place of `cron`.
        timezone: In which `cron` is read; UTC if nobody says.
        task: A kind of task.
        chore: In place of `task`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    cron: str | None = None
    every: int | None = Field(default=None, ge=1, le=MAX_EVERY_SECONDS)
    timezone: str | None = None
    task: str | None = None
    chore: Chore | None = None

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, line: str) -> str:
        parse_cron(line, UTC)
        return line

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            message = "no such time zone; write one such as Europe/Berlin"
            raise ValueError(message) from exc
        return name

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        problems = []
        if (self.cron is None) == (self.every is None):
            problems.append("give either cron or every")
        elif self.timezone is not None and self.cron is None:
            problems.append("timezone is for cron; every counts seconds")
        if (self.task is None) == (self.chore is None):
            problems.append("give either task or chore")
        elif self.chore is not None and self.model_extra:
            problems.append(f"{', '.join(self.model_extra)}: a chore takes nothing more")
        if problems:
            raise ValueError("; ".join(problems))
        if self.task is not None:
            self._check_request()
        return self

    @cached_property
    def times(self) -> Times:
        """When it is due."""
        if self.every is not None:
            return Interval(self.every)
        assert self.cron is not None  # noqa: S101 - one of them is given
        return parse_cron(self.cron, ZoneInfo(self.timezone) if self.timezone else UTC)

    def make_request(self, name: str, due: datetime) -> TaskRequest:
        """The task that a due time stands for; its key is a second belt against running it twice."""
        return self._make_request(idempotency_key=f"recurring:{name}:{due.isoformat()}")

    def _make_request(self, **more: Any) -> TaskRequest:
        assert self.task is not None  # noqa: S101 - a chore submits nothing
        given = self.model_extra or {}
        fields = {inner: given[outer] for outer, inner in _REQUEST_FIELDS.items() if outer in given}
        payload = {key: value for key, value in given.items() if key not in _REQUEST_FIELDS}
        return make_request(self.task, payload, **fields, **more)

    def _check_request(self) -> None:
        try:
            request = self._make_request()
            for field in get_kind(request.type).inputs:
                if (name := getattr(request.payload, field)) is not None:
                    raise InvalidRequestError(field, name, "files go in time; a task that recurs takes none")
        except InvalidRequestError as exc:
            outer = {inner: outer for outer, inner in _REQUEST_FIELDS.items()} | {"type": "task"}
            message = f"{outer.get(exc.field, exc.field)} is {exc.value!r}: {exc.remedy}"
            raise ValueError(message) from exc


Schedule = Mapping[str, Recurring]
"""What recurs, by name."""


class _ScheduleFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    recurring: dict[Annotated[CleanText, Field(min_length=1, max_length=100)], Recurring] = Field(default_factory=dict)


def find_schedule_file() -> Path:
    """The schedule.toml in force."""
    return load_settings(BeatSettings).schedule_file or find_operator_file("beat/schedule.toml")


def read_schedule(path: Path) -> Schedule:
    """What recurs, by name, in the file's order.

    Raises:
        ConfigurationError: Naming each wrong key, its value and what would be right.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(
            f"BITINGLIP_SCHEDULE_FILE is {str(path)!r}: {exc.strerror}; name a schedule.toml"
        ) from exc
    except ValueError as exc:
        raise ConfigurationError(f"{path}: {exc}; it must be TOML") from exc
    try:
        return _ScheduleFile.model_validate(content).recurring
    except ValidationError as exc:
        raise ConfigurationError(*(_describe(path, error) for error in exc.errors())) from exc


def _describe(path: Path, error: object) -> str:
    assert isinstance(error, dict)  # noqa: S101 - pydantic's ErrorDetails
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    message = str(error["msg"]).removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    if error["type"] == "extra_forbidden":
        return f"{path}: {where} is unknown; the file holds tables such as [recurring.NAME]"
    if isinstance(error["input"], dict):
        # The whole table would bury what is wrong with it.
        return f"{path}: {where}: {message}"
    return f"{path}: {where} is {error['input']!r}: {message}"
