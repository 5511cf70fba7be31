"""Every setting, one class per concern, read from the environment and `.env`.

A setting has a unit, a bound and a default. Where no URLs are configured, the running embedded system is found through
`running.json` in the data folder, so that a second terminal needs no configuration.
"""

import json
import os
import socket
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bitinglip.errors import ConfigurationError, SystemNotRunningError

RUNNING_FILE = "running.json"

MIN_TTL_SECONDS = 300
MAX_TTL_SECONDS = 86_400


class ServerUrls(NamedTuple):
    """Where the two servers are. Both hold passwords: never log them."""

    database_url: str
    redis_url: str


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BITINGLIP_", env_file=".env", extra="ignore", frozen=True)


class ServerSettings(_Settings):
    """Which PostgreSQL and Redis to use.

    Attributes:
        database_url: `postgresql://user:password@host:port/name`; None: the embedded server.
        redis_url: `redis://[:password@]host:port/db`; None: the embedded server.
        data_dir: Where the embedded servers keep their data.
    """

    database_url: str | None = None
    redis_url: str | None = None
    data_dir: Path = Path("~/.local/share/bitinglip")

    @model_validator(mode="after")
    def _check_urls(self) -> Self:
        if (self.database_url is None) != (self.redis_url is None):
            message = "set both BITINGLIP_DATABASE_URL and BITINGLIP_REDIS_URL, or neither"
            raise ValueError(message)
        for name, url, schemes in (
            ("BITINGLIP_DATABASE_URL", self.database_url, ("postgresql", "postgresql+psycopg2", "postgres")),
            ("BITINGLIP_REDIS_URL", self.redis_url, ("redis", "rediss")),
        ):
            if url is not None:
                _check_url(name, url, schemes)
        return self

    def find_urls(self) -> ServerUrls:
        """The configured URLs, else those of the embedded system that runs in the data folder.

        Raises:
            SystemNotRunningError: If neither is there.
        """
        if self.database_url is not None and self.redis_url is not None:
            return ServerUrls(self.database_url, self.redis_url)
        running = read_running(self.data_dir)
        if running is None:
            raise SystemNotRunningError(self.data_dir.expanduser())
        return ServerUrls(running["database_url"], running["redis_url"])


def _task_setting(default: float, *, name: str, ge: float, le: float) -> Any:
    """A bound setting that is also accepted under its bare name, TASK_*."""
    return Field(default=default, ge=ge, le=le, validation_alias=AliasChoices(f"BITINGLIP_{name}", name))


class TaskSettings(_Settings):
    """What a task gets when its submitter does not say, and what an agent may ask for.

    Attributes:
        max_retry_count: Attempts after the first that a failing task gets.
        base_retry_delay: Seconds before the first retry; doubled for each one after it, jittered.
        default_ttl: Seconds in the queue before a task expires.
        timeout: Seconds that one attempt may run.
        max_queue_size: Tasks of one agent that wait at once.
        channel_limit: Tasks of one channel that wait at once.
        retention_days: Days that a finished task is kept.
    """

    model_config = SettingsConfigDict(env_prefix="", populate_by_name=True)

    max_retry_count: int = _task_setting(3, name="TASK_MAX_RETRY_COUNT", ge=0, le=10)
    base_retry_delay: float = _task_setting(2, name="TASK_BASE_RETRY_DELAY", ge=1, le=60)
    default_ttl: int = _task_setting(3600, name="TASK_DEFAULT_TTL", ge=MIN_TTL_SECONDS, le=MAX_TTL_SECONDS)
    timeout: float = _task_setting(300, name="TASK_TIMEOUT", ge=1, le=86_400)
    max_queue_size: int = _task_setting(1000, name="TASK_MAX_QUEUE_SIZE", ge=100, le=10_000)
    channel_limit: int = _task_setting(100, name="TASK_CHANNEL_LIMIT", ge=10, le=1_000)
    retention_days: int = _task_setting(30, name="TASK_RETENTION_DAYS", ge=1, le=3_650)


class WorkerSettings(_Settings):
    """How a worker lives.

    Attributes:
        pools_file: Where the pools are described; None: `workers/pools.toml` of the checkout or the installed default.
        heartbeat_seconds: Between two heartbeats.
        lease_seconds: How long a silent worker keeps its tasks. At least three heartbeats.
        stream_seconds: How long the events of a finished task stay readable in Redis.
        cancel_seconds: How long a task that was cancelled, or ran out of time, may take to stop before its engine is
            killed.
        drain_seconds: How long a worker that was told to stop lets its tasks run before it hands them back.
        load_seconds: How long loading a model may take before the engine counts as stuck.
        prefill_seconds: The same for a step that reads prompts.
        step_seconds: The same for any other step.
    """

    pools_file: Path | None = None
    heartbeat_seconds: float = Field(default=2.0, ge=0.2, le=60)
    lease_seconds: float = Field(default=8.0, ge=1, le=600)
    stream_seconds: int = Field(default=3600, ge=60, le=604_800)
    cancel_seconds: float = Field(default=5.0, ge=0.1, le=600)
    drain_seconds: float = Field(default=60.0, ge=0, le=86_400)
    load_seconds: float = Field(default=900.0, ge=1, le=86_400)
    prefill_seconds: float = Field(default=300.0, ge=1, le=86_400)
    step_seconds: float = Field(default=120.0, ge=1, le=86_400)

    @model_validator(mode="after")
    def _check_lease(self) -> Self:
        if self.lease_seconds < 3 * self.heartbeat_seconds:
            message = (
                f"BITINGLIP_LEASE_SECONDS is {self.lease_seconds:g}; "
                f"it must be at least three heartbeats ({3 * self.heartbeat_seconds:g})"
            )
            raise ValueError(message)
        return self


class DispatchSettings(_Settings):
    """How tasks are placed. Environment: `BITINGLIP_SWAP_SECONDS` and so on.

    Attributes:
        swap_seconds: How long a task that has its turn waits for its model before one that others use is unloaded.
    """

    swap_seconds: float = Field(default=10.0, ge=0, le=3_600)


class ModelSettings(_Settings):
    """Where this node keeps models, and how it fetches them. Which folder: huggingface_hub's `HF_HUB_CACHE`, `HF_HOME`.

    Attributes:
        node: This machine's name among the nodes; None: its host name.
        model_disk_bytes: What the models of this node may take together; None: whatever the disk has.
        model_spare_bytes: Of the disk that is left free.
        download_files: Files of one model that are fetched at once.
        download_bytes_per_second: For all downloads of one worker together; None: no limit.
        download_stall_seconds: Without a byte before a connection counts as dead.
        peer_host: The address by which other nodes reach this one, to take models from it; it serves no other.
        peer_port: 0: any that is free.
    """

    node: str | None = Field(default=None, min_length=1, max_length=200)
    model_disk_bytes: int | None = Field(default=None, ge=0)
    model_spare_bytes: int = Field(default=1_000_000_000, ge=0)
    download_files: int = Field(default=4, ge=1, le=64)
    download_bytes_per_second: int | None = Field(default=None, ge=1_000)
    download_stall_seconds: float = Field(default=30.0, ge=0.1, le=3_600)
    peer_host: str = Field(default="127.0.0.1", min_length=1)
    peer_port: int = Field(default=0, ge=0, le=65_535)


class ArtifactSettings(_Settings):
    """Where the files are kept that tasks make and take.

    Attributes:
        artifact_url: A folder, or a URL that fsspec knows, as `s3://bucket/prefix`; every node must see the same. None:
            `artifacts` in the data folder.
        artifact_endpoint_url: Of a server that speaks S3; None: Amazon's.
        artifact_spare_bytes: Of a folder's disk that is left free.
        artifact_upload_bytes: Of the largest file that may be brought.
        artifact_upload_days: Days that a file which somebody brought is kept.
    """

    artifact_url: str | None = Field(default=None, min_length=1)
    artifact_endpoint_url: str | None = Field(default=None, pattern=r"^https?://")
    artifact_spare_bytes: int = Field(default=1_000_000_000, ge=0)
    artifact_upload_bytes: int = Field(default=50_000_000, ge=1)
    artifact_upload_days: int = Field(default=7, ge=1, le=3_650)


class BeatSettings(_Settings):
    """What recurs.

    Attributes:
        schedule_file: Where it is described; None: `beat/schedule.toml` of the checkout or the installed default.
    """

    schedule_file: Path | None = None


class ImageSettings(_Settings):
    """What engines do with pictures.

    Attributes:
        prompt_in_metadata: Whether a picture's file holds its prompt, beside how it was made. Pictures are passed on,
            and prompts may be private.
    """

    prompt_in_metadata: bool = False


class LogSettings(_Settings):
    """What is logged, and how.

    Attributes:
        log_level: The least severe level that is written.
        log_format: `text` for people, `json` for machines.
    """

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"


S = TypeVar("S", bound=_Settings)

ALL_SETTINGS: tuple[type[_Settings], ...] = (
    ServerSettings,
    TaskSettings,
    WorkerSettings,
    DispatchSettings,
    ModelSettings,
    BeatSettings,
    ImageSettings,
    ArtifactSettings,
    LogSettings,
)


def load_settings(settings: type[S]) -> S:
    """The settings of one concern.

    Raises:
        ConfigurationError: Naming each bad setting, its value and its bound.
    """
    try:
        loaded: S = _load_cached(settings)
    except ValidationError as exc:
        raise ConfigurationError(*_describe(settings, exc)) from exc
    return loaded


def find_node_name() -> str:
    """This machine's name among the nodes."""
    return load_settings(ModelSettings).node or socket.gethostname()


def read_running(data_dir: Path) -> dict[str, Any] | None:
    """What the embedded system in `data_dir` wrote about itself, or None if none runs there."""
    try:
        running: dict[str, Any] = json.loads((data_dir.expanduser() / RUNNING_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        os.kill(running["pid"], 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return running


def find_operator_file(name: str) -> Path:
    """A file or folder that an operator edits: the default inside an installed package, else the checkout's.

    In this order, because the folder above an installed package is everybody's.
    """
    package = Path(__file__).parent
    default = package / "defaults" / Path(name).name
    return default if default.exists() else package.parent / name


@cache
def _load_cached(settings: type[Any]) -> Any:
    return settings()


def _check_url(name: str, url: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        scheme, _ = parts.scheme, parts.port
    except ValueError as exc:
        message = f"{name} cannot be parsed ({exc}); it must look like {schemes[0]}://user:password@host:port/name"
        raise ValueError(message) from exc
    if scheme not in schemes:
        message = f"{name} starts with {scheme!r}; it must start with {schemes[0]}://"
        raise ValueError(message)


def _describe(settings: type[_Settings], exc: ValidationError) -> list[str]:
    problems = []
    for error in exc.errors():
        if not error["loc"]:
            problems.append(str(error["msg"]).removeprefix("Value error, "))
            continue
        name = str(error["loc"][0])
        if name.islower():
            name = f"{settings.model_config.get('env_prefix', '')}{name}".upper()
        message = str(error["msg"])
        problems.append(f"{name} is {error['input']!r}: {message[:1].lower()}{message[1:]}")
    return problems
