"""`bitinglip model`: listed, shown, verified, found again, pinned and removed from the command line."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from huggingface_hub import constants

from bitinglip.client import Client
from bitinglip.domain.models import CopyState, ModelSource
from bitinglip.domain.task import Status
from bitinglip.registry.cache import ModelCache
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelRecord, insert_entry, note_error, set_download_task
from tests.cli.conftest import Run, Start, read_lines
from tests.factories import execute, make_echo, make_worker, submit
from tests.hub import LocalHub
from tests.registry.kept import NODE, damage, find_entry, find_snapshot, keep, make_model, write_files

pytestmark = pytest.mark.usefixtures("cache")


def test_a_list_without_models_says_how_to_have_some(run: Run, client: Client) -> None:
    listed = run("model", "list")
    assert listed.exit_code == 0
    assert "bitinglip model pull" in listed.stderr
    assert run("model", "list", "--json").stdout == ""


def test_what_comes_is_listed_with_how_much_of_it_is_there(
    run: Run, client: Client, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a", 1_000, state=CopyState.DOWNLOADING)
    keep(database, cache, "org/b")
    execute(database, "UPDATE model_copies SET done_bytes = 430 WHERE model = :name", name=record.name)

    lines = run("model", "list").stdout.splitlines()

    assert lines[1].startswith("org/a  downloading 43%")
    assert lines[2].startswith("org/b  available ")
    assert [entry["name"] for entry in read_lines(run("model", "list", "--status", "available", "--json").stdout)] == [
        "org/b"
    ]


def test_a_model_is_shown_with_its_files_its_copies_and_where_it_fits(
    run: Run, client: Client, database: Database, cache: ModelCache
) -> None:
    keep(database, cache, "org/a", make_model())
    execute(
        database,
        "UPDATE models SET type = 'text', weight_bytes = 2000000, kv_bytes_per_token = 1000, context_tokens = 4096",
    )
    gpu = {"index": 0, "uuid": "u", "name": "Big GPU", "memory_bytes": 10**9}
    make_worker(database, "large", kinds=["text"], models=["org/a"], memory_limit_bytes=5_000_000, gpus=[gpu])
    make_worker(database, "other", kinds=["text"], allowed_models=["org/b"])
    make_worker(database, "small", kinds=["text"], memory_limit_bytes=1_000_000)
    make_worker(database, "io", kinds=["download"])

    document = json.loads(run("model", "show", "org/a", "--json").stdout)
    shown = run("model", "show", "org/a").stdout

    fits = {fit["worker"]: fit for fit in document["fits"]}
    assert {name: fit["fits"] for name, fit in fits.items()} == {"large": True, "other": False, "small": False}
    assert (fits["large"]["needed_bytes"], fits["large"]["memory_bytes"], fits["large"]["tokens"]) == (
        2_000_000,
        5_000_000,
        3_000,
    )
    assert fits["large"]["gpus"] == ["Big GPU"]
    assert [file["path"] for file in document["files"]] == list(make_model())
    assert [(copy["node"], copy["state"]) for copy in document["copies"]] == [(NODE, "available")]
    for words in (
        document["commit"],
        "2.0 MB of weights, and 1,000 bytes a token: 4.1 MB for 4,096 tokens",
        "it takes 2.0 MB of 5.0 MB, with room for 3,000 tokens, loaded there now",
        "it needs 2.0 MB of 1.0 MB",
        "its pool default allows only org/b",
        "Big GPU",
    ):
        assert words in shown


def test_what_is_not_registered_is_not_found(run: Run, client: Client) -> None:
    for command in (("show",), ("verify",), ("pin",), ("remove",), ("remove", "--force")):
        ended = run("model", *command, "org/name")
        assert ended.exit_code == 3
        assert "bitinglip model pull org/name" in ended.stderr


def test_why_a_model_failed_is_shown(run: Run, client: Client, database: Database) -> None:
    with database.transaction() as connection:
        insert_entry(connection, ModelRecord("org/a", ModelSource.HUB, repo="org/a"))
        note_error(connection, "org/a", {"code": "gated_model", "message": "ask for access", "retryable": False})
    shown = run("model", "show", "org/a")
    assert "gated_model: ask for access" in shown.stdout
    assert "no worker does" in shown.stderr


def test_a_damaged_copy_is_repaired(
    run: Run, start: Start, client: Client, database: Database, cache: ModelCache, hub: LocalHub, tmp_path: Path
) -> None:
    record = keep(database, cache, "org/a", make_model())
    commit = hub.add_repo("org/a", write_files(tmp_path / "a", make_model()))
    assert record.manifest is not None
    execute(database, "UPDATE models SET commit_hash = :commit", commit=commit)
    execute(database, "UPDATE model_copies SET commit_hash = :commit", commit=commit)
    find_snapshot(cache, record).rename(cache.find_snapshot("org/a", commit))
    weights = cache.find_snapshot("org/a", commit) / "model.safetensors"
    damage(weights)

    looked = run("model", "verify", "org/a", "--no-repair")
    assert looked.exit_code == 1
    assert "model.safetensors; repair it with 'bitinglip model verify org/a'" in looked.stderr
    (entry,) = read_lines(run("model", "list", "--json").stdout)
    assert entry["status"] == "failed"

    repairing = start("model", "verify", "org/a")
    repaired, said = repairing.communicate(timeout=30)
    assert repairing.returncode == 0, said
    assert "1 of them fetched anew: model.safetensors" in repaired
    assert weights.read_bytes() == make_model()["model.safetensors"]
    document = json.loads(run("model", "verify", "org/a", "--json").stdout)
    assert (document["status"], document["bad"], document["repaired"]) == ("available", [], False)


def test_a_verification_is_interrupted_in_the_middle_of_a_file(
    run: Run, start: Start, client: Client, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a")
    size = 200 * 2**30
    # Full of holes: it takes no room.
    os.truncate(find_snapshot(cache, record) / "model.safetensors", size)
    execute(
        database, "UPDATE models SET files = jsonb_set(files, '{0,size}', to_jsonb(CAST(:size AS bigint)))", size=size
    )
    verify = start("model", "verify", "org/a")
    assert verify.stderr is not None
    assert verify.stderr.readline().startswith("org/a: verifying")

    verify.send_signal(signal.SIGINT)
    _, said = verify.communicate(timeout=5)

    assert verify.returncode == 130
    assert "Traceback" not in said
    (entry,) = read_lines(run("model", "list", "--json").stdout)
    assert entry["status"] == "available"


def test_a_registered_folder_that_is_damaged_cannot_be_repaired(run: Run, client: Client, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine", make_model())
    assert run("model", "scan", str(folder)).stdout == f"{folder} available\n"
    assert run("model", "verify", str(folder)).exit_code == 0
    damage(folder / "model.safetensors")

    verified = run("model", "verify", str(folder), "--json")

    assert verified.exit_code == 1
    assert json.loads(verified.stdout)["bad"] == ["model.safetensors"]
    assert "put the files back" in verified.stderr


def test_a_folder_that_may_not_be_used_is_refused_and_the_others_are_registered(
    run: Run, client: Client, tmp_path: Path
) -> None:
    bad = write_files(tmp_path / "bad", {"config.json": b"{}", "pytorch_model.bin": b"pickled"})
    good = write_files(tmp_path / "good", make_model())
    scanned = run("model", "scan", str(bad), str(good), "--json")
    assert scanned.exit_code == 2
    assert [document["name"] for document in read_lines(scanned.stdout)] == [str(good)]
    assert "pickled" in scanned.stderr


def test_a_lost_database_is_made_again_of_a_dump_and_a_disk(
    run: Run, client: Client, database: Database, cache: ModelCache, tmp_path: Path
) -> None:
    keep(database, cache, "org/a", make_model())
    keep(database, cache, "org/b", make_model(seed=1))
    run("model", "pin", "org/a")
    dumped = tmp_path / "models.json"
    dumped.write_text(run("model", "list", "--json").stdout)
    execute(database, "DELETE FROM models")
    shutil.rmtree(cache.find_repo("org/b"))

    scanned = run("model", "scan", "--restore", str(dumped), "--json")

    assert scanned.exit_code == 0, scanned.stderr
    assert "2 registered" in scanned.stderr
    assert [(item["name"], item["outcome"]) for item in read_lines(scanned.stdout)] == [("org/a", "available")]
    restored = {entry["name"]: entry for entry in read_lines(run("model", "list", "--json").stdout)}
    assert {name: (entry["status"], entry["pinned"]) for name, entry in restored.items()} == {
        "org/a": ("available", True),
        "org/b": ("failed", False),
    }
    assert "0 registered" in run("model", "scan", "--restore", str(dumped)).stderr


@pytest.mark.parametrize("content", ["{", "[]", '{"name": 1}', "\xff"])
def test_what_is_no_dump_is_refused(run: Run, client: Client, tmp_path: Path, content: str) -> None:
    file = tmp_path / "models.json"
    file.write_bytes(content.encode("latin-1"))
    scanned = run("model", "scan", "--restore", str(file))
    assert scanned.exit_code == 2
    assert "Traceback" not in scanned.stderr
    assert run("model", "scan", "--restore", str(tmp_path / "none")).exit_code == 2


def test_what_a_scan_finds_is_a_table_for_people(
    run: Run, client: Client, database: Database, cache: ModelCache
) -> None:
    record = keep(database, cache, "org/a", make_model())
    damage(find_snapshot(cache, record) / "model.safetensors")
    header, line = run("model", "scan").stdout.splitlines()
    assert header.split() == ["NAME", "OUTCOME", "NEW", "REASON"]
    assert line.split()[:3] == ["org/a", "damaged", "no"]
    assert "bitinglip model verify org/a" in line


def test_a_model_is_pinned_and_let_go(run: Run, client: Client, database: Database, cache: ModelCache) -> None:
    keep(database, cache, "org/a")
    assert json.loads(run("model", "pin", "org/a", "--json").stdout)["pinned"] is True
    assert run("model", "pin", "org/a", "--off").stdout.split()[-1] == "no"


def test_a_model_that_is_needed_is_removed_by_force_only(
    run: Run, client: Client, database: Database, cache: ModelCache
) -> None:
    keep(database, cache, "org/a")
    (task,) = submit(database, make_echo(agent="bot"))
    execute(database, "UPDATE tasks SET model = 'org/a' WHERE id = :id", id=task)

    refused = run("model", "remove", "org/a")
    assert refused.exit_code == 1
    assert "of bot: 1 wait" in refused.stderr

    removed = run("model", "remove", "org/a", "--force", "--json")
    assert json.loads(removed.stdout) == {"name": "org/a", "freed_bytes": 1_000, "waiting_nodes": []}
    assert run("model", "list", "--json").stdout == ""


def test_a_removal_by_force_cancels_the_download(
    run: Run, client: Client, database: Database, cache: ModelCache
) -> None:
    keep(database, cache, "org/a", state=CopyState.DOWNLOADING)
    (task_id,) = submit(database, make_echo())
    with database.transaction() as connection:
        set_download_task(connection, "org/a", task_id)

    removed = run("model", "remove", "org/a", "--force")

    assert removed.exit_code == 0, removed.stderr
    assert client.get(task_id).status is Status.CANCELLED
    assert find_entry(database, "org/a") is None


def test_a_folder_that_cannot_be_written_is_told_with_its_name(
    run: Run, client: Client, database: Database, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep(database, cache, "org/a")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    for command in ("verify", "remove"):
        ended = run("model", command, "org/a")
        assert ended.exit_code == 2
        assert "HF_HUB_CACHE" in ended.stderr
