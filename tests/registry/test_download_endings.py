"""Downloads that do not go well: killed, stopped, refused, spoiled. Nothing half is left, nothing wrong available."""

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from sqlalchemy import text

from bitinglip.domain.models import ModelStatus
from bitinglip.embedded import ServerUrls
from bitinglip.errors import (
    BitingLipError,
    ConfigurationError,
    DiskFullError,
    DownloadStoppedError,
    GatedModelError,
    HubNotFoundError,
    InvalidModelError,
    ModelDamagedError,
    ModelInUseError,
    ModelNotFoundError,
)
from bitinglip.store.copies import delete_copies
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, delete_entry, set_removing
from tests.conftest import eventually
from tests.hub import Fault, LocalHub
from tests.registry.model_files import LLAMA, write_files
from tests.registry.nodes import NAME, SHARD_BYTES, SHARDS, FetchingNode, MakeNode, run_elsewhere


def test_a_killed_download_goes_on_from_its_last_bytes(node: FetchingNode, hub: LocalHub) -> None:
    hub.bytes_per_second = 400_000
    with run_elsewhere(hub, node.cache.folder) as running:
        eventually(
            lambda: len(node.list_parts()) == 2 and all(part.stat().st_size > 300_000 for part in node.list_parts())
        )
        running.kill()
    sizes = {part.name.partition(".")[0]: part.stat().st_size for part in node.list_parts()}
    hub.bytes_per_second = None
    hub.requests.clear()
    node.bring()
    assert node.list_bad() == []
    assert {request.path.split("/")[3]: request.range for request in hub.requests.matching("cdn")} == {
        digest: f"bytes={size}-" for digest, size in sizes.items()
    }


def test_another_process_is_waited_for(node: FetchingNode, hub: LocalHub) -> None:
    hub.bytes_per_second = 1_000_000
    stages: list[str] = []
    with run_elsewhere(hub, node.cache.folder) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        node.downloader.bring(NAME, stop=threading.Event(), on_progress=lambda progress: stages.append(progress.stage))
        assert running.stdout.read() == "available\n"
    assert stages == ["waiting"]
    assert len(hub.requests.matching("cdn")) == len(SHARDS)


def stop_in_the_middle(node: FetchingNode, *, keep_parts: bool = False) -> float:
    """Seconds from the word to the end."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.bring, NAME, stop, keep_parts=keep_parts)
        eventually(lambda: any(progress.files for progress in node.progress))
        began = time.monotonic()
        stop.set()
        with pytest.raises(DownloadStoppedError, match=NAME):
            running.result(timeout=5)
        return time.monotonic() - began


def test_a_stop_ends_it_within_a_second_and_deletes_the_parts(make_node: MakeNode, hub: LocalHub) -> None:
    node = make_node(download_stall_seconds=60)
    hub.faults.add(Fault(kind="cdn", stall_after_bytes=500_000, times=None))
    assert stop_in_the_middle(node) < 1
    assert node.list_parts() == []
    entry = node.read()
    assert entry is not None
    assert entry.status is ModelStatus.FAILED
    # Nor does a thread wait for that server until it is called dead.
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("fetch-")], within=3)


def test_files_that_are_whole_outlive_a_stop(node: FetchingNode, hub: LocalHub) -> None:
    hub.faults.add(Fault(kind="cdn", path=f"*{SHARDS[0]}", stall_after_bytes=500_000, times=None))
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.bring, NAME, stopped)
        eventually(lambda: len(node.list_parts()) == 1 and len(node.list_files()) == 5)
        stopped.set()
        with pytest.raises(DownloadStoppedError):
            running.result(timeout=5)
    hub.faults.clear()
    hub.requests.clear()
    node.bring()
    assert node.list_bad() == []
    assert [request.path.rpartition("/")[2] for request in hub.requests.matching("cdn")] == [SHARDS[0]]


def test_parts_outlive_a_hand_back(node: FetchingNode, hub: LocalHub) -> None:
    hub.faults.add(Fault(kind="cdn", stall_after_bytes=500_000, times=None))
    assert stop_in_the_middle(node, keep_parts=True) < 1
    assert node.list_parts() != []


def test_a_stop_before_one_s_turn_is_obeyed(node: FetchingNode) -> None:
    stop = threading.Event()
    with node.cache.lock_to_write(NAME), ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.bring, NAME, stop)
        eventually(lambda: node.progress)
        stop.set()
        with pytest.raises(DownloadStoppedError):
            running.result(timeout=5)


def test_a_model_that_the_hub_does_not_know_leaves_nothing(node: FetchingNode) -> None:
    with pytest.raises(HubNotFoundError):
        node.bring("org/nothing")
    assert node.read("org/nothing") is None
    assert not node.cache.find_repo("org/nothing").exists()


def test_a_gated_model_leaves_nothing(node: FetchingNode, hub: LocalHub, served: Path) -> None:
    hub.add_repo(NAME, served, gated=True)
    with pytest.raises(GatedModelError, match="HF_TOKEN"):
        node.bring()
    assert node.read() is None
    assert node.list_files() == []


def test_code_of_its_own_is_refused_before_its_weights_are_fetched(
    node: FetchingNode, hub: LocalHub, served: Path
) -> None:
    write_files(served, {"config.json": {**LLAMA, "auto_map": {"AutoModel": "modeling.Own"}}})
    hub.commit(NAME, served)
    with pytest.raises(InvalidModelError, match="auto_map"):
        node.bring()
    assert hub.requests.matching("cdn") == []
    assert node.list_files() == []
    assert node.read() is None


def test_weights_that_are_no_safetensors_are_refused_and_deleted(
    node: FetchingNode, hub: LocalHub, served: Path
) -> None:
    (served / SHARDS[1]).write_bytes(os.urandom(100_000))
    hub.commit(NAME, served)
    with pytest.raises(InvalidModelError, match=SHARDS[1]):
        node.bring()
    assert node.list_files() == []


def test_a_refusal_deletes_nothing_of_what_others_have_fetched(node: FetchingNode, hub: LocalHub, served: Path) -> None:
    write_files(served, {"config.json": {**LLAMA, "auto_map": {"AutoModel": "modeling.Own"}}})
    hub.commit(NAME, served)
    theirs = Path(snapshot_download(NAME, endpoint=hub.url, cache_dir=node.cache.folder))
    before = node.list_files()
    with pytest.raises(InvalidModelError):
        node.bring()
    assert node.list_files() == before
    assert (theirs / SHARDS[0]).exists()


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(make_node: MakeNode, hub: LocalHub) -> None:
    node = make_node(model_disk_bytes=1_000_000)
    with pytest.raises(DiskFullError):
        node.bring()
    assert hub.requests.matching("cdn") == []
    assert node.list_files() == []


@pytest.mark.usefixtures("served", "database")
def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half(hub: LocalHub, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=4000000 tmpfs {disk}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk of its own")
    hub.bytes_per_second = 1_000_000
    with run_elsewhere(hub, disk, "--fill", before=mount) as running:
        assert running.communicate(timeout=30)[0].splitlines() == ["begun", "disk_full []"]


def test_a_folder_that_cannot_be_written_is_named(make_node: MakeNode, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    node = make_node(folder=tmp_path / "file" / "cache")
    with pytest.raises(ConfigurationError, match="HF_HUB_CACHE"):
        node.bring()


def test_an_error_of_one_file_ends_the_others(make_node: MakeNode, hub: LocalHub) -> None:
    node = make_node(download_stall_seconds=60)
    stalled = hub.faults.add(Fault(kind="cdn", path=f"*{SHARDS[0]}", stall_after_bytes=500_000, times=None))
    missing = Fault(kind="resolve", path=f"*{SHARDS[1]}", status=404, error_code="EntryNotFound")
    missing.then = lambda: eventually(lambda: stalled.applied)
    hub.faults.add(missing)
    began = time.monotonic()
    with pytest.raises(HubNotFoundError, match=SHARDS[1]):
        node.bring()
    assert time.monotonic() - began < 10


def test_a_database_that_is_away_meanwhile_keeps_no_bytes_from_coming(
    make_node: MakeNode, hub: LocalHub, servers: ServerUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.registry.transfer.progress.NOTE_SECONDS", 0.1)
    node = make_node(download_stall_seconds=60)
    held = hub.faults.add(Fault(kind="cdn", stall_after_bytes=500_000, times=2))
    admin = Database(servers.database_url)
    name = node.database.url.database
    with ThreadPoolExecutor(1) as pool, admin.engine.connect() as connection:
        running = pool.submit(node.bring)
        eventually(lambda: held.applied == 2)
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        seen = len(node.progress)
        eventually(lambda: len(node.progress) > seen + 3 or running.done())
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        held.release()
        assert running.result(timeout=20).status is ModelStatus.AVAILABLE
    admin.close()


def test_bytes_that_stay_wrong_are_never_available(node: FetchingNode, hub: LocalHub) -> None:
    hub.faults.add(Fault(kind="cdn", path=f"*{SHARDS[1]}", flip_at_byte=1_000_000, times=None))
    with pytest.raises(ModelDamagedError):
        node.bring()
    entry = node.read()
    assert entry is not None
    assert entry.status is ModelStatus.FAILED
    assert entry.error is not None
    assert entry.error["code"] == "model_damaged"


def test_a_list_of_files_is_proven_before_it_is_believed(node: FetchingNode, hub: LocalHub) -> None:
    spoiled = hub.faults.add(Fault(kind="resolve", path="*.index.json", flip_at_byte=0, times=2))
    assert node.bring().status is ModelStatus.AVAILABLE
    assert spoiled.applied == 2


def test_a_list_of_files_that_stays_wrong_is_an_error_that_may_pass(node: FetchingNode, hub: LocalHub) -> None:
    hub.faults.add(Fault(kind="resolve", path="*.index.json", flip_at_byte=0, times=None))
    with pytest.raises(ModelDamagedError, match="index") as raised:
        node.bring()
    assert raised.value.retryable


def test_a_later_attempt_forgives_the_error(node: FetchingNode, hub: LocalHub) -> None:
    hub.faults.add(Fault(kind="cdn", flip_at_byte=1_000, times=None))
    with pytest.raises(ModelDamagedError):
        node.bring()
    failed = node.read()
    assert failed is not None
    assert failed.status is ModelStatus.FAILED
    assert failed.error is not None
    assert failed.error["retryable"]
    hub.faults.clear()
    seen: list[ModelEntry | None] = []
    hub.faults.add(Fault(kind="cdn", then=lambda: seen.append(node.read())))
    assert node.bring().error is None
    assert seen[0] is not None
    assert seen[0].status is ModelStatus.DOWNLOADING


def test_a_model_that_is_being_removed_is_left_alone(node: FetchingNode) -> None:
    node.bring()
    with node.database.transaction() as connection:
        set_removing(connection, NAME)
    with pytest.raises(ModelInUseError, match="removed"):
        node.bring()


def test_a_model_that_is_removed_meanwhile_ends_its_download(node: FetchingNode, hub: LocalHub) -> None:
    def remove() -> None:
        with node.database.transaction() as connection:
            delete_copies(connection, NAME)
            delete_entry(connection, NAME)

    hub.faults.add(Fault(kind="cdn", then=remove))
    with pytest.raises(ModelNotFoundError):
        node.bring()
    assert node.list_files() == []


def make_fault(dice: random.Random) -> Fault:
    """Anything that can go wrong with a request for a file."""
    at = dice.randrange(1, SHARD_BYTES)
    kinds: list[Callable[[], Fault]] = [
        lambda: Fault(kind="cdn", cut_after_bytes=at),
        lambda: Fault(kind="cdn", cut_after_bytes=0),
        lambda: Fault(kind="cdn", flip_at_byte=at),
        lambda: Fault(kind="cdn", length_off_by=dice.choice([-at, at])),
        lambda: Fault(kind="cdn", stall_after_bytes=dice.choice([0, at])),
        lambda: Fault(kind=dice.choice(["cdn", "resolve"]), status=dice.choice([401, 403, 404, 429, 500, 503])),
        lambda: Fault(kind="resolve", status=403, error_code="GatedRepo"),
        lambda: Fault(kind="api", status=dice.choice([404, 429, 500])),
        lambda: Fault(kind="resolve", path="*.json", flip_at_byte=1),
    ]
    fault = dice.choice(kinds)()
    fault.times = dice.choice([1, 1, 2, None])
    return fault


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_nothing_unproven_is_available(make_node: MakeNode, hub: LocalHub, seed: int) -> None:
    dice = random.Random(seed)
    node = make_node(download_stall_seconds=0.2)
    for _ in range(dice.randrange(1, 4)):
        hub.faults.add(make_fault(dice))
    try:
        entry = node.bring()
    except BitingLipError:
        failed = node.read()
        assert failed is None or failed.status is ModelStatus.FAILED
    else:
        assert entry.status is ModelStatus.AVAILABLE
        assert node.list_bad() == []
