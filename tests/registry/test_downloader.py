"""A whole model: fetched from wherever it can be had, proven, and registered."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from bitinglip.domain.models import CopyState, ModelStatus
from bitinglip.errors import (
    BitingLipError,
)
from bitinglip.registry.peers.server import PeerServer
from bitinglip.store.copies import Node, note_copy, note_node
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry
from tests.hub import Fault, LocalHub
from tests.registry.nodes import NAME, SHARD_BYTES, SHARDS, FetchingNode, MakeNode, make_model


def test_a_model_is_fetched_proven_and_described(node: FetchingNode, served: Path) -> None:
    entry = node.bring()
    assert entry.status is ModelStatus.AVAILABLE
    assert node.list_bad() == []
    copy = entry.find_copy("a")
    assert copy is not None
    expected = {path.relative_to(served).as_posix(): path.read_bytes() for path in served.iterdir()}
    assert {path.name: path.read_bytes() for path in Path(copy.folder).iterdir()} == expected
    record = entry.record
    assert (record.type, record.licence, record.parameters) == ("text", "mit", 2 * SHARD_BYTES)
    assert "small" in record.tags
    assert record.kv_bytes_per_token


def test_the_real_client_finds_what_was_fetched(node: FetchingNode, served: Path) -> None:
    node.bring()
    found = Path(snapshot_download(NAME, cache_dir=node.cache.folder, local_files_only=True))
    assert (found / SHARDS[0]).read_bytes() == (served / SHARDS[0]).read_bytes()


def test_a_model_that_is_there_is_not_fetched_again(node: FetchingNode, hub: LocalHub) -> None:
    node.bring()
    hub.requests.clear()
    assert node.bring().status is ModelStatus.AVAILABLE
    assert list(hub.requests) == []


def test_a_model_whose_files_are_gone_is_fetched_again(node: FetchingNode) -> None:
    entry = node.bring()
    copy = entry.find_copy("a")
    assert copy is not None
    (Path(copy.folder) / SHARDS[0]).resolve().unlink()
    node.bring()
    assert node.list_bad() == []


def test_a_copy_that_is_known_to_be_damaged_is_brought_anew(node: FetchingNode) -> None:
    copy = node.bring().find_copy("a")
    assert copy is not None
    with (Path(copy.folder) / SHARDS[0]).open("r+b") as file:
        file.write(b"wrong")
    with node.database.transaction() as connection:
        note_copy(connection, replace(copy, state=CopyState.DAMAGED))
    node.bring()
    assert node.list_bad() == []


def test_a_model_in_another_folder_of_the_node_is_not_taken_for_one_in_this(
    make_node: MakeNode, tmp_path: Path
) -> None:
    make_node().bring()
    moved = make_node(folder=tmp_path / "moved")
    copy = moved.bring().find_copy("a")
    assert copy is not None
    assert Path(copy.folder).is_relative_to(tmp_path / "moved")
    assert moved.list_bad() == []


def test_what_the_real_client_has_fetched_is_proven_and_used(node: FetchingNode, hub: LocalHub) -> None:
    snapshot_download(NAME, endpoint=hub.url, cache_dir=node.cache.folder)
    hub.requests.clear()
    assert node.bring().status is ModelStatus.AVAILABLE
    assert hub.requests.sent_bytes("cdn") == 0
    assert "verifying" in {progress.stage for progress in node.progress}


def test_a_wrong_byte_that_lay_in_the_cache_is_found_and_fetched(node: FetchingNode, hub: LocalHub) -> None:
    path = Path(snapshot_download(NAME, endpoint=hub.url, cache_dir=node.cache.folder)) / SHARDS[1]
    with path.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"wrong")
    hub.requests.clear()
    node.bring()
    assert node.list_bad() == []
    fetched = {request.path.rpartition("/")[2] for request in hub.requests.matching("cdn")}
    assert fetched == {SHARDS[1]}


def test_progress_only_grows_and_ends_at_the_whole(node: FetchingNode, hub: LocalHub) -> None:
    hub.bytes_per_second = 2_000_000
    entry = node.bring()
    assert entry.record.manifest is not None
    counted = [progress for progress in node.progress if progress.stage == "downloading"]
    assert [progress.done_bytes for progress in counted] == sorted(progress.done_bytes for progress in counted)
    assert counted[-1].total_bytes == entry.record.manifest.total_bytes
    assert any(SHARDS[0] in progress.files for progress in counted)
    copy = entry.find_copy("a")
    assert copy is not None
    assert copy.done_bytes == entry.record.manifest.total_bytes


def test_a_branch_that_moves_meanwhile_changes_nothing(
    node: FetchingNode, make_node: MakeNode, hub: LocalHub, served: Path, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "newer")
    hub.faults.add(Fault(kind="cdn", then=lambda: hub.commit(NAME, other)))
    first = node.bring()
    assert node.list_bad() == []
    copy = first.find_copy("a")
    assert copy is not None
    assert (Path(copy.folder) / SHARDS[0]).read_bytes() == (served / SHARDS[0]).read_bytes()
    second = make_node("b").bring()
    assert second.record.manifest == first.record.manifest


def test_two_nodes_that_look_up_a_moving_branch_agree(make_node: MakeNode, hub: LocalHub, tmp_path: Path) -> None:
    """The branch moves, and another node has registered what it found, before the first one hears the hub's answer."""
    other = make_model(tmp_path / "newer")
    first, second = make_node("a"), make_node("b")

    def overtake() -> None:
        hub.commit(NAME, other)
        second.bring()

    hub.faults.add(Fault(kind="api", then=overtake))
    entry = first.bring()
    assert entry.record.manifest is not None
    assert [copy.commit for copy in entry.copies] == [entry.record.manifest.commit] * 2
    assert first.list_bad() == second.list_bad() == []
    copy = entry.find_copy("a")
    assert copy is not None
    assert (Path(copy.folder) / SHARDS[0]).read_bytes() == (other / SHARDS[0]).read_bytes()


def test_a_revision_is_a_model_of_its_own(node: FetchingNode, hub: LocalHub, tmp_path: Path) -> None:
    hub.commit(NAME, make_model(tmp_path / "other"), revision="v2")
    first, second = node.bring(), node.bring(f"{NAME}@v2")
    assert first.record.manifest != second.record.manifest
    assert node.list_bad() == node.list_bad(f"{NAME}@v2") == []


def test_a_peer_is_asked_before_the_hub(make_node: MakeNode, hub: LocalHub, database: Database) -> None:
    first = make_node("a")
    first.bring()
    server = PeerServer(database, node="a", cache=first.cache, host="127.0.0.1", port=0)
    server.start()
    try:
        place = Node("a", first.cache.find_store_id(), str(first.cache.folder), server.url, 1, 1)
        with database.transaction() as connection:
            note_node(connection, place)
        hub.close()
        second = make_node("b")
        assert second.bring().find_copy("b") is not None
        assert second.list_bad() == []
    finally:
        server.close()


def test_nodes_that_share_a_folder_fetch_a_model_once(make_node: MakeNode, hub: LocalHub, database: Database) -> None:
    first = make_node("a")
    with database.transaction() as connection:
        note_node(connection, Node("a", first.cache.find_store_id(), str(first.cache.folder), None, 1, 1))
    first.bring()
    hub.requests.clear()
    second = make_node("b", folder=first.cache.folder)
    copy = second.bring().find_copy("b")
    assert copy is not None
    assert copy.state is CopyState.AVAILABLE
    assert list(hub.requests) == []
    assert {progress.stage for progress in second.progress} == {"waiting"}


def test_joining_downloads_of_one_node_fetch_it_once(make_node: MakeNode, hub: LocalHub) -> None:
    hub.bytes_per_second = 3_000_000
    nodes = [make_node() for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        entries = list(pool.map(lambda node: node.bring(), nodes))
    assert {entry.status for entry in entries} == {ModelStatus.AVAILABLE}
    assert len(hub.requests.matching("cdn")) == len(SHARDS)
    assert sum(progress.stage == "waiting" for node in nodes for progress in node.progress) >= len(nodes)


def test_what_is_in_xet_comes_by_plain_http(node: FetchingNode, hub: LocalHub, served: Path) -> None:
    hub.add_repo(NAME, served, xet=True)
    assert node.bring().status is ModelStatus.AVAILABLE
    assert hub.requests.matching("cas") == []
    assert [request for request in hub.requests if "xet" in request.path] == []


def damage(node: FetchingNode, *paths: str) -> ModelEntry:
    entry = node.bring()
    copy = entry.find_copy("a")
    assert copy is not None
    for path in paths:
        (Path(copy.folder) / path).resolve().write_bytes(b"damaged")
    return entry


def test_exactly_the_files_that_are_named_are_repaired(node: FetchingNode, hub: LocalHub) -> None:
    manifest = damage(node, SHARDS[1], "tokenizer.json").record.manifest
    assert manifest is not None
    bad = [file for file in manifest.files if file.path in {SHARDS[1], "tokenizer.json"}]
    hub.requests.clear()
    entry = node.downloader.repair(NAME, bad, stop=threading.Event())
    assert entry.status is ModelStatus.AVAILABLE
    assert node.list_bad() == []
    fetched = {request.path.rpartition("/")[2] for request in hub.requests.matching("resolve")}
    assert fetched == {SHARDS[1], "tokenizer.json"}


def test_a_copy_that_cannot_be_repaired_stays_damaged(node: FetchingNode, hub: LocalHub) -> None:
    manifest = damage(node, SHARDS[1]).record.manifest
    assert manifest is not None
    hub.faults.add(Fault(kind="resolve", status=404, error_code="EntryNotFound", times=None))
    bad = [file for file in manifest.files if file.path == SHARDS[1]]
    with pytest.raises(BitingLipError):
        node.downloader.repair(NAME, bad, stop=threading.Event())
    entry = node.read()
    assert entry is not None
    copy = entry.find_copy("a")
    assert copy is not None
    assert copy.state is CopyState.DAMAGED
    assert not (Path(copy.folder) / SHARDS[1]).exists()
    assert entry.status is not ModelStatus.AVAILABLE
