"""`bitinglip config`: is it set up right?"""

import os
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from bitinglip.cli.connections import ConnectionBudget, count_connections
from bitinglip.cli.failures import BAD_USAGE
from bitinglip.cli.output import examples, json_option, write_json
from bitinglip.errors import ConfigurationError, ServerUnreachableError
from bitinglip.settings import ALL_SETTINGS, ServerSettings, find_operator_file, load_settings
from bitinglip.store.database import Database
from bitinglip.worker.pools import Pool, find_pools_file, read_pools

T = TypeVar("T")


@click.group()
def config() -> None:
    """Check the configuration."""


@config.command(epilog=examples("bitinglip config check && systemctl restart bitinglip-worker"))
@json_option
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Write every problem of the settings, pools.toml and celeryconfig.py at once. Exits with 2 if there is one.

    Where PostgreSQL can be reached, it also adds up the connections that this machine's workers need. That it cannot be
    reached is no problem of the configuration: ask `bitinglip health`.
    """
    findings = _Findings()
    for settings in ALL_SETTINGS:
        findings.collect(partial(load_settings, settings))
    pools = findings.collect(lambda: read_pools(_find_pools_file()))
    findings.collect(_run_celery_config)
    budget = findings.collect(lambda: _count_connections(pools)) if pools else None
    problem = budget.find_problem() if budget else None
    problems = findings.problems + ([problem] if problem else [])
    if as_json:
        write_json({"problems": problems, "connections": budget.to_json() if budget else None})
    else:
        for line in problems or ["no problem found"]:
            click.echo(line)
        if budget and not problem:
            click.echo(f"{budget.needed} of {budget.allowed} database connections for {budget.workers} worker(s)")
    ctx.exit(BAD_USAGE if problems else 0)


class _Findings:
    """The problems so far, each once, in the order found."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def collect(self, load: Callable[[], T]) -> T | None:
        """What `load` gives, or None after noting what is wrong with it."""
        try:
            return load()
        except ConfigurationError as exc:
            self.problems += [problem for problem in exc.problems if problem not in self.problems]
            return None


def _find_pools_file() -> Path:
    """The pools.toml in force, even while another of the worker's settings is wrong."""
    try:
        return find_pools_file()
    except ConfigurationError:
        named = os.environ.get("BITINGLIP_POOLS_FILE")
        return Path(named) if named else find_operator_file("workers/pools.toml")


def _count_connections(pools: dict[str, Pool]) -> ConnectionBudget | None:
    """The connections against the limit, or None where PostgreSQL cannot be asked."""
    try:
        url = load_settings(ServerSettings).find_urls().database_url
        database = Database(url, connections=1, name="bitinglip-config")
        try:
            return count_connections(database, pools)
        finally:
            database.close()
    except ServerUnreachableError:
        return None


def _run_celery_config() -> dict[str, Any]:
    """Run celeryconfig.py as Celery would.

    Raises:
        ConfigurationError: If it is not there, or is no Python that runs.
    """
    # Celery's import takes a third of a second; only this check needs it.
    from bitinglip.celery_app import find_config

    path = find_config()
    try:
        return runpy.run_path(str(path))
    except Exception as exc:
        raise ConfigurationError(f"{path}: {type(exc).__name__}: {exc}; correct it, or name another file") from exc
