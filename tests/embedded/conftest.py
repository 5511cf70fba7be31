"""Real servers in folders of their own, and parents that can be killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis

from bitinglip.embedded import EmbeddedServers, ProcessStack, Program, remove_data
from bitinglip.embedded.children import ChildDeath
from bitinglip.embedded.guard import Guard
from bitinglip.embedded.guard_process import find_start
from bitinglip.settings import ServerUrls

PARENT = Path(__file__).with_name("parent.py")


class Parent:
    """A process that runs the servers, to be signalled and killed."""

    def __init__(self, *arguments: str, prefix: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(PARENT), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.started: dict[str, Any] = json.loads(line)
        self.urls = ServerUrls(self.started["database_url"], self.started["redis_url"])
        self.pids: dict[str, int] = self.started["pids"]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self, *numbers: signal.Signals) -> str:
        """Send the signals and return what it wrote to stderr until its orderly end."""
        for number in numbers:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, errors
        return errors


@pytest.fixture
def eventually() -> Callable[..., None]:
    def poll(is_true: Callable[[], object], within: float = 10) -> None:
        deadline = time.monotonic() + within
        while not is_true():
            assert time.monotonic() < deadline, f"not within {within} s"
            time.sleep(0.01)

    return poll


@pytest.fixture
def is_gone() -> Callable[[int], bool]:
    return lambda pid: find_start(pid) is None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account may enter, which pytest's own are not; its path has a space."""
    folder = Path(tempfile.mkdtemp(prefix="bitinglip test "))
    folder.chmod(0o755)
    yield folder
    for lock in folder.glob("*/lock"):
        remove_data(lock.parent)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def made_data() -> Iterator[Path]:
    """A data folder that was used once: copying it is faster than making one."""
    folder = Path(tempfile.mkdtemp(prefix="bitinglip test "))
    folder.chmod(0o755)
    with EmbeddedServers(folder / "data", fsync=False):
        pass
    yield folder / "data"
    remove_data(folder / "data")
    folder.rmdir()


@pytest.fixture
def data_dir(open_folder: Path, made_data: Path) -> Path:
    subprocess.run(["cp", "-a", made_data, open_folder], check=True)
    return open_folder / "data"


@pytest.fixture
def new_dir(open_folder: Path) -> Path:
    return open_folder / "new"


@pytest.fixture
def start_servers(data_dir: Path) -> Iterator[Callable[..., EmbeddedServers]]:
    started: list[EmbeddedServers] = []

    def start(folder: Path = data_dir, **options: Any) -> EmbeddedServers:
        servers = EmbeddedServers(folder, fsync=False, **options)
        started.append(servers)
        servers.start()
        return servers

    yield start
    for servers in reversed(started):
        servers.stop()


@pytest.fixture(scope="module")
def shared_servers() -> Iterator[EmbeddedServers]:
    """Servers that the tests of a module only look at."""
    folder = Path(tempfile.mkdtemp(prefix="bitinglip test "))
    folder.chmod(0o755)
    with EmbeddedServers(folder / "data", fsync=False) as servers:
        yield servers
    remove_data(folder / "data")
    folder.rmdir()


@pytest.fixture
def start_parent(eventually: Callable[..., None]) -> Iterator[Callable[..., Parent]]:
    parents: list[Parent] = []

    def start(*arguments: str, **options: Any) -> Parent:
        parents.append(Parent(*arguments, **options))
        return parents[-1]

    yield start
    for parent in parents:
        if parent.process.poll() is None:
            parent.kill()
        eventually(lambda pids=parent.pids: all(find_start(pid) is None for pid in pids.values()))


@pytest.fixture
def deaths() -> list[ChildDeath]:
    return []


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Guard]:
    guard = Guard(tmp_path / "guard.log")
    yield guard
    guard.close()


@pytest.fixture
def stack(tmp_path: Path, guard: Guard, deaths: list[ChildDeath]) -> Iterator[ProcessStack]:
    stack = ProcessStack(tmp_path, guard, on_death=deaths.append)
    yield stack
    stack.stop()


@pytest.fixture
def make_program(tmp_path: Path) -> Callable[..., Program]:
    """A shell program; it is ready when it has written `ready`."""

    def make(name: str, script: str = "echo ready; exec sleep 1000", **options: Any) -> Program:
        wait_ready = options.pop(
            "wait_ready", lambda child: child.wait_until(lambda: "ready" in child.read_log(), within_seconds=10)
        )
        return Program(
            name=name,
            argv=("/bin/sh", "-c", script),
            log_file=tmp_path / f"{name}.log",
            wait_ready=wait_ready,
            **options,
        )

    return make


@pytest.fixture
def query() -> Callable[..., list[tuple[Any, ...]]]:
    def run(urls: ServerUrls, statement: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(urls.database_url.replace("+psycopg2", ""))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    return run


@pytest.fixture
def connect_redis() -> Iterator[Callable[[str], redis.Redis]]:
    clients: list[redis.Redis] = []

    def connect(url: str) -> redis.Redis:
        clients.append(redis.Redis.from_url(url, decode_responses=True))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def as_nobody() -> list[str]:
    """The words before a command that has it run by `nobody`."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    if subprocess.run([*words, "/bin/sh", "-c", f"test -x '{sys.executable}'"], check=False).returncode != 0:
        # This Python lies in root's home: let it read that, and nothing more.
        words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return words
