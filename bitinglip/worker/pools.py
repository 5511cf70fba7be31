"""`workers/pools.toml`: the pools, and which workers a pool has on a machine.

A pool is the workers with one policy. A worker has one GPU, or `gpus_per_worker` of them for models that need several;
a machine without a GPU, or a pool with `gpus = []`, has one worker on the CPU.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bitinglip.domain.catalogue import find_kinds
from bitinglip.errors import ConfigurationError
from bitinglip.settings import WorkerSettings, find_operator_file, load_settings
from bitinglip.worker.hardware import Gpu

POOL_VARIABLE = "BITINGLIP_POOL"
"""Environment of a worker process: its pool; the first of the file if unset."""

NUMBER_VARIABLE = "BITINGLIP_WORKER_NUMBER"
"""Environment of a worker process: which of the pool's workers on this machine, from 0."""


class Pool(BaseModel):
    """One table of pools.toml.

    Attributes:
        kinds: Types of task that its workers do.
        gpus: `all`, or their indexes; an empty list means CPU.
        gpus_per_worker: How many GPUs one worker spreads a model over.
        slots: Tasks that one worker runs at once.
        memory_share: Part of each GPU's memory that its engine may hold.
        preload: Models loaded when a worker starts.
        models: Those that its workers may load; None: all.
        agents: Those whose tasks its workers do; None: all.
        pulls: Models that are fetched from the hub when a task for its workers needs them; patterns such as `Qwen/*`.
        pin: Models that are never removed to make room.
        speed: How much work one second of these GPUs is, relative to those of the same pool on other nodes.
        charge: What agents are charged by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: list[str] = Field(min_length=1)
    gpus: Literal["all"] | list[int] = "all"
    gpus_per_worker: int = Field(default=1, ge=1, le=16)
    slots: int = Field(default=16, ge=1, le=4096)
    memory_share: float = Field(default=0.9, gt=0, le=1)
    preload: list[str] = Field(default_factory=list)
    models: list[str] | None = None
    agents: list[str] | None = None
    pulls: list[str] = Field(default_factory=list)
    pin: list[str] = Field(default_factory=list)
    speed: float = Field(default=1.0, gt=0, le=1_000, allow_inf_nan=False)
    charge: Literal["seconds", "tokens", "tasks"] = "seconds"

    @field_validator("kinds")
    @classmethod
    def _check_kinds(cls, kinds: list[str]) -> list[str]:
        known = sorted(name for name, kind in find_kinds().items() if kind.engine is not None)
        for kind in kinds:
            if kind not in known:
                message = f"{kind!r} is no kind of task; choose from {', '.join(known)}"
                raise ValueError(message)
        return kinds

    @field_validator("models", "agents")
    @classmethod
    def _check_allowed(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and not names:
            message = "it allows none; name at least one, or leave the key out to allow all"
            raise ValueError(message)
        if names is not None and not all(names):
            message = "it has an empty name; name what is allowed"
            raise ValueError(message)
        return names

    @field_validator("gpus", mode="before")
    @classmethod
    def _check_indexes(cls, gpus: object) -> object:
        if gpus == "all":
            return gpus
        if not isinstance(gpus, list) or any(type(index) is not int or index < 0 for index in gpus):
            message = "it must be 'all' or a list of indexes from 0, as nvidia-smi counts them"
            raise ValueError(message)
        doubled = sorted({index for index in gpus if gpus.count(index) > 1})
        if doubled:
            message = f"it lists GPU {doubled[0]} twice; name each GPU once"
            raise ValueError(message)
        return gpus

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if isinstance(self.gpus, list) and len(self.gpus) % self.gpus_per_worker:
            message = f"{len(self.gpus)} gpus cannot be split into workers of {self.gpus_per_worker}"
            raise ValueError(message)
        for model in self.preload:
            if self.models is not None and model not in self.models:
                message = f"preload names {model!r}, which is not among its models ({', '.join(self.models)})"
                raise ValueError(message)
        return self


class _PoolsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    pools: dict[str, Pool] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker that a pool has on this machine.

    Attributes:
        number: From 0, within the pool on this machine.
    """

    pool_name: str
    pool: Pool
    number: int
    gpus: tuple[Gpu, ...]

    @property
    def memory_limit_bytes(self) -> int | None:
        """What its engine may hold on each GPU; None on a CPU, where the engine decides."""
        if not self.gpus:
            return None
        return int(min(gpu.memory_bytes for gpu in self.gpus) * self.pool.memory_share)


def find_pools_file() -> Path:
    """The pools.toml in force."""
    return load_settings(WorkerSettings).pools_file or find_operator_file("workers/pools.toml")


def read_pools(path: Path) -> dict[str, Pool]:
    """The pools by name, in the file's order.

    Raises:
        ConfigurationError: Naming each wrong key, its value and what would be right.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"BITINGLIP_POOLS_FILE is {str(path)!r}: {exc.strerror}; name a pools.toml") from exc
    except ValueError as exc:
        raise ConfigurationError(f"{path}: {exc}; it must be TOML") from exc
    try:
        return _PoolsFile.model_validate(content).pools
    except ValidationError as exc:
        raise ConfigurationError(*(_describe(path, error) for error in exc.errors())) from exc


def plan_workers(pool_name: str, pools: dict[str, Pool], gpus: Sequence[Gpu]) -> list[WorkerSpec]:
    """The workers that a pool has on this machine.

    Raises:
        ConfigurationError: If the pool is unknown or names a GPU that is not there.
    """
    if pool_name not in pools:
        raise ConfigurationError(f"pool {pool_name!r} is not in pools.toml; choose from {', '.join(pools)}")
    pool = pools[pool_name]
    by_index = {gpu.index: gpu for gpu in gpus}
    if pool.gpus == "all":
        chosen = list(gpus)[: len(gpus) - len(gpus) % pool.gpus_per_worker]
        if gpus and not chosen:
            found = f"needs {pool.gpus_per_worker} GPUs for a worker, this machine has {len(gpus)}"
            raise ConfigurationError(f"pool {pool_name!r} {found}; lower gpus_per_worker, or gpus = [] for the CPU")
    else:
        for index in pool.gpus:
            if index not in by_index:
                found = ", ".join(map(str, by_index)) or "none"
                raise ConfigurationError(f"pool {pool_name!r} names GPU {index}, this machine has {found}")
        chosen = [by_index[index] for index in pool.gpus]
    if not chosen:
        return [WorkerSpec(pool_name, pool, 0, ())]
    size = pool.gpus_per_worker
    groups = [tuple(chosen[start : start + size]) for start in range(0, len(chosen), size)]
    return [WorkerSpec(pool_name, pool, number, group) for number, group in enumerate(groups)]


def _describe(path: Path, error: "object") -> str:
    assert isinstance(error, dict)  # noqa: S101 - pydantic's ErrorDetails
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = ", ".join(Pool.model_fields)
        return f"{path}: {where} is unknown; the keys of a pool are {known}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {where} is {error['input']!r}: {message[:1].lower()}{message[1:]}"
