"""What holds for every store, a folder as well as a bucket."""

import os
import re
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bitinglip.artifacts.store import ArtifactStore, open_artifacts
from bitinglip.domain.artifacts import Maker, make_name
from bitinglip.errors import (
    ArtifactDamagedError,
    ArtifactNotFoundError,
    ArtifactStoreError,
    ConfigurationError,
    InvalidRequestError,
)
from tests.artifacts.places import Place, hash_bytes, list_names, name_upload, put, read, read_answer, write_source
from tests.conftest import forget_settings

RACERS = 12
TASK_ID = uuid.UUID(int=7)
BAD_NAMES = [
    "../secret.png",
    "/etc/passwd",
    "uploads/../../secret.png",
    f"uploads/{'0' * 32}.png\0",
    f"uploads/{'0' * 32}.png\n",
    f"uploads/{'0' * 32}.png/x",
    f"uploads/{'0' * 31}.png",
    f"{TASK_ID}/0-0-00000000.png",
    ".bitinglip-store",
    "",
]
SPARSE_BYTES, MOST_BYTES = 200_000_000, 60_000_000


def test_what_is_put_is_read(store: ArtifactStore, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    name = put(store, write_source(tmp_path, content))

    store.fetch(name, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == content
    assert read(store, name) == content
    with store.open(name) as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]


def test_what_is_put_is_listed(store: ArtifactStore, tmp_path: Path) -> None:
    source = write_source(tmp_path, b"12345")
    began = datetime.now(UTC) - timedelta(seconds=2)
    uploaded = put(store, source)
    made = put(store, source, make_name(Maker(TASK_ID, 1), 0, "png"))

    assert sorted(store.list_folders()) == [str(TASK_ID), "uploads"]
    [file] = store.list_files(str(TASK_ID))
    assert (file.name, file.size) == (made, 5)
    assert began < file.modified_at < datetime.now(UTC) + timedelta(seconds=2)
    assert [file.name for file in store.list_files("uploads")] == [uploaded]


def test_a_store_that_nobody_used_is_empty(store: ArtifactStore) -> None:
    assert store.list_folders() == []
    assert store.list_files("uploads") == []


def test_what_is_deleted_is_gone_and_so_is_its_folder(store: ArtifactStore, tmp_path: Path) -> None:
    source = write_source(tmp_path)
    first, second = put(store, source), put(store, source)

    store.delete([first])
    assert list_names(store) == [second]
    store.delete([first, second])
    assert store.list_folders() == []
    with pytest.raises(ArtifactNotFoundError):
        read(store, second)


@pytest.mark.parametrize("others", [{"size": 6}, {"sha256": "0" * 64}])
def test_a_file_that_is_not_as_it_was_made_is_not_kept(
    store: ArtifactStore, tmp_path: Path, others: dict[str, int | str]
) -> None:
    size_and_hash = {"size": 7, "sha256": hash_bytes(b"picture"), **others}
    with pytest.raises(ArtifactDamagedError, match=r"source\.png was changed"):
        store.put(write_source(tmp_path), name_upload(), **size_and_hash)  # type: ignore[arg-type]
    assert store.list_folders() == []


def test_a_large_file_that_is_not_as_it_was_made_is_not_kept(store: ArtifactStore, tmp_path: Path) -> None:
    source = write_source(tmp_path, bytes(20_000_000))
    with pytest.raises(ArtifactDamagedError):
        store.put(source, name_upload(), size=20_000_000, sha256="0" * 64)
    assert store.list_folders() == []


def test_a_file_that_its_engine_did_not_make_is_damaged(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactDamagedError, match=r"none\.png cannot be read: No such file"):
        store.put(tmp_path / "none.png", name_upload(), size=1, sha256="0" * 64)


def test_a_missing_file_is_named_and_so_is_the_place(store: ArtifactStore, tmp_path: Path) -> None:
    name = name_upload()
    target = tmp_path / "target"
    with pytest.raises(ArtifactNotFoundError) as caught:
        store.fetch(name, target)
    assert name in str(caught.value)
    assert store.place in str(caught.value)
    assert "BITINGLIP_ARTIFACT_URL" in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_no_artifact_has_is_refused_by_all(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    source = write_source(tmp_path)
    calls: list[Callable[[], object]] = [
        lambda: put(store, source, name),
        lambda: read(store, name),
        lambda: store.fetch(name, tmp_path / "target"),
        lambda: store.locate(name),
        lambda: store.delete([name]),
    ]
    for call in calls if name else calls[1:]:
        with pytest.raises(InvalidRequestError, match="no artifact has such a name"):
            call()
    assert not (tmp_path / "target").exists()
    assert store.list_folders() == []


def test_a_bad_name_is_refused_where_nothing_answers(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    broken = ArtifactStore(str(tmp_path / "file" / "artifacts"))
    for name in BAD_NAMES:
        with pytest.raises(InvalidRequestError):
            read(broken, name)


def test_an_id_is_kept(place: Place) -> None:
    first = place.open().find_id()
    assert place.open().find_id() == first
    assert place.ask("id") == {"id": str(first)}
    assert place.open().list_folders() == []


def test_another_store_has_another_id(place: Place) -> None:
    elsewhere = Place(f"{place.url}-too", place.endpoint_url)
    assert place.open().find_id() != elsewhere.open().find_id()


def test_threads_that_name_a_store_at_once_agree(place: Place) -> None:
    for turn in range(5):
        raced = Place(f"{place.url}/{turn}", place.endpoint_url)
        store, barrier = raced.open(), threading.Barrier(RACERS)

        def race(store: ArtifactStore = store, barrier: threading.Barrier = barrier) -> uuid.UUID:
            barrier.wait()
            return store.find_id()

        with ThreadPoolExecutor(RACERS) as pool:
            found = [future.result() for future in [pool.submit(race) for _ in range(RACERS)]]
        assert {*found} == {raced.open().find_id()}


def test_processes_that_name_a_store_at_once_agree(place: Place) -> None:
    racers = [place.start("id") for _ in range(3)]
    assert {read_answer(racer)["id"] for racer in racers} == {str(place.open().find_id())}


def test_a_broken_id_says_what_to_delete(place: Place) -> None:
    store = place.open()
    store.find_id()
    store._files.pipe_file(f"{store._root}/.bitinglip-store", b"\xff")
    with pytest.raises(ArtifactStoreError, match=r"\.bitinglip-store holds no id; delete that file"):
        store.find_id()


def test_files_of_others_are_neither_listed_nor_deleted(store: ArtifactStore, tmp_path: Path) -> None:
    name = put(store, write_source(tmp_path))
    store._files.pipe_file(f"{store._root}/uploads/holiday.png", b"theirs")

    assert list_names(store) == [name]
    with pytest.raises(InvalidRequestError):
        store.delete(["uploads/holiday.png"])
    store.delete([name])
    assert store._files.cat_file(f"{store._root}/uploads/holiday.png") == b"theirs"


def test_a_process_killed_while_it_puts_leaves_no_file_under_the_name(place: Place, tmp_path: Path) -> None:
    pipe, name = tmp_path / "pipe", name_upload()
    os.mkfifo(pipe)
    process = place.start("put", pipe, name, 50_000_000, "0" * 64)
    with pipe.open("wb") as source:
        # Returns once the process has read all but a pipe's worth of it.
        source.write(bytes(20_000_000))
        process.kill()
        process.communicate()

    store = place.open()
    left = list_names(store)
    assert name not in left
    if store.is_folder:
        assert [re.sub(r"\.[0-9a-f]{32}\.part$", ".part", draft) for draft in left] == [f"{name}.part"]
        store.delete(left)
    assert store.list_folders() == []


def test_a_large_file_takes_little_memory(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(SPARSE_BYTES)
    name = name_upload()

    answer = place.ask("put", source, name, SPARSE_BYTES, hash_bytes(bytes(SPARSE_BYTES)))

    assert answer["error"] is None
    assert answer["peak_bytes"] < MOST_BYTES
    [file_there] = place.open().list_files("uploads")
    assert file_there.size == SPARSE_BYTES


def test_a_target_that_cannot_be_written_is_not_the_stores_fault(store: ArtifactStore, tmp_path: Path) -> None:
    name = put(store, write_source(tmp_path))
    with pytest.raises(FileNotFoundError):
        store.fetch(name, tmp_path / "nowhere" / "target")


def test_a_scheme_that_nobody_knows_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match=r"BITINGLIP_ARTIFACT_URL is 'gopher://host/path'.*s3://bucket"):
        ArtifactStore("gopher://host/path")


def test_no_error_tells_a_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ArtifactStore("gopher://me:secret@host/path")
    assert "secret" not in str(caught.value)
    assert "gopher://host/path" in str(caught.value)


def test_the_settings_name_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITINGLIP_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("BITINGLIP_ARTIFACT_URL", raising=False)
    forget_settings()
    assert open_artifacts().place == str(tmp_path / "data" / "artifacts")
    monkeypatch.setenv("BITINGLIP_ARTIFACT_URL", str(tmp_path / "other"))
    forget_settings()
    assert open_artifacts().place == str(tmp_path / "other")
    monkeypatch.undo()
    forget_settings()
