"""A disk says by itself which models are on it: the database that knew them is not needed."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from bitinglip.domain.models import CopyState, ModelSource, ModelStatus
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.registry import ModelRegistry
from bitinglip.registry.scan import Finding
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelRecord
from tests.factories import execute
from tests.hub import LocalHub
from tests.registry.kept import (
    damage,
    find_snapshot,
    keep,
    keep_files,
    make_model,
    write_files,
)


def tell(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    return [(finding.name, finding.outcome) for finding in findings]


def test_a_disk_whose_database_was_lost_is_registered_again(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    plain = keep(database, cache, "org/a", make_model(seed=1))
    tagged = keep(database, cache, "org/b@v1", make_model(seed=2))
    unnamed = keep_files(cache, "org/c", make_model(seed=3))
    shutil.rmtree(cache.find_repo("org/c") / "refs")
    execute(database, "DELETE FROM models")

    findings = registry.scan()

    assert tell(findings) == [
        ("org/a", "available"),
        ("org/b@v1", "available"),
        (f"org/c@{unnamed.commit}", "available"),
    ]
    assert all(finding.is_new for finding in findings)
    for record in (plain, tagged):
        entry = registry.get(record.name)
        assert (entry.record.manifest, entry.status) == (record.manifest, "available")
        assert (entry.record.type, entry.record.parameters, entry.record.context_tokens) == ("text", 250, 512)
    assert tell(registry.scan()) == tell(findings)
    assert not any(finding.is_new for finding in registry.scan())


def test_what_is_not_whole_is_told_with_the_reason_and_not_registered(
    registry: ModelRegistry, cache: ModelCache
) -> None:
    keep_files(cache, "org/damaged", make_model(seed=1))
    damage(cache.find_repo("org/damaged") / "snapshots" / find_only_commit(cache, "org/damaged") / "model.safetensors")
    keep_files(cache, "org/missing", make_model(seed=2))
    (cache.find_snapshot("org/missing", find_only_commit(cache, "org/missing")) / "config.json").resolve().unlink()
    keep_files(cache, "org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"pickled"})
    keep_files(cache, "org/shards", {**make_model(), "model.safetensors.index.json": make_index("other.safetensors")})
    code = json.dumps({"auto_map": {"AutoModel": "code.Model"}}).encode()
    keep_files(cache, "org/unsafe", {**make_model(), "config.json": code})
    plain = cache.find_snapshot("org/unlinked", "d" * 40)
    write_files(plain, make_model())

    reasons = {finding.name: (finding.outcome, finding.reason) for finding in registry.scan()}

    for name, outcome, reason in (
        ("org/damaged", "damaged", "other bytes than they should have: model.safetensors; fetch it with"),
        ("org/missing", "damaged", "config.json"),
        ("org/pickled", "refused", "pickled"),
        ("org/shards", "refused", "other.safetensors"),
        ("org/unsafe", "refused", "auto_map"),
        (f"org/unlinked@{'d' * 40}", "refused", "no hash is known of config.json"),
    ):
        assert reasons[name][0] == outcome
        assert reason in reasons[name][1]
    assert len(reasons) == 6
    assert registry.list() == []


def test_a_registered_copy_is_proven_again_and_forgotten_when_its_files_are_gone(
    registry: ModelRegistry, database: Database, cache: ModelCache, tmp_path: Path
) -> None:
    good = keep(database, cache, "org/good", make_model(seed=1), state=CopyState.DAMAGED)
    bad = keep(database, cache, "org/bad", make_model(seed=2))
    gone = keep(database, cache, "org/gone", make_model(seed=3))
    damage(find_snapshot(cache, bad) / "model.safetensors")
    shutil.rmtree(cache.find_repo("org/gone"))
    kept, lost, altered = (write_files(tmp_path / name, make_model()) for name in ("kept", "lost", "altered"))
    for folder in (kept, lost, altered):
        registry.add_folder(folder)
    shutil.rmtree(lost)
    damage(altered / "tokenizer.json")

    findings = {finding.name: finding for finding in registry.scan()}

    assert {name: finding.outcome for name, finding in findings.items()} == {
        good.name: "available",
        bad.name: "damaged",
        gone.name: "gone",
        str(kept): "available",
        str(lost): "gone",
        str(altered): "damaged",
    }
    assert "bitinglip model verify org/bad" in findings[bad.name].reason
    assert "bitinglip model pull org/gone" in findings[gone.name].reason
    assert "put the files back" in findings[str(altered)].reason
    states = {entry.name: [copy.state for copy in entry.copies] for entry in registry.list()}
    assert states == {
        good.name: ["available"],
        bad.name: ["damaged"],
        gone.name: [],
        str(kept): ["available"],
        str(lost): [],
        str(altered): ["damaged"],
    }


def test_a_commit_that_a_branch_moved_to_does_not_replace_the_registered_one(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    old = keep(database, cache, "org/a", make_model(seed=1))
    new = keep_files(cache, "org/a", make_model(seed=2))
    assert old.manifest is not None

    findings = registry.scan()

    assert tell(findings) == [("org/a", "available"), ("org/a", "refused")]
    assert old.manifest.commit in findings[1].reason
    assert new.commit in findings[1].reason
    assert registry.get("org/a").record.manifest == old.manifest


def test_a_commit_that_lost_its_name_is_still_the_registered_model(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    keep(database, cache, "org/a@v1", make_model())
    shutil.rmtree(cache.find_repo("org/a") / "refs")

    assert tell(registry.scan()) == [("org/a@v1", "available")]

    assert [entry.name for entry in registry.list()] == ["org/a@v1"]


def test_a_model_that_is_registered_without_a_manifest_is_completed(registry: ModelRegistry, cache: ModelCache) -> None:
    registry.add(ModelRecord("org/a", ModelSource.HUB, repo="org/a"))
    manifest = keep_files(cache, "org/a", make_model())

    assert tell(registry.scan()) == [("org/a", "available")]

    assert registry.get("org/a").record.manifest == manifest


def test_what_somebody_fetches_now_is_left_to_him(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    keep(database, cache, "org/a", state=CopyState.DOWNLOADING)
    keep_files(cache, "org/b", make_model())
    with cache.lock_to_write("org/a"), cache.lock_to_write("org/b"):
        assert tell(registry.scan()) == [("org/a", "busy"), ("org/b", "busy")]
    assert [copy.state for copy in registry.get("org/a").copies] == [CopyState.DOWNLOADING]


def test_what_is_being_removed_is_not_brought_back(
    registry: ModelRegistry, database: Database, cache: ModelCache
) -> None:
    keep(database, cache, "org/a", make_model())
    with_lock = cache.lock_to_use("org/a")
    registry.remove("org/a", force=True)
    os.close(with_lock)

    assert registry.scan() == []

    assert registry.get("org/a").status is ModelStatus.REMOVING


def test_what_huggingface_hub_fetched_is_found(
    registry: ModelRegistry, cache: ModelCache, hub: LocalHub, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    served = write_files(tmp_path / "served", {**make_model(), "README.md": b"# A model", "code.py": b"import os"})
    commit = hub.add_repo("org/a", served)
    snapshot_download("org/a", endpoint=hub.url, cache_dir=cache.folder, token=False)

    assert tell(registry.scan()) == [("org/a", "available")]

    manifest = registry.get("org/a").record.manifest
    assert manifest is not None
    assert manifest.commit == commit
    assert sorted(file.path for file in manifest.files) == sorted(make_model())


def find_only_commit(cache: ModelCache, repo: str) -> str:
    (snapshot,) = (cache.find_repo(repo) / "snapshots").iterdir()
    return snapshot.name


def make_index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"w{number}": shard for number, shard in enumerate(shards)}}).encode()
