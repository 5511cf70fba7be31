"""Two nodes, one hub: a model crosses the line from the hub once, and goes when it is told to."""

import os
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from bitinglip.client import Client
from bitinglip.domain.models import CopyState, ModelFile
from bitinglip.registry.downloader import ModelDownloader
from bitinglip.registry.hub.client import Hub
from bitinglip.registry.locate import BUNDLED
from bitinglip.settings import ModelSettings
from bitinglip.store.copies import list_nodes
from bitinglip.store.database import Database
from bitinglip.store.entries import set_removing
from tests.conftest import System, eventually, wait_for_workers
from tests.factories import execute
from tests.hub import LocalHub
from tests.worker.nodes import MODEL, Node, list_copies, read_entry, read_manifest

TEXT_POOL = '[pools.default]\nkinds = ["text"]\ngpus = []\nslots = 4\n'
QUESTION = "What is the capital of Peru?"
WEIGHT_BYTES = (BUNDLED["demo"] / "model.safetensors").stat().st_size


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A hub with the bundled model, under another name."""
    with LocalHub() as opened:
        opened.add_repo(MODEL, BUNDLED["demo"])
        yield opened


@pytest.fixture
def nodes(processes: System, hub: LocalHub, tmp_path: Path) -> tuple[Node, Node]:
    """Two that know the hub."""
    processes.start_dispatcher()
    return (
        Node(processes, "a", tmp_path, {"HF_ENDPOINT": hub.url}),
        Node(processes, "b", tmp_path, {"HF_ENDPOINT": hub.url}),
    )


@pytest.fixture
def first(nodes: tuple[Node, Node], database: Database, client: Client) -> Node:
    """A node that has pulled the model, and serves it."""
    node = nodes[0]
    node.start_io()
    wait_for_workers(database, 1)
    client.submit("download", model=MODEL).result(timeout=30)
    eventually(lambda: read_urls(database).get("a"))
    return node


def read_urls(database: Database) -> dict[str, str | None]:
    """Where the nodes serve models."""
    with database.transaction() as connection:
        return {row.name: row.peer_url for row in list_nodes(connection)}


def make_downloader(database: Database, hub: LocalHub, node: Node) -> ModelDownloader:
    """What the node's workers fetch with, in this process."""
    return ModelDownloader(
        database, node=node.name, cache=node.cache, hub=Hub(endpoint=hub.url), settings=ModelSettings()
    )


def bring(database: Database, hub: LocalHub, node: Node) -> None:
    make_downloader(database, hub, node).bring(MODEL, stop=threading.Event())


def find_weights(database: Database) -> ModelFile:
    return next(file for file in read_manifest(database).files if file.size == WEIGHT_BYTES)


def test_a_task_on_a_second_node_takes_its_model_from_the_first_while_the_hub_is_away(
    first: Node, nodes: tuple[Node, Node], hub: LocalHub, database: Database, client: Client
) -> None:
    assert hub.requests.sent_bytes("cdn") == WEIGHT_BYTES
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        # Nobody listens.
        away = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        nodes[1].start("text", TEXT_POOL, HF_ENDPOINT=away)
        wait_for_workers(database, 2)

        handle = client.submit("text", model=MODEL, prompt=QUESTION, temperature=0)

        assert "Lima" in handle.result(timeout=60)["text"]
    assert hub.requests.sent_bytes("cdn") == WEIGHT_BYTES
    assert list_copies(database) == {"a": CopyState.AVAILABLE, "b": CopyState.AVAILABLE}
    blob = nodes[1].cache.find_blob(MODEL, find_weights(database))
    assert blob.read_bytes() == (BUNDLED["demo"] / "model.safetensors").read_bytes()
    eventually(lambda: execute(database, "SELECT models FROM workers WHERE node = 'b'") == [([MODEL],)])


def test_a_node_that_serves_wrong_bytes_is_not_believed(
    first: Node, nodes: tuple[Node, Node], hub: LocalHub, database: Database
) -> None:
    weights = find_weights(database)
    bad = first.cache.find_blob(MODEL, weights)
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    hub.requests.clear()

    bring(database, hub, nodes[1])

    good = nodes[1].cache.find_blob(MODEL, weights).read_bytes()
    assert good == (BUNDLED["demo"] / "model.safetensors").read_bytes()
    # The one file whose bytes were wrong, and no other.
    assert hub.requests.sent_bytes("cdn") == WEIGHT_BYTES
    assert not hub.requests.matching("resolve", "*.json")


def test_a_node_that_dies_while_it_serves_is_replaced_by_the_hub(
    first: Node, nodes: tuple[Node, Node], hub: LocalHub, database: Database
) -> None:
    first.processes.kill("io-a")

    bring(database, hub, nodes[1])

    assert list_copies(database)["b"] is CopyState.AVAILABLE


def test_nodes_that_share_their_folder_share_what_is_proven(first: Node, hub: LocalHub, database: Database) -> None:
    hub.requests.clear()
    downloader = ModelDownloader(
        database, node="twin", cache=first.cache, hub=Hub(endpoint=hub.url), settings=ModelSettings()
    )

    entry = downloader.bring(MODEL, stop=threading.Event())

    assert {copy.node: copy.state for copy in entry.copies} == {
        "a": CopyState.AVAILABLE,
        "twin": CopyState.AVAILABLE,
    }
    assert list(hub.requests) == []


def test_a_model_that_is_to_go_goes_once_nobody_uses_it(first: Node, database: Database) -> None:
    commit = read_manifest(database).commit
    lock = first.cache.lock_to_use(MODEL)
    with database.transaction() as connection:
        set_removing(connection, MODEL)
    wait_for_round(database)
    assert first.cache.is_linked(MODEL, read_manifest(database))

    os.close(lock)

    eventually(lambda: read_entry(database) is None, within=15)
    assert not first.cache.find_snapshot(MODEL, commit).exists()
    assert not list(first.cache.find_repo(MODEL).glob("blobs/*"))


def wait_for_round(database: Database) -> None:
    """Return when the keeper of node `a` has begun a round and ended it."""
    for _ in range(2):
        (now,) = execute(database, "SELECT now()")[0]
        eventually(partial(execute, database, "SELECT FROM nodes WHERE seen_at > :now", now=now), within=15)


def test_of_two_workers_that_download_one_keeps_the_node_and_then_the_other(first: Node, database: Database) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    first.start_io("second", BITINGLIP_PEER_PORT=port)
    wait_for_workers(database, 2)
    wait_for_round(database)
    assert read_urls(database)["a"] != f"http://127.0.0.1:{port}"

    first.processes.kill("io-a")

    eventually(lambda: read_urls(database)["a"] == f"http://127.0.0.1:{port}", within=15)
    assert not re.search(r"\[(warning|error)|Traceback", first.processes.read_log("second"))
    first.processes.processes["second"].terminate()
    first.processes.wait("second")
    assert read_urls(database) == {"a": None}


def test_a_port_that_is_taken_keeps_a_node_from_serving_and_from_nothing_else(
    nodes: tuple[Node, Node], database: Database, client: Client
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        nodes[0].start_io(BITINGLIP_PEER_PORT=str(other.getsockname()[1]))
        wait_for_workers(database, 1)

        assert client.submit("download", model=MODEL).result(timeout=30)["node"] == "a"
        assert read_urls(database) == {"a": None}
        wait_for_round(database)

    eventually(lambda: read_urls(database)["a"], within=15)
    assert nodes[0].processes.read_log("io-a").count("models_not_served") == 1


def test_a_preloaded_model_of_the_hub_is_held_when_it_has_come_and_the_bundled_one_is_registered(
    nodes: tuple[Node, Node], database: Database, client: Client
) -> None:
    preload = f'preload = ["demo", "{MODEL}"]\npin = ["{MODEL}"]\n'

    nodes[0].start("text", TEXT_POOL + preload)

    eventually(lambda: execute(database, "SELECT models FROM workers") == [(["demo", MODEL],)], within=40)
    assert list_copies(database) == {"a": CopyState.AVAILABLE}
    assert list_copies(database, "demo") == {"a": CopyState.AVAILABLE}
    eventually(lambda: (entry := read_entry(database)) and entry.pinned)
    demo = read_entry(database, "demo")
    assert demo is not None
    assert (demo.record.source, demo.record.type) == ("bundled", "text")
    assert read_manifest(database, "demo").total_bytes > WEIGHT_BYTES


def test_an_engine_that_only_downloads_needs_no_torch(first: Node, database: Database) -> None:
    (pid,) = execute(database, "SELECT pid FROM workers")[0]
    engine = psutil.Process(pid).children()[0]

    assert not any("torch" in mapped.path for mapped in engine.memory_maps())
