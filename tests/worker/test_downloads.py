"""Models come as tasks of real workers: once for all who ask, whatever dies on the way, and stopped when told to."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bitinglip.client import Client, Handle
from bitinglip.domain.models import ModelStatus
from bitinglip.domain.task import Status
from bitinglip.registry.locate import BUNDLED
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, list_entries
from bitinglip.streams.events import EventName
from tests.conftest import System, eventually, wait_for_workers
from tests.factories import make_worker, read_outcomes
from tests.hub import Fault, LocalHub
from tests.worker.io_node import MODEL, SIZE, IoNode
from tests.worker.test_celery_ways import run_python

MOST_AGAIN_BYTES = 4 * 2**20
"""What a killed download may fetch again of a file."""


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A hub with the bundled model."""
    with LocalHub() as opened:
        opened.add_repo(MODEL, BUNDLED["demo"])
        yield opened


@pytest.fixture
def node(processes: System, tmp_path: Path, hub: LocalHub, database: Database) -> IoNode:
    """A dispatcher, and a worker that downloads from the hub."""
    made = IoNode(processes, tmp_path, hub.url)
    processes.start_dispatcher()
    made.start_io()
    wait_for_workers(database, 1)
    return made


def download(client: Client, model: str = MODEL, agent: str | None = None) -> Handle:
    return client.submit("download", model=model, agent=agent)


def read_entry(database: Database, name: str = MODEL) -> ModelEntry:
    with database.transaction() as connection:
        (entry,) = list_entries(connection, [name])
    return entry


def wait_for_bytes(hub: LocalHub, count: int) -> None:
    eventually(lambda: hub.requests.sent_bytes("cdn") >= count, within=30)


def test_fifty_agents_that_want_a_model_cause_one_download(
    node: IoNode, hub: LocalHub, client: Client, database: Database
) -> None:
    start = threading.Barrier(10)
    held = hub.faults.add(Fault(kind="cdn", stall_after_bytes=1))

    def ask(number: int) -> list[Handle]:
        start.wait()
        return [download(client, agent=f"agent-{number}-{turn}") for turn in range(5)]

    with ThreadPoolExecutor(10) as pool:
        handles = [handle for answer in pool.map(ask, range(10)) for handle in answer]

    held.release()
    assert len({handle.id for handle in handles}) == 1
    result = handles[0].result(timeout=30)
    entry = read_entry(database)
    manifest = entry.record.manifest
    assert manifest is not None
    assert result == {
        "model": MODEL,
        "commit": manifest.commit,
        "bytes": manifest.total_bytes,
        "files": len(manifest.files),
        "node": "node-1",
    }
    assert entry.status is ModelStatus.AVAILABLE
    assert node.find_blob("model.safetensors")
    assert hub.requests.sent_bytes("cdn") == SIZE
    # What is here already is a task that ends at once, and asks the hub for nothing.
    asked = len(hub.requests.matching())
    assert download(client).result(timeout=10) == result
    assert len(hub.requests.matching()) == asked


def test_a_download_outlives_the_time_limit_and_tells_how_far_it_is(
    node: IoNode, hub: LocalHub, client: Client
) -> None:
    hub.faults.add(Fault(kind="cdn", bytes_per_second=1_500_000))

    handle = download(client)
    told = [event.data for event in handle.stream() if event.name is EventName.PROGRESS]

    assert handle.status is Status.COMPLETED
    usage = handle.task().usage or {}
    assert usage["engine_seconds"] > 2
    fractions = [data["fraction"] for data in told if data["stage"] == "downloading"]
    assert fractions == sorted(fractions)
    assert len(fractions) >= 4
    assert 0 < fractions[len(fractions) // 2] < 1
    assert any("model.safetensors" in data["files"] for data in told)


def test_a_download_whose_worker_is_killed_goes_on_in_the_next_one(
    node: IoNode, hub: LocalHub, client: Client, database: Database
) -> None:
    slow = hub.faults.add(Fault(kind="cdn", stall_after_bytes=SIZE // 2))
    handle = download(client)
    wait_for_bytes(hub, SIZE // 2)

    node.processes.kill("io")
    slow.release()
    node.start_io()

    assert handle.result(timeout=40)["model"] == MODEL
    assert read_outcomes(database, handle.id) == [(1, "lost"), (2, "completed")]
    assert handle.task().failures == 0
    assert node.find_blob("model.safetensors")
    assert node.list_parts() == []
    assert read_entry(database).status is ModelStatus.AVAILABLE
    assert hub.requests.sent_bytes("cdn") <= SIZE + MOST_AGAIN_BYTES


def test_a_cancelled_download_stops_within_a_second_and_leaves_nothing_half(
    node: IoNode, hub: LocalHub, client: Client, database: Database
) -> None:
    hub.faults.add(Fault(kind="cdn", stall_after_bytes=1_000_000))
    handle = download(client)
    wait_for_bytes(hub, 1_000_000)

    assert handle.cancel()

    task = handle.wait(timeout=10)
    assert task.status is Status.CANCELLED
    assert task.finished_at is not None
    assert task.cancel_requested_at is not None
    assert (task.finished_at - task.cancel_requested_at).total_seconds() < 1.3
    eventually(lambda: node.list_parts() == [])
    assert read_entry(database).status is ModelStatus.FAILED
    # The worker goes on, and so does whoever wants the model all the same.
    hub.faults.clear()
    assert download(client).result(timeout=30)["model"] == MODEL


def test_a_model_that_is_not_there_fails_at_once_and_its_tasks_with_it(
    node: IoNode, client: Client, database: Database
) -> None:
    make_worker(database, "texts", kinds=["text"], pool="texts", pulls=["local/*"])
    task = client.submit("text", model="local/missing", prompt="Hello")

    failed = task.wait(timeout=20)

    assert failed.error is not None
    assert failed.error.code == "dependency_failed"
    (parent,) = failed.depends_on
    error = client.get(parent).error
    assert error is not None
    assert (error.code, error.retryable) == ("model_not_found", False)
    assert "local/missing" in error.message
    assert error.message in failed.error.message
    assert read_outcomes(database, parent) == [(1, "failed")]
    assert read_entry(database, "local/missing").status is ModelStatus.FAILED


def test_a_gated_model_fails_with_what_to_do(node: IoNode, hub: LocalHub, client: Client) -> None:
    hub.add_repo("local/gated", BUNDLED["demo"], gated=True)

    error = download(client, "local/gated").wait(timeout=20).error

    assert error is not None
    assert (error.code, error.retryable) == ("gated_model", False)
    assert "ask for access" in error.message
    assert "HF_TOKEN" in error.message


def test_a_download_is_tried_again_when_the_hub_is_back(
    processes: System, tmp_path: Path, client: Client, database: Database
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    node = IoNode(processes, tmp_path, f"http://127.0.0.1:{port}")
    processes.start_dispatcher()
    node.start_io()
    wait_for_workers(database, 1)
    handle = download(client)
    eventually(lambda: handle.task().failures == 1, within=30)
    waiting = handle.task()
    assert waiting.error is not None
    assert (waiting.error.code, waiting.queue_state) == ("hub_unreachable", "scheduled")
    assert download(client).id == handle.id

    with LocalHub(port=port) as hub:
        hub.add_repo(MODEL, BUNDLED["demo"])
        assert handle.result(timeout=60)["model"] == MODEL

    assert [outcome for _, outcome in read_outcomes(database, handle.id)][-1] == "completed"


def test_a_task_for_a_model_that_is_not_here_runs_once_it_has_come(
    node: IoNode, hub: LocalHub, client: Client, database: Database
) -> None:
    pools = '[pools.texts]\nkinds = ["text"]\ngpus = []\nslots = 2\npulls = ["local/*"]\n'
    node.processes.start_worker(
        "texts", pools=pools, pool="texts", environment={**node.environment, "BITINGLIP_TASK_TIMEOUT": "60"}
    )
    wait_for_workers(database, 2)

    first = client.submit("text", model=MODEL, prompt="What is the capital of Peru?", temperature=0, agent="ann")
    second = client.submit("text", model=MODEL, prompt="What is 17 plus 25?", temperature=0, agent="bob")

    assert "Lima" in first.result(timeout=60)["text"]
    assert "42" in second.result(timeout=60)["text"]
    assert first.task().depends_on == second.task().depends_on
    assert hub.requests.sent_bytes("cdn") == SIZE


def test_celery_users_download_by_name(node: IoNode, client: Client) -> None:
    said = run_python(
        f"""
import json
from bitinglip.tasks import download_model
result = download_model.delay({MODEL!r}, agent="celery-user")
print(json.dumps([result.id, result.get(timeout=30)["model"], result.state]))
"""
    )

    assert said[1:] == [MODEL, "SUCCESS"]
    assert client.get(said[0]).agent_id == "celery-user"
