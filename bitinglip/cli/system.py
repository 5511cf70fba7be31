"""The whole system as children of this process: what `up` and `demo` share.

    servers ──► schema ──► dispatcher, workers, beat, Flower ──► ready: every worker is registered
       └── all stopped in reverse order, however the block ends

With URLs configured no server is started. Weakness: `kill -9` of this process and of its guard leaves children; the
next start on the same data folder stops them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from bitinglip.cli.checks import refuse_problems
from bitinglip.cli.deaths import make_death_reporter
from bitinglip.cli.programs import (
    make_beat_program,
    make_dispatcher_program,
    make_url_environment,
    make_worker_program,
    plan_pools,
)
from bitinglip.cli.schema import upgrade_schema
from bitinglip.embedded import EmbeddedServers
from bitinglip.embedded.child import Child
from bitinglip.embedded.signals import StopSignals
from bitinglip.settings import ServerSettings, ServerUrls, load_settings
from bitinglip.store.database import Database
from bitinglip.store.queries import list_workers
from bitinglip.telemetry import configure_logging
from bitinglip.worker.pools import WorkerSpec

REGISTER_SECONDS = 60.0


@dataclass(frozen=True)
class RunningSystem:
    """A system that runs.

    Attributes:
        embedded: Whether its servers are ours.
        database_address: `host:port/name`.
        flower_password_file: Holds the password of Flower's user.
    """

    data_dir: Path
    embedded: bool
    urls: ServerUrls
    database_address: str
    workers: Sequence[WorkerSpec]
    flower_url: str
    flower_password_file: Path


@contextmanager
def run_system(
    data_dir: Path, pools: Sequence[str], signals: StopSignals, tell: Callable[[str], None]
) -> Iterator[RunningSystem]:
    """Start a system, and stop it at the end of the block.

    Args:
        data_dir: Keeps its data, logs and passwords.
        pools: Whose workers; empty: of every pool in pools.toml.
        signals: A signal during the start ends it.
        tell: Told each step.

    Raises:
        ConfigurationError: If a setting is wrong, or another process runs a system in the folder.
        ServerUnreachableError: If a server or a child does not come up.
        Abort: If a signal came before the system was ready.
    """
    refuse_problems()
    configure_logging()
    specs = plan_pools(pools)
    settings = load_settings(ServerSettings)
    embedded = settings.database_url is None
    servers = EmbeddedServers(
        data_dir,
        urls=None if embedded else settings.find_urls(),
        on_death=make_death_reporter(specs, lambda: servers.urls),
    )
    tell("starting PostgreSQL and Valkey" if embedded else "using the PostgreSQL and Redis that are configured")
    servers.start()
    try:
        yield _start_on_top(servers, specs, signals, tell, embedded=embedded)
    finally:
        tell("stopping; a second Ctrl-C does not wait for the tasks that run")
        servers.stop(signals.is_hurried)


def _start_on_top(
    servers: EmbeddedServers,
    specs: Sequence[WorkerSpec],
    signals: StopSignals,
    tell: Callable[[str], None],
    *,
    embedded: bool,
) -> RunningSystem:
    database = Database(servers.urls.database_url, connections=1, name="bitinglip-up")
    environment = make_url_environment(servers.urls)
    if embedded:
        # Whoever asks this system for a file looks for it in its data folder.
        environment["BITINGLIP_DATA_DIR"] = str(servers.data_dir)
    try:
        upgrade_schema(database)
        _stop_if_asked(signals)
        tell(f"starting the dispatcher, {len(specs)} worker(s), beat and Flower")
        # All of them at once: they take their time importing, not waiting for each other.
        servers.stack.start(make_dispatcher_program(servers.log_folder, environment))
        servers.stack.start(make_beat_program(servers.log_folder, environment))
        workers = [servers.stack.start(make_worker_program(spec, servers.log_folder, environment)) for spec in specs]
        flower_url = servers.start_flower(env=environment)
        for worker in workers:
            _wait_registered(database, worker, signals)
    finally:
        database.close()
    return RunningSystem(
        data_dir=servers.data_dir,
        embedded=embedded,
        urls=servers.urls,
        database_address=database.address,
        workers=specs,
        flower_url=flower_url,
        flower_password_file=servers.data_dir / "flower.password",
    )


def _wait_registered(database: Database, worker: Child, signals: StopSignals) -> None:
    """Return when a worker may be given tasks."""

    def is_registered() -> bool:
        with database.transaction() as connection:
            return any(row.pid == worker.pid and row.alive for row in list_workers(connection))

    worker.wait_until(lambda: signals.first is not None or is_registered(), within_seconds=REGISTER_SECONDS)
    _stop_if_asked(signals)


def _stop_if_asked(signals: StopSignals) -> None:
    if signals.first is not None:
        raise click.Abort
