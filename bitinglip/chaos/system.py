"""What chaos is done to: a system of its own in a folder of its own, or the one that is configured.

own:  postgres, valkey, dispatcher-0, dispatcher-1, node-a, node-b ── each `bitinglip worker start`
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from bitinglip.artifacts.store import ArtifactStore
from bitinglip.chaos.processes import Processes
from bitinglip.embedded import ChildDeath, EmbeddedServers, Program
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.migrate import upgrade

NODES = ("a", "b")
SLOTS = 4
DISPATCHERS = 2
HEARTBEAT_SECONDS = 2.0
LEASE_SECONDS = 8.0
DRAIN_SECONDS = 4.0

_POOL = (
    '[pools.{name}]\nkinds = ["echo", "text", "image"]\ngpus = []\nslots = {slots}\npreload = ["demo", "demo-image"]\n'
)


def _hold_nothing(_: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class System:
    """A system that faults are done to.

    Attributes:
        lease_seconds: How long a silent worker keeps its tasks.
        artifacts: Where its workers keep what they make.
        is_own: Whether it was started for this alone.
        workers: How many are needed to begin; None: however many there are.
        hold_node: Keeps the node of a pool from being started again, for the block.
        killed: Pids that were killed on purpose.
    """

    urls: ServerUrls
    processes: Processes
    lease_seconds: float
    artifacts: ArtifactStore
    is_own: bool = False
    workers: int | None = None
    dispatchers: int = 1
    hold_node: Callable[[str], AbstractContextManager[None]] = _hold_nothing
    killed: set[int] = field(default_factory=set)


@contextmanager
def run_own_system(folder: Path, tell: Callable[[str], None], is_hurried: Callable[[], bool]) -> Iterator[System]:
    """Start a system in a folder, and stop it at the end of the block.

    Args:
        folder: Keeps its data and logs.
        tell: Told of every death that nobody caused.
        is_hurried: Asked while it stops; once true, nothing waits for the tasks that run.

    Raises:
        ConfigurationError: If the folder cannot be used, or a server is not installed.
        ChildStartError: If a server does not come up.
    """
    gates = {name: threading.Event() for name in NODES}
    killed: set[int] = set()

    def report(death: ChildDeath) -> None:
        if death.pid not in killed:
            tell(f"{death.name} ended by itself with {death.exit_status}; see its log in {folder / 'logs'}")

    servers = EmbeddedServers(folder, on_death=report)
    servers.start()
    try:
        _prepare_database(servers.urls)
        environment = _make_environment(folder, servers.urls)
        for number in range(DISPATCHERS):
            servers.stack.start(_make_dispatcher(f"dispatcher-{number}", servers.log_folder, environment))
        for name, gate in gates.items():
            gate.set()
            servers.stack.start(_make_node(name, gate, servers.log_folder, environment))

        @contextmanager
        def hold_node(pool: str) -> Iterator[None]:
            gates[pool].clear()
            try:
                yield
            finally:
                gates[pool].set()

        yield System(
            urls=servers.urls,
            processes=Processes(lambda: servers.stack.find_pids().values()),
            lease_seconds=LEASE_SECONDS,
            artifacts=ArtifactStore(str(folder / "artifacts")),
            is_own=True,
            workers=len(NODES),
            dispatchers=DISPATCHERS,
            hold_node=hold_node,
            killed=killed,
        )
    finally:
        killed.update(servers.stack.find_pids().values() if hasattr(servers, "stack") else ())
        servers.stop(is_hurried)


def _prepare_database(urls: ServerUrls) -> None:
    database = Database(urls.database_url, connections=1, name="bitinglip-chaos")
    try:
        upgrade(database)
    finally:
        database.close()


def _make_environment(folder: Path, urls: ServerUrls) -> dict[str, str]:
    """A whole environment: what the person has set for another system must not shape this one."""
    pools = folder / "pools.toml"
    pools.write_text("\n".join(_POOL.format(name=name, slots=SLOTS) for name in NODES))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BITINGLIP_", "TASK_"))}
    return {
        **kept,
        "BITINGLIP_DATABASE_URL": urls.database_url,
        "BITINGLIP_REDIS_URL": urls.redis_url,
        "BITINGLIP_DATA_DIR": str(folder),
        "BITINGLIP_POOLS_FILE": str(pools),
        "BITINGLIP_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
        "BITINGLIP_LEASE_SECONDS": str(LEASE_SECONDS),
        "BITINGLIP_DRAIN_SECONDS": str(DRAIN_SECONDS),
    }


def _make_dispatcher(name: str, log_folder: Path, environment: Mapping[str, str]) -> Program:
    argv = (sys.executable, "-m", "bitinglip.dispatcher")
    return Program(name=name, argv=argv, log_file=log_folder / f"{name}.log", env=environment, group="dispatchers")


def _make_node(name: str, gate: threading.Event, log_folder: Path, environment: Mapping[str, str]) -> Program:
    """A supervisor with one worker; it is not started again while its gate is shut."""
    argv = (sys.executable, "-c", "from bitinglip.cli import main; main()", "worker", "start", "--pool", name)
    return Program(
        name=f"node-{name}",
        argv=argv,
        log_file=log_folder / f"node-{name}.log",
        env=environment,
        stop_seconds=DRAIN_SECONDS + 16,
        hurried_stop_seconds=8,
        group="nodes",
        prepare=lambda _: _wait_for(gate),
    )


def _wait_for(gate: threading.Event) -> None:
    gate.wait()
