"""Tasks whose model is not on their worker's node wait for it, and for nothing else."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bitinglip.client import Client, Handle
from bitinglip.domain.catalogue import find_kinds
from bitinglip.domain.models import CopyState
from bitinglip.domain.task import Status
from bitinglip.store.database import Database
from bitinglip.streams.events import EventName
from tests.conftest import System, eventually, wait_for_workers
from tests.engine_process.sized import SIZED, install
from tests.factories import execute, read_outcomes
from tests.hub import Fault, LocalHub
from tests.worker.nodes import MODEL, Node, list_copies, make_sized, read_entry, read_manifest, register

POOLS = '[pools.default]\nkinds = ["echo", "sized"]\ngpus = []\nslots = 4\n'
WEIGHTS = "*.safetensors"
SIZE = 300_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A hub with one model."""
    with LocalHub() as opened:
        opened.add_repo(MODEL, make_sized(tmp_path / "served", SIZE))
        yield opened


@pytest.fixture
def node(processes: System, hub: LocalHub, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node without a model, one that is registered, and a dispatcher."""
    monkeypatch.setitem(find_kinds(), "sized", SIZED)
    path = f"{install(tmp_path / 'package')}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    processes.start_dispatcher()
    register(database)
    return Node(processes, "b", tmp_path, {"HF_ENDPOINT": hub.url, "PYTHONPATH": path})


def start(node: Node, database: Database, pools: str = POOLS, **environment: str) -> None:
    node.start("worker", pools, **environment)
    wait_for_workers(database, 1)


def submit(client: Client, text: str = "done") -> Handle:
    return client.submit("sized", model=MODEL, text=text)


def is_fetching(hub: LocalHub) -> bool:
    return hub.requests.sent_bytes("cdn") > 0


def find_engine(database: Database) -> psutil.Process:
    (pid,) = execute(database, "SELECT pid FROM workers WHERE state <> 'gone'")[0]
    return eventually(lambda: next(filter(is_engine, psutil.Process(pid).children()), None))


def is_engine(process: psutil.Process) -> bool:
    try:
        return "bitinglip.engine.host" in process.cmdline()
    except psutil.Error:
        # It has just ended.
        return False


def test_tasks_that_wait_for_one_model_wait_for_one_download_which_no_time_limit_counts(
    node: Node, hub: LocalHub, database: Database, client: Client
) -> None:
    start(node, database, TASK_TIMEOUT="1")
    held = hub.faults.add(Fault(kind="cdn", path=WEIGHTS, stall_after_bytes=100_000))

    handles = [submit(client, text=str(number)) for number in range(3)]

    eventually(lambda: is_fetching(hub))
    eventually(lambda: all(handle.status is Status.IN_PROGRESS for handle in handles))
    began = time.monotonic()
    # The slot that is left goes on, and so does the clock that must not count.
    while time.monotonic() - began < 2:
        assert client.submit("echo", text="meanwhile").result(timeout=20) == {"text": "meanwhile"}
    held.release()
    assert [handle.result(timeout=30)["text"] for handle in handles] == ["0", "1", "2"]
    assert [read_outcomes(database, handle.id) for handle in handles] == [[(1, "completed")]] * 3
    assert len(hub.requests.matching("cdn", WEIGHTS)) == 1
    assert list_copies(database)["b"] is CopyState.AVAILABLE
    told = [event.data for handle in handles for event in handle.stream() if event.name is EventName.PROGRESS]
    assert {data["stage"] for data in told} >= {"downloading"}
    assert all(0 <= data["fraction"] <= 1 for data in told)
    eventually(lambda: (entry := read_entry(database)) and entry.last_used_at)


def test_cancelling_one_that_waits_ends_it_at_once_and_the_others_go_on(
    node: Node, hub: LocalHub, database: Database, client: Client
) -> None:
    start(node, database)
    held = hub.faults.add(Fault(kind="cdn", path=WEIGHTS, stall_after_bytes=100_000))
    one, other = submit(client, text="one"), submit(client, text="other")
    eventually(lambda: is_fetching(hub) and one.status is Status.IN_PROGRESS and other.status is Status.IN_PROGRESS)

    began = time.monotonic()
    one.cancel()

    eventually(lambda: one.status is Status.CANCELLED, within=2)
    assert time.monotonic() - began < 1.5
    assert other.status is Status.IN_PROGRESS
    held.release()
    assert other.result(timeout=30) == {"text": "other"}
    assert len(hub.requests.matching("cdn", WEIGHTS)) == 1


def test_when_nobody_waits_any_more_the_download_ends_and_the_next_goes_on_from_there(
    node: Node, hub: LocalHub, database: Database, client: Client
) -> None:
    start(node, database)
    held = hub.faults.add(Fault(kind="cdn", path=WEIGHTS, stall_after_bytes=200_000))
    first = submit(client)
    eventually(lambda: list(node.cache.folder.rglob("*.part")) and first.status is Status.IN_PROGRESS)
    eventually(lambda: any(part.stat().st_size for part in node.cache.folder.rglob("*.part")))
    first.cancel()
    eventually(lambda: first.status is Status.CANCELLED, within=2)

    eventually(node.is_free)
    held.release()
    hub.requests.clear()
    assert submit(client).result(timeout=30) == {"text": "done"}
    assert 0 < hub.requests.sent_bytes("cdn") < SIZE


def test_a_worker_that_is_told_twice_hands_back_what_waits_for_its_model(
    node: Node, hub: LocalHub, database: Database, client: Client
) -> None:
    start(node, database)
    hub.faults.add(Fault(kind="cdn", path=WEIGHTS, stall_after_bytes=100_000))
    handle = submit(client)
    eventually(lambda: is_fetching(hub) and handle.status is Status.IN_PROGRESS)
    worker = node.processes.processes["worker"]

    worker.send_signal(signal.SIGTERM)
    eventually(lambda: execute(database, "SELECT state FROM workers") == [("draining",)])
    threading.Event().wait(1.2)
    worker.send_signal(signal.SIGTERM)

    assert node.processes.wait("worker") == 0
    assert handle.task().status is Status.PENDING
    assert read_outcomes(database, handle.id) == [(1, "lost")]
    assert "task_released" in node.processes.read_log("worker")


def test_a_model_that_is_not_registered_fails_its_task_with_the_command_that_fetches_it(
    node: Node, database: Database, client: Client
) -> None:
    # Accepted, as no worker is there that could say no.
    handle = client.submit("sized", model="org/unknown")
    start(node, database)

    eventually(lambda: handle.status is Status.FAILED, within=20)

    error = handle.task().error
    assert error is not None
    assert error.code == "model_not_found"
    assert "bitinglip model pull org/unknown" in error.message


def test_nobody_deletes_a_model_while_an_engine_holds_it(
    node: Node, hub: LocalHub, database: Database, client: Client
) -> None:
    start(node, database)
    handle = submit(client)
    assert handle.result(timeout=30) == {"text": "done"}

    assert not node.is_free()
    find_engine(database).kill()

    eventually(node.is_free)


def test_files_that_went_bad_are_found_when_they_are_loaded_and_fetched_again(
    node: Node, hub: LocalHub, database: Database, client: Client
) -> None:
    start(node, database)
    assert submit(client).result(timeout=30) == {"text": "done"}
    weights = next(file for file in read_manifest(database).files if file.path == "model.safetensors")
    blob = node.cache.find_blob(MODEL, weights)
    good = blob.read_bytes()
    find_engine(database).kill()
    eventually(node.is_free)
    # Of the same length: a glance does not show it.
    blob.write_bytes(b"\xff" * 64 + good[64:])

    handles = [submit(client, text=str(number)) for number in range(3)]

    assert [handle.result(timeout=30)["text"] for handle in handles] == ["0", "1", "2"]
    assert blob.read_bytes() == good
    assert "copy_doubted" in node.processes.read_log("worker")
    assert {outcome for handle in handles for _, outcome in read_outcomes(database, handle.id)} == {
        "retried",
        "completed",
    }


def test_a_model_of_the_hub_that_is_preloaded_is_fetched_beside_the_work(
    node: Node, hub: LocalHub, database: Database, client: Client
) -> None:
    held = hub.faults.add(Fault(kind="cdn", path=WEIGHTS, stall_after_bytes=100_000))
    with database.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM models")
    start(node, database, POOLS + f'preload = ["{MODEL}"]\npin = ["{MODEL}"]\n')

    def is_rung() -> bool:
        """Whether a task comes by a doorbell, which only a worker hears that has started."""
        missed = node.processes.read_log("worker").count("doorbell_missed")
        client.submit("echo").result(timeout=20)
        return node.processes.read_log("worker").count("doorbell_missed") == missed

    eventually(is_rung, within=20)
    eventually(lambda: is_fetching(hub))
    assert execute(database, "SELECT models FROM workers") == [([],)]
    held.release()

    eventually(lambda: list_copies(database) == {"b": CopyState.AVAILABLE}, within=20)
    eventually(lambda: execute(database, "SELECT models FROM workers") == [([MODEL],)], within=20)
    # For as long as the worker lives: each start of its engine loads it again.
    engine = find_engine(database)
    engine.kill()
    engine.wait(10)
    assert not node.is_free()
    eventually(lambda: find_engine(database).pid != engine.pid, within=20)
    eventually(lambda: execute(database, "SELECT models FROM workers") == [([MODEL],)], within=20)


def test_a_model_that_is_as_its_owners_made_it_and_cannot_be_used_is_looked_at_again_once(
    node: Node, hub: LocalHub, database: Database, client: Client, tmp_path: Path
) -> None:
    hub.commit(MODEL, make_sized(tmp_path / "odd", SIZE, invalid="no such layer"))
    start(node, database)

    handle = submit(client)

    eventually(lambda: handle.status is Status.FAILED, within=30)
    assert read_outcomes(database, handle.id) == [(1, "retried"), (2, "failed")]
    assert len(hub.requests.matching("cdn", WEIGHTS)) == 1
