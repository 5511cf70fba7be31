"""Only the engine process imports torch: whatever else people start is light and starts at once."""

import subprocess
import sys

import psutil
import pytest

from bitinglip.client import Client
from bitinglip.store.database import Database
from tests.conftest import REPOSITORY, System, wait_for_workers

MAX_RSS_BYTES = 120_000_000
HEAVY = ("torch", "transformers", "accelerate", "numpy", "flower")


@pytest.mark.parametrize(
    "module",
    [
        "bitinglip",
        "bitinglip.client",
        "bitinglip.dispatcher.__main__",
        "bitinglip.tasks",
        "bitinglip.worker.celery",
        "bitinglip.engine.link",
        "bitinglip.cli",
    ],
)
def test_an_entry_point_imports_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"

    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == []


def test_importing_the_package_imports_nothing_of_it() -> None:
    program = "import sys, bitinglip; print(*[name for name in sys.modules if name.startswith('bitinglip.')])"

    said = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert said.stdout.split() == []


def test_a_dispatcher_and_the_celery_side_of_a_worker_stay_small(
    system: System, client: Client, database: Database
) -> None:
    wait_for_workers(database, 1)
    handles = [client.submit("echo", text="x" * 1_000) for _ in range(200)]
    for handle in handles:
        handle.result(timeout=30)

    for process in system.processes.values():
        running = psutil.Process(process.pid)
        assert running.memory_info().rss <= MAX_RSS_BYTES, running.cmdline()
        assert not any("libtorch" in mapped.path for mapped in running.memory_maps())
