"""A model goes from every node, unless somebody needs it."""

import os
from pathlib import Path

import pytest

from bitinglip.domain.models import CopyState, ModelSource, ModelStatus
from bitinglip.errors import (
    InvalidRequestError,
    ModelInUseError,
)
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.registry import ModelRegistry
from bitinglip.store.copies import Node, note_copy, note_node
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelRecord, set_download_task
from tests.factories import execute, make_echo, make_worker, submit
from tests.registry.kept import (
    NODE,
    find_entry,
    find_snapshot,
    keep,
    list_files,
    make_copy,
    make_model,
    write_files,
)


def test_a_model_that_is_removed_leaves_nothing(registry: ModelRegistry, database: Database, cache: ModelCache) -> None:
    keep(database, cache, "org/a", 1_000)
    stays = keep(database, cache, "org/b")

    removal = registry.remove("org/a")

    assert (removal.freed_bytes, removal.waiting_nodes) == (1_000, ())
    assert find_entry(database, "org/a") is None
    assert not cache.find_repo("org/a").exists()
    assert find_snapshot(cache, stays).exists()


def test_what_another_node_has_is_removed_when_that_node_sees_it(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a")
    with database.transaction() as connection:
        note_copy(connection, make_copy(cache, record, node="away"))

    assert registry.remove("org/a").waiting_nodes == ("away",)
    assert registry.get("org/a").status is ModelStatus.REMOVING

    assert registry.remove("org/a", force=True).waiting_nodes == ()
    assert find_entry(database, "org/a") is None


def test_force_does_not_forget_the_copy_of_a_node_that_is_there(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a")
    with database.transaction() as connection:
        note_copy(connection, make_copy(cache, record, node="neighbour"))
        note_node(connection, Node("neighbour", cache.find_store_id(), "/elsewhere", None, 1, 1))

    assert registry.remove("org/a", force=True).waiting_nodes == ("neighbour",)


def test_a_model_that_tasks_need_stays_and_the_error_says_whose(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a")
    ids = submit(database, make_echo(agent="bot"), make_echo(agent="other"))
    execute(database, "UPDATE tasks SET model = 'org/a' WHERE id = ANY(:ids)", ids=ids)

    with pytest.raises(ModelInUseError, match=r"of bot, other: 2 wait, 0 run; .*task cancel --model org/a"):
        registry.remove("org/a")

    assert registry.get("org/a").status is ModelStatus.AVAILABLE
    assert find_snapshot(cache, record).exists()
    registry.remove("org/a", force=True)
    assert find_entry(database, "org/a") is None


def test_a_model_that_a_worker_holds_stays(registry: ModelRegistry, database: Database, cache: ModelCache) -> None:
    keep(database, cache, "org/a")
    make_worker(database, "one", models=["org/a"])
    with pytest.raises(ModelInUseError, match="held by the engine of one on node"):
        registry.remove("org/a")


def test_a_model_that_is_being_fetched_stays(registry: ModelRegistry, database: Database, cache: ModelCache) -> None:
    keep(database, cache, "org/a", state=CopyState.DOWNLOADING)
    (task_id,) = submit(database, make_echo())
    with database.transaction() as connection:
        set_download_task(connection, "org/a", task_id)
    with pytest.raises(ModelInUseError, match=f"bitinglip task cancel {task_id}"):
        registry.remove("org/a")


def test_the_files_of_a_model_in_use_stay_until_it_is_let_go(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a")
    descriptor = cache.lock_to_use("org/a")

    with pytest.raises(ModelInUseError, match="used on this node"):
        registry.remove("org/a")
    assert registry.get("org/a").status is ModelStatus.AVAILABLE
    assert registry.remove("org/a", force=True).waiting_nodes == (NODE,)
    assert find_snapshot(cache, record).exists()

    os.close(descriptor)
    assert registry.remove("org/a", force=True).freed_bytes == 1_000
    assert find_entry(database, "org/a") is None


def test_a_registered_folder_is_forgotten_and_its_files_stay(
    registry: ModelRegistry, database: Database, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "mine", make_model())
    registry.add_folder(folder)
    before = list_files(folder)

    registry.remove(str(folder))

    assert find_entry(database, str(folder)) is None
    assert list_files(folder) == before


def test_a_bundled_model_stays(registry: ModelRegistry) -> None:
    registry.add(ModelRecord("demo", ModelSource.BUNDLED))
    with pytest.raises(InvalidRequestError, match="comes with bitinglip"):
        registry.remove("demo", force=True)


def test_what_another_name_of_the_commit_needs_stays(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    contents = make_model()
    record = keep(database, cache, "org/a", contents)
    keep(database, cache, "org/a@v1", contents)

    assert registry.remove("org/a@v1").freed_bytes == 0

    assert record.manifest is not None
    assert cache.is_linked("org/a", record.manifest)
    assert registry.verify("org/a", repair=False).is_good
