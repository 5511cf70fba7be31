"""Who leaves a full disk for a new model, and who stays."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitinglip.domain.models import CopyState, ModelSource
from bitinglip.errors import DiskFullError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.room import make_room
from bitinglip.settings import ModelSettings, ServerUrls
from bitinglip.store.copies import Node, note_copy, note_node, use_copies
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelRecord, insert_entry, set_pinned, set_removing
from tests.conftest import REPOSITORY
from tests.registry.kept import NODE, find_entry, keep, make_copy, make_files

SMALL_DISK_BYTES = 4_000_000

KEEP_LOCK = """
import sys
from pathlib import Path
from bitinglip.registry.cache import ModelCache
descriptor = ModelCache(Path(sys.argv[1])).lock_to_use(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def ask_for_room(
    database: Database, cache: ModelCache, needed_bytes: int, *, model: str = "org/new", **limits: int
) -> None:
    given: dict[str, Any] = {"model_spare_bytes": 0, **limits}
    settings = ModelSettings(**given)
    make_room(database, node=NODE, cache=cache, model=model, needed_bytes=needed_bytes, settings=settings)


def use(database: Database, *names: str) -> None:
    for name in names:
        with database.transaction() as connection:
            use_copies(connection, NODE, [name])


def is_kept(database: Database, cache: ModelCache, record: ModelRecord) -> bool:
    """Whether the copy is there, in the records and on disk; never in one of them only."""
    assert record.manifest is not None
    assert record.repo is not None
    entry = find_entry(database, record.name)
    is_recorded = entry is not None and bool(entry.copies)
    assert cache.is_linked(record.repo, record.manifest) == is_recorded
    return is_recorded


@contextmanager
def used_by_another_process(cache: ModelCache, repo: str) -> Iterator[None]:
    command = [sys.executable, "-c", KEEP_LOCK, str(cache.folder), repo]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


def test_the_least_recently_used_leave_first_and_no_more_than_need_to(database: Database, cache: ModelCache) -> None:
    kept = {name: keep(database, cache, name) for name in ("org/a", "org/b", "org/c", "org/d")}
    use(database, "org/c", "org/a", "org/d", "org/b")

    ask_for_room(database, cache, 1_500, model_disk_bytes=4_000)

    assert [name for name, record in kept.items() if is_kept(database, cache, record)] == ["org/b", "org/d"]


def test_nothing_leaves_while_there_is_room(database: Database, cache: ModelCache) -> None:
    record = keep(database, cache, "org/a")

    ask_for_room(database, cache, 1_000, model_disk_bytes=2_000)
    ask_for_room(database, cache, 0, model_disk_bytes=0)

    assert is_kept(database, cache, record)


def test_a_pinned_model_stays_though_it_is_the_least_used(database: Database, cache: ModelCache) -> None:
    pinned, other = keep(database, cache, "org/pinned"), keep(database, cache, "org/other")
    with database.transaction() as connection:
        set_pinned(connection, "org/pinned", pinned=True)

    ask_for_room(database, cache, 500, model_disk_bytes=2_000)

    assert is_kept(database, cache, pinned)
    assert not is_kept(database, cache, other)


def test_a_model_that_another_process_uses_stays(database: Database, cache: ModelCache) -> None:
    used, other = keep(database, cache, "org/used"), keep(database, cache, "org/other")

    with used_by_another_process(cache, "org/used"):
        ask_for_room(database, cache, 500, model_disk_bytes=2_000)
        assert is_kept(database, cache, used)
        assert not is_kept(database, cache, other)

    ask_for_room(database, cache, 1_500, model_disk_bytes=2_000)
    assert not is_kept(database, cache, used)


def test_without_enough_that_may_leave_nothing_does_and_the_error_has_the_numbers(
    database: Database, cache: ModelCache
) -> None:
    records = [keep(database, cache, name) for name in ("org/free", "org/pinned", "org/used")]
    with database.transaction() as connection:
        set_pinned(connection, "org/pinned", pinned=True)

    with used_by_another_process(cache, "org/used"), pytest.raises(DiskFullError) as caught:
        ask_for_room(database, cache, 5_000, model_disk_bytes=4_000)

    assert all(is_kept(database, cache, record) for record in records)
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (5_000, 1_000)
    for part in (
        "5,000 bytes more, 1,000 are free",
        f"node {NODE!r}",
        "take 3,000 of a budget of 4,000 (BITINGLIP_MODEL_DISK_BYTES)",
        "others could leave and free 1,000",
        "org/pinned (1,000, pinned), org/used (1,000, in use)",
        "bitinglip model remove",
    ):
        assert part in str(caught.value)


def test_a_budget_of_nothing_takes_nothing(database: Database, cache: ModelCache) -> None:
    with pytest.raises(DiskFullError, match=r"0 are free .* a budget of 0 .* no other model could leave"):
        ask_for_room(database, cache, 1, model_disk_bytes=0)


def test_none_of_the_files_leave_that_the_room_is_for(database: Database, cache: ModelCache) -> None:
    begun = keep(database, cache, "org/new", state=CopyState.DAMAGED)

    with pytest.raises(DiskFullError):
        ask_for_room(database, cache, 500, model_disk_bytes=1_000)

    assert is_kept(database, cache, begun)


def test_what_is_left_free_is_not_for_models(database: Database, cache: ModelCache) -> None:
    with pytest.raises(DiskFullError, match="BITINGLIP_MODEL_SPARE_BYTES"):
        ask_for_room(database, cache, 1, model_spare_bytes=10**18)


def test_what_is_being_removed_or_was_left_half_fetched_leaves_before_all_others(
    database: Database, cache: ModelCache
) -> None:
    oldest, half = keep(database, cache, "org/a"), keep(database, cache, "org/half", state=CopyState.DAMAGED)
    removing = keep(database, cache, "org/removing")
    use(database, "org/half", "org/removing")
    with database.transaction() as connection:
        set_removing(connection, "org/removing")

    ask_for_room(database, cache, 900, model_disk_bytes=3_000)
    assert find_entry(database, "org/removing") is None
    assert is_kept(database, cache, half)

    ask_for_room(database, cache, 1_900, model_disk_bytes=3_000)
    assert not is_kept(database, cache, half)
    assert is_kept(database, cache, oldest)
    assert not cache.find_snapshot("org/removing", removing.manifest.commit).exists()  # type: ignore[union-attr]


def test_two_names_of_one_commit_share_its_files(database: Database, cache: ModelCache) -> None:
    contents = {"model.safetensors": os.urandom(1_000)}
    main, tag = keep(database, cache, "org/a", contents), keep(database, cache, "org/a@v1", contents)
    other = keep(database, cache, "org/b")
    with database.transaction() as connection:
        set_pinned(connection, "org/a", pinned=True)

    ask_for_room(database, cache, 500, model_disk_bytes=2_000)

    assert is_kept(database, cache, main)
    assert is_kept(database, cache, tag)
    assert not is_kept(database, cache, other)


def test_a_commit_that_shares_its_blobs_does_not_leave_for_nothing(database: Database, cache: ModelCache) -> None:
    shared = os.urandom(1_000)
    older = keep(database, cache, "org/a", {"model.safetensors": shared, "config.json": b"{}"})
    newer = keep(database, cache, "org/a@v2", {"model.safetensors": shared, "config.json": b"[]"})
    with database.transaction() as connection:
        set_pinned(connection, "org/a@v2", pinned=True)

    with pytest.raises(DiskFullError, match="others could leave and free 2, "):
        ask_for_room(database, cache, 500, model_disk_bytes=1_004)

    assert is_kept(database, cache, older)
    ask_for_room(database, cache, 2, model_disk_bytes=1_004)
    assert not is_kept(database, cache, older)
    assert is_kept(database, cache, newer)


def test_the_last_copy_leaves_word_of_where_it_went(database: Database, cache: ModelCache) -> None:
    keep(database, cache, "org/a")

    ask_for_room(database, cache, 1_500, model_disk_bytes=2_000)

    entry = find_entry(database, "org/a")
    assert entry is not None
    assert entry.error is not None
    assert (entry.status, entry.error["code"]) == ("failed", "evicted")
    assert "bitinglip model pull org/a" in entry.error["message"]


def test_what_an_earlier_download_has_still_to_write_counts_as_taken(database: Database, cache: ModelCache) -> None:
    for name in ("org/first", "org/second"):
        manifest = make_files({"model.safetensors": bytes(1_000)})
        record = ModelRecord(name, ModelSource.HUB, "text", name, None, manifest)
        with database.transaction() as connection:
            insert_entry(connection, record)
            note_copy(connection, replace(make_copy(cache, record, state=CopyState.DOWNLOADING), done_bytes=400))

    ask_for_room(database, cache, 600, model="org/first", model_disk_bytes=1_000)
    with pytest.raises(DiskFullError, match="600 are for downloads under way"):
        ask_for_room(database, cache, 600, model="org/second", model_disk_bytes=1_000)


def test_what_leaves_is_gone_for_every_node_that_shares_the_folder(database: Database, cache: ModelCache) -> None:
    record = keep(database, cache, "org/a")
    elsewhere = make_copy(cache, record, node="elsewhere")
    with database.transaction() as connection:
        for node in (NODE, "neighbour"):
            note_node(connection, Node(node, cache.find_store_id(), str(cache.folder), None, 1, 1))
        note_node(connection, Node("elsewhere", uuid.uuid4(), str(cache.folder), None, 1, 1))
        note_copy(connection, make_copy(cache, record, node="neighbour"))
        note_copy(connection, elsewhere)

    ask_for_room(database, cache, 1_500, model_disk_bytes=2_000)

    entry = find_entry(database, "org/a")
    assert entry is not None
    assert [copy.node for copy in entry.copies] == ["elsewhere"]
    assert (entry.status, entry.error) == ("available", None)


def test_a_small_disk_is_not_filled(database: Database, urls: ServerUrls, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={SMALL_DISK_BYTES} tmpfs {disk}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk of its own")

    program = f"{mount} && exec {sys.executable} -m tests.registry.small_disk {disk}"
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr
    left, error = ended.stdout.splitlines()
    assert left == "org/b org/new"
    assert "10,000,000 bytes more" in error
    entry = find_entry(database, "org/a")
    assert entry is not None
    assert not entry.copies
