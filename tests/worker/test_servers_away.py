"""With Redis gone the system goes on, slower; with PostgreSQL's connections cut it reconnects."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.embedded.child import Child
from bitinglip.embedded.ports import is_free
from bitinglip.embedded.valkey import Valkey
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from tests.conftest import System, eventually, own_processes, wait_for_workers
from tests.factories import execute, read_outcomes


class OwnRedis:
    """A Valkey that the test may kill and start again."""

    def __init__(self, folder: Path, port: int) -> None:
        self._valkey = Valkey(folder=folder / "valkey", log_folder=folder, password="secret", fsync=False)
        self._port = port
        self.url = self._valkey.make_url(port)
        self.start()

    def start(self) -> None:
        program = self._valkey.make_program(self._port)
        self._child = Child(program)
        program.wait_ready(self._child)

    def kill(self) -> None:
        if not self._child.has_ended():
            os.kill(self._child.pid, signal.SIGKILL)
        assert self._child.wait(10)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    port = next(port for port in range(21_000, 31_000, 7) if is_free(port))
    redis = OwnRedis(tmp_path, port)
    yield redis
    redis.kill()


@pytest.fixture
def own_system(
    urls: ServerUrls, own_redis: OwnRedis, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[System]:
    """A dispatcher and a worker whose Redis may go away."""
    monkeypatch.setenv("BITINGLIP_REDIS_URL", own_redis.url)
    with own_processes(ServerUrls(urls.database_url, own_redis.url), tmp_path) as started:
        started.start_dispatcher()
        started.start_worker()
        wait_for_workers(database, 1)
        yield started


def test_a_dead_redis_stops_neither_waiting_nor_new_tasks_and_its_return_makes_them_fast_again(
    own_system: System, own_redis: OwnRedis, database: Database
) -> None:
    with Client(*own_system.urls) as client:
        blockers = [client.submit("echo", seconds=1, priority="critical") for _ in range(8)]
        eventually(lambda: all(blocker.status is Status.IN_PROGRESS for blocker in blockers))
        waiting = [client.submit("echo", text=str(n)) for n in range(20)]

        own_redis.kill()

        late = client.submit("echo", text="late")
        assert [handle.result(timeout=30) for handle in waiting] == [{"text": str(n)} for n in range(20)]
        assert late.result(timeout=20) == {"text": "late"}
        assert [event.name for event in late.stream()] == ["queued", "text", "finished"]
        assert all(read_outcomes(database, handle.id) == [(1, "completed")] for handle in [*waiting, late])

        own_redis.start()

        def is_rung() -> bool:
            handle = client.submit("echo", text="back")
            assert handle.result(timeout=20) == {"text": "back"}
            return str(handle.id) not in own_system.read_log("worker")

        eventually(is_rung, within=30)


def test_a_task_submitted_with_redis_away_runs_within_seconds(system: System, urls: ServerUrls) -> None:
    with Client(urls.database_url, "redis://127.0.0.1:1/0") as client:
        handle = client.submit("echo", text="unseen")

        assert handle.result(timeout=5) == {"text": "unseen"}
        assert [event.name for event in handle.stream()] == ["queued", "text", "finished"]


def test_everything_goes_on_after_postgresqls_connections_were_cut(
    system: System, client: Client, database: Database
) -> None:
    running = client.submit("echo", text="through", seconds=1)
    eventually(lambda: running.status is Status.IN_PROGRESS)
    for _ in range(3):
        execute(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name <> 'bitinglip-test'",
        )

    assert running.result(timeout=20) == {"text": "through"}
    assert client.submit("echo", text="after").result(timeout=20) == {"text": "after"}
    assert read_outcomes(database, running.id) == [(1, "completed")]
    assert {process.poll() for process in system.processes.values()} == {None}
