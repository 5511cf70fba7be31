"""`worker start` stays the parent of its workers: real processes, which die, leave and are told to stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from bitinglip.cli.deaths import make_death_reporter
from bitinglip.cli.programs import make_beat_program, plan_pools
from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.embedded import ChildDeath
from bitinglip.errors import SystemNotRunningError
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.telemetry import configure_logging
from tests.cli.conftest import Run, Start
from tests.conftest import System, eventually, wait_for_workers
from tests.factories import execute, read_outcomes

ECHO = '[pools.default]\nkinds = ["echo"]\nslots = 2\n'

TWO_GPUS = """
from types import SimpleNamespace

NVMLError = RuntimeError
nvmlInit = nvmlShutdown = lambda: None
nvmlDeviceGetCount = lambda: 2
nvmlDeviceGetHandleByIndex = nvmlDeviceGetHandleByUUID = lambda name: name
nvmlDeviceGetUUID = lambda index: f"GPU-{index}"
nvmlDeviceGetName = lambda index: f"GPU {index}"
nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(total=2**34, used=0)
nvmlDeviceGetComputeRunningProcesses = lambda _: []
"""

StartWorkers = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def pools_file(tmp_path: Path) -> Path:
    """One pool, which does echoes."""
    file = tmp_path / "pools.toml"
    file.write_text(ECHO)
    return file


@pytest.fixture
def start_workers(
    start: Start, processes: System, database: Database, client: Client, pools_file: Path
) -> StartWorkers:
    """Run a command that starts workers, beside a dispatcher; their leases are far longer than a test."""

    def begin(*command: str, count: int = 1, **environment: str) -> "subprocess.Popen[str]":
        processes.start_dispatcher()
        own = {"BITINGLIP_POOLS_FILE": str(pools_file), "BITINGLIP_LEASE_SECONDS": "60"}
        process = start(*(command or ("worker", "start")), **own, **environment)
        wait_for_workers(database, count)
        # Celery hears signals a moment after it has registered.
        client.submit("echo").result(timeout=20)
        return process

    return begin


def list_pids(database: Database) -> list[int]:
    """The workers that are registered now."""
    return [pid for (pid,) in execute(database, "SELECT pid FROM workers WHERE state <> 'gone' ORDER BY name")]


@pytest.mark.parametrize("command", [("worker", "start"), ("up",)])
def test_the_death_of_a_worker_is_reported_at_once(
    command: tuple[str, ...], start_workers: StartWorkers, database: Database, client: Client, pools_file: Path
) -> None:
    start_workers(*command)
    handle = client.submit("echo", text="again", seconds=3)
    eventually(lambda: handle.status is Status.IN_PROGRESS)
    # No successor that takes the name over: only the report can end the registration.
    pools_file.write_text("nonsense")

    os.kill(list_pids(database)[0], signal.SIGKILL)

    eventually(lambda: list_pids(database) == [], within=5)
    eventually(lambda: (handle.task().queue_state, handle.task().attempt) == ("ready", 2))
    pools_file.write_text(ECHO)
    assert handle.result(timeout=30) == {"text": "again"}
    assert read_outcomes(database, handle.id) == [(1, "lost"), (2, "completed")]


def test_a_single_worker_writes_where_its_parent_does(start_workers: StartWorkers) -> None:
    process = start_workers("worker", "start", "--pool", "default", "--number", "0")
    process.terminate()
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "worker 0 of pool 'default' on the CPU\n" in errors
    assert "worker_registered" in errors
    assert "[queues]" in output


def test_workers_end_with_a_parent_that_is_killed(start_workers: StartWorkers) -> None:
    process = start_workers()
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("bitinglip.engine.host" in child.cmdline() for child in family)

    process.kill()

    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


def test_a_worker_that_leaves_is_not_started_again(start_workers: StartWorkers, database: Database) -> None:
    process = start_workers()
    os.kill(list_pids(database)[0], signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "child_left" in errors
    assert "child_died" not in errors
    assert errors.endswith("every worker has left\n")


def test_the_first_signal_lets_tasks_end_and_the_second_does_not(
    start_workers: StartWorkers, database: Database, client: Client
) -> None:
    process = start_workers()
    handle = client.submit("echo", seconds=600)
    eventually(lambda: handle.status is Status.IN_PROGRESS)

    process.terminate()
    eventually(lambda: execute(database, "SELECT state FROM workers") == [("draining",)])
    assert handle.status is Status.IN_PROGRESS
    second = time.monotonic()
    process.terminate()

    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert time.monotonic() - second < 10
    # It handed back by itself: nothing had to be killed.
    assert "child_died" not in errors
    assert list_pids(database) == []
    assert (handle.task().status, handle.task().queue_state) == (Status.PENDING, "ready")


def test_every_pool_is_started_unless_one_is_named(
    start_workers: StartWorkers, database: Database, pools_file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools_file.write_text(ECHO + '[pools.io]\nkinds = ["download"]\ngpus = []\nslots = 3\n')
    process = start_workers(count=2)
    assert execute(database, "SELECT pool FROM workers ORDER BY pool") == [("default",), ("io",)]

    monkeypatch.setenv("BITINGLIP_DATA_DIR", str(pools_file.parent))
    monkeypatch.setenv("BITINGLIP_POOLS_FILE", str(pools_file))
    assert f"process {process.pid} runs" in run("worker", "start", "--pool", "io").stderr
    assert "each of default, io" in run("worker", "start", "--number", "0").stderr
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.count("log in ") == 2


def test_two_pools_cannot_both_have_most_of_a_gpu(
    run: Run, database: Database, pools_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", make_driver(TWO_GPUS))
    monkeypatch.setenv("BITINGLIP_POOLS_FILE", str(pools_file))
    halves = [f'[pools.{name}]\nkinds = ["echo"]\ngpus = [1]\nmemory_share = {{share}}\n' for name in ("one", "two")]
    pools_file.write_text("".join(halves).format(share=0.9))
    result = run("worker", "start")
    assert result.exit_code == 2
    assert "GPU 1 cannot be shared, its parts are 0.9 (one), 0.9 (two): name the pools to start" in result.stderr
    pools_file.write_text("".join(halves).format(share=0.5))
    assert [spec.pool_name for spec in plan_pools([])] == ["one", "two"]


def make_driver(source: str) -> ModuleType:
    """NVIDIA's driver, as this says it is."""
    driver = ModuleType("pynvml")
    exec(source, driver.__dict__)
    return driver


def test_each_gpu_has_a_worker_and_all_stop_together(
    start_workers: StartWorkers, database: Database, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "pynvml.py").write_text(TWO_GPUS)
    process = start_workers(count=2, PYTHONPATH=str(tmp_path))
    first, _ = list_pids(database)
    handles = [client.submit("echo", seconds=3) for _ in range(4)]
    eventually(lambda: all(handle.status is Status.IN_PROGRESS for handle in handles))

    process.terminate()
    eventually(lambda: execute(database, "SELECT DISTINCT state FROM workers") == [("draining",)], within=2)

    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert all(handle.status is Status.COMPLETED for handle in handles)
    assert errors.count("log in ") == 2
    log = next(tmp_path.glob("workers/*/default/worker-default-0.log"))
    assert "worker_registered" in log.read_text()
    assert not psutil.pid_exists(first)


def test_the_same_worker_has_one_parent(start_workers: StartWorkers, run: Run, monkeypatch, tmp_path: Path) -> None:
    process = start_workers()
    monkeypatch.setenv("BITINGLIP_DATA_DIR", str(tmp_path))
    result = run("worker", "start")
    assert result.exit_code == 2
    assert f"process {process.pid} runs" in result.stderr


def test_a_death_that_cannot_be_reported_is_logged(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def fail() -> ServerUrls:
        raise SystemNotRunningError(tmp_path)

    configure_logging()
    specs = plan_pools(["default"])
    death = ChildDeath(f"worker-{specs[0].pool_name}-0", 1, -9, 0.1)
    nowhere = ServerUrls("postgresql://nobody:nothing@127.0.0.1:1/none", "redis://127.0.0.1:1")
    for find_urls in (lambda: nowhere, fail, lambda: 1 / 0):
        make_death_reporter(specs, find_urls)(death)
    assert capfd.readouterr().err.count("death_not_reported") == 3


def test_only_the_deaths_of_workers_are_reported(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    report = make_death_reporter(plan_pools([]), lambda: pytest.fail("asked for the database"))
    report(ChildDeath("valkey", 1, -9, 0.1))
    assert "child_died" in capfd.readouterr().err


def test_beat_is_celerys_own(tmp_path: Path) -> None:
    program = make_beat_program(tmp_path, {"BITINGLIP_REDIS_URL": "redis://somewhere"})
    assert program.argv[1:6] == ("-m", "celery", "-A", "bitinglip", "beat")
    assert program.env is not None
    assert program.env["BITINGLIP_REDIS_URL"] == "redis://somewhere"
