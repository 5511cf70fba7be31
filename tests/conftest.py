"""Real servers for the whole run, a database of its own for each test, and a running system where a test asks."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest
from celery import Celery
from sqlalchemy import text

from bitinglip import settings
from bitinglip.celery_app import Loader
from bitinglip.client import Client
from bitinglip.embedded import EmbeddedServers, ServerUrls, remove_data
from bitinglip.store.database import Database
from bitinglip.store.migrate import upgrade

REPOSITORY = Path(__file__).parent.parent
TEMPLATE = "bitinglip_template"

T = TypeVar("T")

# A busy machine is no bug.
hypothesis.settings.register_profile(
    "no-deadline", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("no-deadline")


def pytest_configure() -> None:
    """Let children hear SIGINT even where the run itself was started in the background, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def eventually(look: Callable[[], T], *, within: float = 10.0) -> T:
    """The first true answer; fails with the last one if there is none in time."""
    deadline = time.monotonic() + within
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"still {answer!r} after {within:g} s"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUrls]:
    """PostgreSQL and Valkey for the whole run; a migrated database serves as the template of each test's own."""
    folder = tmp_path_factory.mktemp("servers")
    with EmbeddedServers(folder, fsync=False) as running:
        admin = Database(running.urls.database_url)
        _execute_alone(admin, f"CREATE DATABASE {TEMPLATE}")
        template = Database(_rename(running.urls.database_url, TEMPLATE))
        upgrade(template)
        template.close()
        admin.close()
        yield running.urls
    remove_data(folder)


@contextmanager
def own_urls(servers: ServerUrls) -> Iterator[ServerUrls]:
    """A new database, an empty Redis and an empty data folder, also configured in the environment."""
    name = f"test_{uuid.uuid4().hex}"
    admin = Database(servers.database_url)
    _execute_alone(admin, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    own = ServerUrls(_rename(servers.database_url, name), servers.redis_url)
    flush_redis(own)
    with pytest.MonkeyPatch.context() as environment, tempfile.TemporaryDirectory(prefix="bitinglip-test-") as folder:
        environment.setenv("BITINGLIP_DATA_DIR", folder)
        environment.setenv("BITINGLIP_DATABASE_URL", own.database_url)
        environment.setenv("BITINGLIP_REDIS_URL", own.redis_url)
        forget_settings()
        yield own
    forget_settings()
    _execute_alone(admin, f"DROP DATABASE {name} WITH (FORCE)")
    admin.close()


@pytest.fixture
def urls(servers: ServerUrls) -> Iterator[ServerUrls]:
    """A new database and an empty Redis, also configured in the environment."""
    with own_urls(servers) as own:
        yield own


@pytest.fixture
def database(urls: ServerUrls) -> Iterator[Database]:
    """The test's own database."""
    opened = Database(urls.database_url, connections=5, name="bitinglip-test")
    yield opened
    opened.close()


@pytest.fixture
def client(urls: ServerUrls) -> Iterator[Client]:
    """A client of the test's own database."""
    with Client(urls.database_url, urls.redis_url) as opened:
        yield opened


@dataclass
class System:
    """A dispatcher and workers, as processes of the test's own."""

    urls: ServerUrls
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    working_folder: Path = REPOSITORY

    def start_dispatcher(self, name: str = "dispatcher") -> None:
        """Start a dispatcher; it needs no time to be useful."""
        self._start(name, [sys.executable, "-m", "bitinglip.dispatcher"], {})

    def start_worker(
        self,
        name: str = "worker",
        *,
        pools: str | None = None,
        pool: str = "default",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a worker of a pool; `pools` is the text of a pools.toml."""
        file = self.folder / f"{name}.pools.toml"
        file.write_text(pools or '[pools.default]\nkinds = ["echo"]\ngpus = []\nslots = 8\n')
        command = [sys.executable, "-m", "celery", "-A", "bitinglip", "worker", "-n", f"{name}@%h"]
        options = ["--without-gossip", "--without-mingle"]
        own = {
            "BITINGLIP_POOLS_FILE": str(file),
            "BITINGLIP_POOL": pool,
            "BITINGLIP_HEARTBEAT_SECONDS": "0.3",
            "BITINGLIP_LEASE_SECONDS": "1.5",
        }
        self._start(name, [*command, *options], {**own, **(environment or {})})

    def wait(self, name: str, *, within: float = 20) -> int:
        """The exit status of a process that ends by itself."""
        return self.processes[name].wait(timeout=within)

    def kill(self, name: str) -> None:
        """Kill a process as the kernel would: without a word."""
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self) -> None:
        """End what still runs, workers first."""
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in reversed(self.processes.values()):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def read_log(self, name: str) -> str:
        """What a process has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        before = self.processes.pop(name, None)
        if before is not None:
            # Still ours to end.
            self.processes[f"{name} {before.pid}"] = before
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.working_folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@pytest.fixture
def processes(urls: ServerUrls, tmp_path: Path) -> Iterator[System]:
    """Dispatchers and workers that the test starts itself; all ended after it."""
    with own_processes(urls, tmp_path) as started:
        yield started


@pytest.fixture
def system(processes: System, database: Database) -> System:
    """One dispatcher and one worker of eight `echo` slots, ready for work."""
    processes.start_dispatcher()
    processes.start_worker()
    wait_for_workers(database, 1)
    return processes


@contextmanager
def own_processes(urls: ServerUrls, folder: Path) -> Iterator[System]:
    """Dispatchers and workers with short leases; all ended in the end."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BITINGLIP_LEASE_SECONDS", "1.5")
        environment.setenv("BITINGLIP_HEARTBEAT_SECONDS", "0.3")
        started = System(urls, folder)
        try:
            yield started
        finally:
            started.stop()


def wait_for_workers(database: Database, count: int, *, engine_up: bool = True) -> None:
    """Return when so many workers are registered and, if it matters, could begin a task at once."""
    # Workers of older releases say nothing of their engines.
    up = " AND coalesce(to_jsonb(w) ->> 'engine_up', 'true') = 'true'" if engine_up else ""

    def alive() -> bool:
        with database.transaction() as connection:
            sql = f"SELECT count(*) FROM workers AS w WHERE state = 'ready' AND lease_expires_at > now(){up}"
            return (connection.scalar(text(sql)) or 0) >= count

    eventually(alive, within=20)


def make_celery_app() -> Celery:
    """An application like the project's, with the configuration of the test's environment."""
    return Celery("bitinglip", loader=Loader, set_as_current=False)


def forget_settings() -> None:
    """Have the settings read from the environment again."""
    settings._load_cached.cache_clear()


def flush_redis(urls: ServerUrls) -> None:
    """Empty Redis."""
    import redis

    with redis.Redis.from_url(urls.redis_url) as connection:
        connection.flushall()


def _execute_alone(database: Database, sql: str) -> None:
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(sql))


def _rename(database_url: str, name: str) -> str:
    return f"{database_url.rpartition('/')[0]}/{name}"
