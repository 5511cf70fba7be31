"""What is registered is listed, pinned, dumped and restored; a local folder is registered by its path."""

import json
from pathlib import Path

import pytest

from bitinglip.domain.models import ModelSource, ModelStatus
from bitinglip.errors import (
    InvalidModelError,
    InvalidRequestError,
    ModelExistsError,
    ModelNotFoundError,
)
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.documents import write_entry
from bitinglip.registry.registry import ModelRegistry
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelRecord
from tests.factories import execute
from tests.registry.kept import (
    NODE,
    damage,
    keep,
    make_model,
    write_files,
)


def test_what_is_not_registered_is_refused_with_the_command_that_fetches_it(registry: ModelRegistry) -> None:
    with pytest.raises(ModelNotFoundError, match="bitinglip model pull org/name"):
        registry.get("org/name")


def test_the_main_branch_need_not_be_named(registry: ModelRegistry, database: Database, cache: ModelCache) -> None:
    keep(database, cache, "org/name")
    assert registry.get("org/name@main").name == "org/name"
    with pytest.raises(ModelNotFoundError):
        registry.get("org/name@v1")


def test_a_name_is_registered_once(registry: ModelRegistry) -> None:
    record = ModelRecord("org/name", ModelSource.HUB, repo="org/name")
    assert registry.add(record).status is ModelStatus.FAILED
    with pytest.raises(ModelExistsError, match="bitinglip model show org/name"):
        registry.add(record)


def test_models_are_listed_by_name_and_pinned(registry: ModelRegistry, database: Database, cache: ModelCache) -> None:
    for name in ("org/b", "org/a"):
        keep(database, cache, name)
    assert registry.pin("org/a").pinned
    assert [(entry.name, entry.pinned) for entry in registry.list()] == [("org/a", True), ("org/b", False)]
    assert not registry.pin("org/a", pinned=False).pinned


def test_a_local_folder_is_registered_by_its_path_with_every_file_hashed(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    contents = make_model()
    folder = write_files(tmp_path / "mine", contents)

    entry = registry.add_folder(tmp_path / "." / "mine")

    assert (entry.name, entry.status, entry.record.source) == (str(folder), "available", "folder")
    assert (entry.record.type, entry.record.parameters, entry.record.dtype) == ("text", 250, "F32")
    assert entry.record.manifest is not None
    assert sorted(file.path for file in entry.record.manifest.files) == sorted(contents)
    assert all(file.sha256 for file in entry.record.manifest.files)
    assert registry.get(f"{folder}/") == entry
    with pytest.raises(ModelExistsError):
        registry.add_folder(folder)


def test_a_folder_that_may_not_be_used_is_not_registered(registry: ModelRegistry, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine", {"config.json": b"{}", "pytorch_model.bin": b"pickled"})
    with pytest.raises(InvalidModelError, match="pickled"):
        registry.add_folder(folder)
    assert registry.list() == []


def test_another_node_with_the_same_folder_adds_its_copy(
    registry: ModelRegistry, database: Database, cache: ModelCache, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "mine", make_model())
    registry.add_folder(folder)
    neighbour = ModelRegistry(database, node="neighbour", cache=cache)

    assert [copy.node for copy in neighbour.add_folder(folder).copies] == [NODE, "neighbour"]

    damage(folder / "tokenizer.json")
    with pytest.raises(ModelExistsError):
        ModelRegistry(database, node="third", cache=cache).add_folder(folder)


def test_a_dump_restores_what_is_registered(database: Database, cache: ModelCache, tmp_path: Path) -> None:
    registry = ModelRegistry(database, node=NODE, cache=cache)
    keep(database, cache, "org/a", make_model())
    keep(database, cache, "org/b@v1", make_model(seed=1))
    registry.pin("org/a")
    registry.add_folder(write_files(tmp_path / "mine", make_model()))
    registry.add(ModelRecord("org/c", ModelSource.HUB, repo="org/c", licence="mit", tags=("tiny",)))
    written = [json.loads(json.dumps(write_entry(entry))) for entry in registry.list()]
    dump = registry.dump()
    execute(database, "DELETE FROM models")

    assert registry.restore(written) == []

    assert registry.dump() == dump
    assert {entry.status for entry in registry.list()} == {ModelStatus.FAILED}
    error = registry.get("org/a").error
    assert error is not None
    assert "bitinglip model scan" in error["message"]
    assert [finding.outcome for finding in registry.scan()] == ["available", "available"]
    assert registry.get("org/a").error is None


def test_a_restore_leaves_what_is_registered_as_it_is(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    keep(database, cache, "org/a", make_model())
    (document,) = registry.dump()

    left = registry.restore([{**document, "licence": "other"}, {**document, "name": "org/b", "repo": "org/b"}])

    assert left == ["org/a"]
    assert registry.get("org/a").record.licence is None
    assert registry.get("org/b").record.manifest == registry.get("org/a").record.manifest


@pytest.mark.parametrize(
    "change",
    [
        {"name": None},
        {"name": "../../etc"},
        {"repo": "other/name"},
        {"source": "elsewhere"},
        {"files": [{"path": "../../passwd", "size": 1, "sha256": "a" * 64}]},
        {"files": [{"path": "model.safetensors", "size": 1}]},
        {"commit": "main"},
        {"weight_bytes": "many"},
    ],
)
def test_a_dump_that_cannot_be_read_restores_nothing(
    registry: ModelRegistry, database: Database, cache: ModelCache, change: dict[str, object]
) -> None:
    keep(database, cache, "org/a", make_model())
    (document,) = registry.dump()
    execute(database, "DELETE FROM models")

    with pytest.raises(InvalidRequestError):
        registry.restore([document, {**document, "name": "org/b", "repo": "org/b", **change}])

    assert registry.list() == []
