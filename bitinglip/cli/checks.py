"""Every problem of the configuration at once: the settings, pools.toml, schedule.toml, celeryconfig.py."""

import os
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bitinglip.errors import ConfigurationError
from bitinglip.settings import ALL_SETTINGS, find_operator_file, load_settings
from bitinglip.worker.pools import Pool, find_pools_file, read_pools

T = TypeVar("T")


@dataclass
class Findings:
    """What was found.

    Attributes:
        problems: One sentence each, in the order found.
        pools: Of pools.toml, if it can be read.
    """

    problems: list[str] = field(default_factory=list)
    pools: Mapping[str, Pool] | None = None

    def collect(self, load: Callable[[], T]) -> T | None:
        """What `load` gives, or None after noting what is wrong with it."""
        try:
            return load()
        except ConfigurationError as exc:
            self.problems += [problem for problem in exc.problems if problem not in self.problems]
            return None


def check_all() -> Findings:
    """Look at everything that can be checked without a server."""
    findings = Findings()
    for settings in ALL_SETTINGS:
        findings.collect(partial(load_settings, settings))
    findings.pools = findings.collect(lambda: read_pools(_find_pools_file()))
    findings.collect(_read_schedule)
    findings.collect(_run_celery_config)
    findings.collect(_open_artifacts)
    return findings


def refuse_problems() -> None:
    """Check before starting processes, each of which would find its own part of the problems later.

    Raises:
        ConfigurationError: With every problem.
    """
    problems = check_all().problems
    if problems:
        raise ConfigurationError(*problems)


def _find_pools_file() -> Path:
    """The pools.toml in force, even while another of the worker's settings is wrong."""
    try:
        return find_pools_file()
    except ConfigurationError:
        named = os.environ.get("BITINGLIP_POOLS_FILE")
        return Path(named) if named else find_operator_file("workers/pools.toml")


def _read_schedule() -> object:
    """What recurs.

    Raises:
        ConfigurationError: If schedule.toml is wrong.
    """
    from bitinglip.beat.schedule import find_schedule_file, read_schedule

    return read_schedule(find_schedule_file())


def _open_artifacts() -> object:
    """The store of artifacts; nothing is asked of it.

    Raises:
        ConfigurationError: If nothing here knows such a place.
    """
    from bitinglip.artifacts.store import open_artifacts

    return open_artifacts()


def _run_celery_config() -> dict[str, Any]:
    """Run celeryconfig.py as Celery would.

    Raises:
        ConfigurationError: If it is not there, or is no Python that runs.
    """
    # Celery is a large import, and only this check needs it.
    from bitinglip.celery_app import find_config

    path = find_config()
    try:
        return runpy.run_path(str(path))
    except Exception as exc:
        raise ConfigurationError(f"{path}: {type(exc).__name__}: {exc}; correct it, or name another file") from exc
