"""What real workers say of models, and what becomes of tasks whose model cannot be loaded."""

import json
import os
from pathlib import Path

import pytest

from bitinglip.client import Client, Handle
from bitinglip.domain.catalogue import find_kinds
from bitinglip.domain.task import Status
from bitinglip.store.database import Database
from tests.conftest import System, eventually, wait_for_workers
from tests.engine_process.sized import SIZED, install, make_folder
from tests.factories import execute, read_outcomes

POOLS = '[pools.default]\nkinds = ["echo", "sized"]\nslots = {slots}\n'

DRIVER = """
from types import SimpleNamespace
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetHandleByUUID(uuid): return 0
def nvmlDeviceGetUUID(index): return 'GPU-0'
def nvmlDeviceGetName(index): return 'tiny'
def nvmlDeviceGetMemoryInfo(index): return SimpleNamespace(total=100_000, used=0)
def nvmlDeviceGetComputeRunningProcesses(index): return []
"""
"""A machine with one GPU of 100,000 bytes, of which a worker may hold 90,000."""


@pytest.fixture
def start(processes: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Start":
    monkeypatch.setitem(find_kinds(), "sized", SIZED)
    package = Path(install(tmp_path / "package"))
    (package / "pynvml.py").write_text(DRIVER)
    processes.start_dispatcher()
    return Start(processes, {"PYTHONPATH": f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})


class Start:
    """Starts workers that do `sized` on a tiny GPU."""

    def __init__(self, processes: System, environment: dict[str, str]) -> None:
        self._processes = processes
        self._environment = environment

    def __call__(self, name: str = "worker", *, slots: int = 4, **environment: str) -> None:
        pools = POOLS.format(slots=slots)
        self._processes.start_worker(name, pools=pools, environment={**self._environment, **environment})


def submit(client: Client, model: str, **payload: object) -> Handle:
    return client.submit("sized", model=model, **payload)


def read_holding(database: Database) -> list[tuple[list[str], dict[str, int], int]]:
    return [tuple(row) for row in execute(database, "SELECT models, model_bytes, memory_bytes FROM workers")]


def test_a_worker_says_at_once_what_its_models_take(
    start: Start, client: Client, database: Database, tmp_path: Path
) -> None:
    # A heartbeat that comes by itself comes too late for this test.
    start(BITINGLIP_HEARTBEAT_SECONDS="60", BITINGLIP_LEASE_SECONDS="180")
    wait_for_workers(database, 1)
    model = make_folder(tmp_path / "model", 40_000, held=42_000, seconds=0.5)

    handle = submit(client, model, seconds=0.2)

    handle.result(timeout=20)
    eventually(lambda: read_holding(database) == [([model], {model: 42_000}, 42_000)])
    size = (Path(model) / "model.safetensors").stat().st_size
    sizes = "SELECT name, weight_bytes, held_bytes FROM models"
    eventually(lambda: [tuple(row) for row in execute(database, sizes)] == [(model, size, 42_000)])
    usage = execute(database, "SELECT usage FROM task_details")[0][0]
    assert usage["load_seconds"] >= 0.5
    assert usage["engine_seconds"] == pytest.approx(0.2 + usage["load_seconds"])


def test_models_take_turns_on_a_gpu_that_holds_two(
    start: Start, client: Client, database: Database, tmp_path: Path
) -> None:
    start()
    wait_for_workers(database, 1)
    models = [make_folder(tmp_path / f"model-{number}", 40_000) for number in range(4)]

    handles = [submit(client, model, text=model, seconds=0.1) for _ in range(3) for model in models]

    assert [handle.result(timeout=60)["text"] for handle in handles] == 3 * models
    assert all(len(read_outcomes(database, handle.id)) == 1 for handle in handles)
    eventually(lambda: 0 < read_holding(database)[0][2] <= 90_000)
    giant = make_folder(tmp_path / "giant", 40_000, held=95_000)
    refused = submit(client, giant)
    eventually(lambda: refused.status is Status.FAILED, within=20)
    assert execute(database, "SELECT DISTINCT error_code FROM tasks WHERE status = 'failed'") == [("model_too_large",)]


def test_a_model_that_two_workers_cannot_load_is_given_up_with_their_reasons(
    start: Start, client: Client, database: Database, tmp_path: Path
) -> None:
    start("one", slots=1)
    start("two", slots=1)
    wait_for_workers(database, 2)
    model = make_folder(tmp_path / "broken", 1_000, fail="no such kernel")

    handles = [submit(client, model) for _ in range(8)]

    eventually(lambda: all(handle.status is Status.FAILED for handle in handles), within=30)
    for handle in handles:
        error = handle.task().error
        assert error is not None
        assert error.code == "model_load_failed"
        assert {"one@", "two@"} <= {word[:4] for word in error.message.split()}
        assert "no such kernel" in error.message
    assert sorted(failures for (failures,) in execute(database, "SELECT failures FROM load_failures")) == [1, 1]
    assert client.submit("echo", text="fine").result(timeout=20) == {"text": "fine"}


def test_a_load_that_ends_the_engine_costs_nobody_an_attempt_and_is_tried_again_later(
    start: Start, client: Client, database: Database, tmp_path: Path
) -> None:
    start()
    wait_for_workers(database, 1)
    neighbour = client.submit("echo", text="neighbour", seconds=1.5)
    eventually(lambda: neighbour.status is Status.IN_PROGRESS)
    model = make_folder(tmp_path / "crasher", 1_000, crash=True)

    handle = submit(client, model, text="patience")

    assert neighbour.result(timeout=30) == {"text": "neighbour"}
    eventually(lambda: execute(database, "SELECT failures FROM load_failures") == [(1,)])
    eventually(lambda: handle.task().queue_state == "ready")
    assert execute(database, "SELECT DISTINCT suspect, failures FROM tasks") == [(False, 0)]
    assert read_outcomes(database, handle.id) == [(1, "lost")]
    (Path(model) / "behaviour.json").write_text(json.dumps({"size": 1_000}))
    execute(database, "UPDATE load_failures SET retry_at = now()")

    assert handle.result(timeout=30) == {"text": "patience"}
    eventually(lambda: execute(database, "SELECT * FROM load_failures") == [])
