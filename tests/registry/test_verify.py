"""Every byte of a copy is proven again, and only what is wrong is fetched."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bitinglip.domain.models import CopyState, ModelStatus
from bitinglip.errors import (
    BitingLipError,
    DownloadStoppedError,
    ModelInUseError,
    NotFoundError,
)
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.downloader import ModelDownloader
from bitinglip.registry.hub.client import Hub
from bitinglip.registry.registry import ModelRegistry
from bitinglip.registry.transfer.progress import DownloadProgress
from bitinglip.settings import ModelSettings
from bitinglip.store.database import Database
from tests.factories import execute
from tests.hub import LocalHub
from tests.registry.kept import NODE, damage, find_snapshot, keep, make_model, write_files


def test_a_copy_that_is_whole_is_found_so_and_its_progress_is_told(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a", make_model())
    execute(database, "UPDATE model_copies SET verified_at = now() - interval '1 day'")
    seen: list[DownloadProgress] = []

    verification = registry.verify("org/a", on_progress=seen.append)

    assert verification.is_good
    assert not verification.bad
    (copy,) = verification.entry.copies
    assert copy.verified_at is not None
    assert execute(database, "SELECT now() - verified_at < interval '1 minute' FROM model_copies") == [(True,)]
    assert record.manifest is not None
    assert (seen[-1].stage, seen[-1].done_bytes, seen[-1].total_bytes) == (
        "verifying",
        record.manifest.total_bytes,
        record.manifest.total_bytes,
    )


@pytest.mark.parametrize("harm", [damage, lambda path: path.resolve().unlink(), lambda path: os.truncate(path, 10)])
def test_a_damaged_file_alone_is_fetched_anew(
    database: Database, cache: ModelCache, hub: LocalHub, tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    contents = make_model()
    hub.add_repo("org/a", write_files(tmp_path / "served", contents))
    served = Hub(endpoint=hub.url)
    downloader = ModelDownloader(database, node=NODE, cache=cache, hub=served, settings=ModelSettings())
    record = downloader.bring("org/a", stop=threading.Event()).record
    hub.requests.clear()
    harm(find_snapshot(cache, record) / "model.safetensors")

    verification = ModelRegistry(database, node=NODE, cache=cache, hub=served).verify("org/a")

    assert [file.path for file in verification.bad] == ["model.safetensors"]
    assert verification.repaired
    assert verification.is_good
    assert verification.entry.status is ModelStatus.AVAILABLE
    assert {file.name: file.read_bytes() for file in find_snapshot(cache, record).iterdir()} == contents
    assert hub.requests.sent_bytes("cdn") == len(contents["model.safetensors"])
    assert not hub.requests.matching("resolve", "*.json")


def test_without_a_repair_a_damaged_copy_is_no_longer_available(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a", make_model())
    damage(find_snapshot(cache, record) / "model.safetensors")

    verification = registry.verify("org/a", repair=False)

    assert not verification.is_good
    assert verification.entry.status is ModelStatus.FAILED
    assert [copy.state for copy in verification.entry.copies] == [CopyState.DAMAGED]


def test_a_repair_that_fails_leaves_the_copy_damaged(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a", make_model())
    damage(find_snapshot(cache, record) / "model.safetensors")

    with pytest.raises(BitingLipError):
        registry.verify("org/a")

    assert [copy.state for copy in registry.get("org/a").copies] == [CopyState.DAMAGED]


def test_links_that_are_lost_are_made_anew_without_a_network(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a", make_model())
    (find_snapshot(cache, record) / "model.safetensors").unlink()
    wrong = find_snapshot(cache, record) / "config.json"
    wrong.unlink()
    wrong.symlink_to("tokenizer.json")

    assert registry.verify("org/a", repair=False).is_good

    assert record.manifest is not None
    assert cache.is_linked("org/a", record.manifest)
    assert wrong.read_bytes() == make_model()["config.json"]


def test_a_copy_that_was_damaged_and_is_whole_again_is_available(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    keep(database, cache, "org/a", make_model(), state=CopyState.DAMAGED)
    assert registry.verify("org/a").entry.status is ModelStatus.AVAILABLE


def test_a_damaged_folder_cannot_be_repaired(registry: ModelRegistry, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine", make_model())
    registry.add_folder(folder)
    damage(folder / "tokenizer.json")

    verification = registry.verify(str(folder))

    assert [file.path for file in verification.bad] == ["tokenizer.json"]
    assert not verification.is_good
    assert verification.entry.status is ModelStatus.FAILED


def test_what_this_node_does_not_have_it_cannot_verify(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    keep(database, cache, "org/a", node="away")
    with pytest.raises(NotFoundError, match="it is on: away; fetch it with 'bitinglip model pull org/a'"):
        registry.verify("org/a")


def test_what_is_being_fetched_is_not_verified(registry: ModelRegistry, database: Database, cache: ModelCache) -> None:
    keep(database, cache, "org/a", state=CopyState.DOWNLOADING)
    with cache.lock_to_write("org/a"), pytest.raises(ModelInUseError, match="being fetched"):
        registry.verify("org/a")


def test_a_verification_is_stopped(registry: ModelRegistry, database: Database, cache: ModelCache) -> None:
    keep(database, cache, "org/a", make_model())
    stop = threading.Event()
    stop.set()
    with pytest.raises(DownloadStoppedError):
        registry.verify("org/a", stop=stop)
    assert registry.get("org/a").status is ModelStatus.AVAILABLE
