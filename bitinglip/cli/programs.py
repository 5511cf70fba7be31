"""The programs that make up a system: the dispatcher, Celery workers of the pools, Celery beat."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitinglip.embedded import Program
from bitinglip.errors import ConfigurationError
from bitinglip.settings import LogSettings, ServerUrls, WorkerSettings, find_node_name, load_settings
from bitinglip.worker.hardware import find_gpus
from bitinglip.worker.pools import (
    NUMBER_VARIABLE,
    POOL_VARIABLE,
    WorkerSpec,
    find_pools_file,
    plan_workers,
    read_pools,
)

LEAVE_SECONDS = 10.0
"""After its drain: a worker hands back what still runs and ends its engine."""

HURRIED_WORKER_SECONDS = 5.0
"""After a second signal: a worker hands back what runs at once, in about two seconds."""

_CELERY = (sys.executable, "-m", "celery", "-A", "bitinglip")


def plan_pools(pool_names: Sequence[str]) -> list[WorkerSpec]:
    """The workers that pools have on this machine.

    Args:
        pool_names: As in pools.toml; empty: all that are there.

    Raises:
        ConfigurationError: If pools.toml is wrong or has no such pool, or two of them cannot share a GPU.
    """
    pools = read_pools(find_pools_file())
    gpus = find_gpus()
    specs = [spec for name in dict.fromkeys(pool_names or pools) for spec in plan_workers(name, pools, gpus)]
    for gpu in gpus:
        sharing = [spec for spec in specs if gpu in spec.gpus]
        if sum(spec.pool.memory_share for spec in sharing) > 1:
            shares = ", ".join(f"{spec.pool.memory_share:g} ({spec.pool_name})" for spec in sharing)
            remedy = "name the pools to start with --pool, or lower their memory_share"
            raise ConfigurationError(f"GPU {gpu.index} cannot be shared, its parts are {shares}: {remedy}")
    return specs


def find_worker(specs: list[WorkerSpec], number: int) -> WorkerSpec:
    """One worker of a pool.

    Raises:
        ConfigurationError: If the pool has no worker of that number here, or there are several pools.
    """
    names = list(dict.fromkeys(spec.pool_name for spec in specs))
    if len(names) > 1:
        raise ConfigurationError(
            f"--number is {number}: each of {', '.join(names)} counts from 0; name one with --pool"
        )
    if number >= len(specs):
        pool = specs[0].pool_name
        raise ConfigurationError(
            f"--number is {number}: pool {pool!r} has {len(specs)} worker(s) on this machine, counted from 0"
        )
    return specs[number]


def name_worker_program(spec: WorkerSpec) -> str:
    """A worker's name among its parent's children."""
    return f"worker-{spec.pool_name}-{spec.number}"


def name_worker_node(spec: WorkerSpec) -> str:
    """A worker's name for Celery, by which it registers."""
    return f"{spec.pool_name}-{spec.number}@{find_node_name()}"


def make_worker_command(spec: WorkerSpec) -> tuple[str, ...]:
    """What runs one worker."""
    options = ("-n", name_worker_node(spec), "--without-gossip", "--without-mingle")
    return (*_CELERY, "worker", *options, "--loglevel", load_settings(LogSettings).log_level)


def make_worker_environment(spec: WorkerSpec) -> dict[str, str]:
    """The environment in which that command is this worker."""
    return {**os.environ, POOL_VARIABLE: spec.pool_name, NUMBER_VARIABLE: str(spec.number)}


def make_url_environment(urls: ServerUrls) -> dict[str, str]:
    """The variables by which a child finds its servers. Both hold passwords."""
    return {"BITINGLIP_DATABASE_URL": urls.database_url, "BITINGLIP_REDIS_URL": urls.redis_url}


def make_worker_program(spec: WorkerSpec, log_folder: Path | None, environment: Mapping[str, str]) -> Program:
    """One worker as a child; one that was drained from afar leaves for good.

    Args:
        spec: Which.
        log_folder: Takes `worker-POOL-NUMBER.log`; None: it writes where we do.
        environment: Added to ours.
    """
    name = name_worker_program(spec)
    return Program(
        name=name,
        argv=make_worker_command(spec),
        log_file=log_folder / f"{name}.log" if log_folder else None,
        env={**make_worker_environment(spec), **environment},
        stop_seconds=load_settings(WorkerSettings).drain_seconds + LEAVE_SECONDS,
        hurried_stop_seconds=HURRIED_WORKER_SECONDS,
        group="workers",
        may_leave=True,
    )


def make_dispatcher_program(log_folder: Path, environment: Mapping[str, str]) -> Program:
    """A dispatcher as a child.

    Args:
        log_folder: Takes `dispatcher.log`.
        environment: Added to ours.
    """
    return Program(
        name="dispatcher",
        argv=(sys.executable, "-m", "bitinglip.dispatcher"),
        log_file=log_folder / "dispatcher.log",
        env={**os.environ, **environment},
    )


def make_beat_program(log_folder: Path, environment: Mapping[str, str]) -> Program:
    """Celery beat as a child.

    Args:
        log_folder: Takes `beat.log`.
        environment: Added to ours.
    """
    return Program(
        name="beat",
        argv=(*_CELERY, "beat", "--loglevel", load_settings(LogSettings).log_level),
        log_file=log_folder / "beat.log",
        env={**os.environ, **environment},
    )
