"""An attempt's files: fetched before, stored after, and nothing left where something fails."""

import hashlib
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitinglip.artifacts.spool import AttemptFiles, Spool
from bitinglip.artifacts.store import ArtifactStore
from bitinglip.domain.artifacts import Maker, find_maker
from bitinglip.domain.catalogue import ECHO, IMAGE
from bitinglip.errors import (
    ArtifactDamagedError,
    ArtifactDiskFullError,
    ArtifactNotFoundError,
    ArtifactStoreError,
    ArtifactStoreTakenError,
    AttemptStoppedError,
)
from tests.artifacts.places import Place, list_names, name_upload, put, read, write_source

MAKER = Maker(uuid.UUID(int=7), 3)
GOES_ON = threading.Event()


@pytest.fixture
def store(folder: Place) -> ArtifactStore:
    return folder.open()


@pytest.fixture
def spool(store: ArtifactStore, tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "spool", store)
    made.owner = "this system"
    return made


@pytest.fixture
def files(spool: Spool) -> Iterator[AttemptFiles]:
    with spool.open(IMAGE, MAKER, {}) as opened:
        yield opened


def make(files: AttemptFiles, *contents: bytes) -> dict[str, Any]:
    """What an engine gives that has made files of these bytes."""
    assert files.folder is not None
    entries = []
    for index, content in enumerate(contents):
        (files.folder / f"{index}.png").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        entries.append({"file": f"{index}.png", "size": len(content), "sha256": sha256, "seed": index})
    return {"images": entries, "model": "tiny"}


def test_what_was_made_is_stored_and_named(files: AttemptFiles, store: ArtifactStore) -> None:
    result = files.keep(make(files, b"one", b"two"), GOES_ON)

    assert result["model"] == "tiny"
    assert [image["seed"] for image in result["images"]] == [0, 1]
    assert all("file" not in image for image in result["images"])
    names = [image["artifact"] for image in result["images"]]
    assert [find_maker(name) for name in names] == [MAKER, MAKER]
    assert [read(store, name) for name in names] == [b"one", b"two"]


def test_the_folder_is_nobody_elses_and_gone_at_the_end(spool: Spool, tmp_path: Path) -> None:
    with spool.open(IMAGE, MAKER, {}) as files:
        assert files.folder is not None
        assert files.folder.stat().st_mode & 0o077 == 0
        (files.folder / "0.png").write_bytes(b"half")
    assert [*(tmp_path / "spool").iterdir()] == []


def test_a_kind_without_files_has_no_folder(spool: Spool, tmp_path: Path) -> None:
    with spool.open(ECHO, MAKER, {"text": "a"}) as files:
        assert (files.folder, files.inputs) == (None, {})
        assert files.keep({"text": "a"}, GOES_ON) == {"text": "a"}
    assert not (tmp_path / "spool").exists()


def test_what_is_taken_is_fetched(spool: Spool, store: ArtifactStore, tmp_path: Path) -> None:
    name = put(store, write_source(tmp_path, b"brought"))
    with spool.open(IMAGE, MAKER, {"image": name}) as files:
        assert Path(files.inputs["image"]).read_bytes() == b"brought"
    with pytest.raises(ArtifactNotFoundError), spool.open(IMAGE, MAKER, {"image": name_upload()}):
        pass
    assert [*(tmp_path / "spool").iterdir()] == []


def test_where_one_file_cannot_be_stored_those_before_it_go(files: AttemptFiles, store: ArtifactStore) -> None:
    result = make(files, b"one", b"two")
    result["images"][1]["sha256"] = "0" * 64

    with pytest.raises(ArtifactDamagedError):
        files.keep(result, GOES_ON)

    assert list_names(store) == []


def test_an_attempt_that_is_stopped_stores_nothing_more(files: AttemptFiles, store: ArtifactStore) -> None:
    stopped = threading.Event()
    stopped.set()

    with pytest.raises(AttemptStoppedError):
        files.keep(make(files, b"one"), stopped)

    assert list_names(store) == []


def test_what_must_stay_free_stays_free(files: AttemptFiles, store: ArtifactStore, tmp_path: Path) -> None:
    result = make(files, b"one", b"two")
    result["images"][1]["size"] = shutil.disk_usage(tmp_path).total

    with pytest.raises(ArtifactDiskFullError):
        files.keep(result, GOES_ON)

    assert list_names(store) == []


def test_a_store_that_is_gone_is_not_made_anew(spool: Spool, store: ArtifactStore) -> None:
    with spool.open(IMAGE, MAKER, {}) as files:
        files.keep(make(files, b"one"), GOES_ON)
    place = Path(store.place)
    shutil.rmtree(place)

    with pytest.raises(ArtifactStoreError, match="mount"), spool.open(IMAGE, MAKER, {}):
        pass

    assert not place.exists()


def test_the_store_of_another_system_is_left_alone(spool: Spool, store: ArtifactStore) -> None:
    store.check_owner("another system")
    for _ in range(2):
        with pytest.raises(ArtifactStoreTakenError), spool.open(IMAGE, MAKER, {}):
            pass
