"""A store in a folder: whose its files are, and what a disk does to them."""

import errno
import fcntl
import os
import shlex
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitinglip.artifacts.store import ArtifactStore
from bitinglip.domain.artifacts import Maker, make_name
from bitinglip.errors import ArtifactDiskFullError, ArtifactStoreError
from tests.artifacts.places import (
    PROGRAM,
    Place,
    hash_bytes,
    list_names,
    name_upload,
    put,
    read,
    read_answer,
    write_source,
)
from tests.artifacts.test_store import TASK_ID
from tests.conftest import REPOSITORY

DISK_BYTES = 4_000_000
ROUNDS = 300


@pytest.fixture
def wide_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def put_on_disk(tmp_path: Path, options: str, content: bytes) -> dict[str, Any]:
    """What a process says that keeps a file on a disk of its own."""
    disk, source = tmp_path / "disk", write_source(tmp_path, content)
    disk.mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs {disk}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk of its own")
    arguments = [*PROGRAM, "put", str(source), name_upload(), str(len(content)), hash_bytes(content)]
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{mount} && exec {shlex.join(arguments)}"],
        cwd=REPOSITORY,
        env={**os.environ, "BITINGLIP_ARTIFACT_URL": str(disk / "artifacts")},
        stdout=subprocess.PIPE,
        text=True,
    )
    return read_answer(process)


def test_a_full_disk_is_said_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    answer = put_on_disk(tmp_path, f"size={DISK_BYTES}", os.urandom(2 * DISK_BYTES))
    assert answer["error"]["code"] == "artifact_disk_full"
    assert str(tmp_path / "disk" / "artifacts") in answer["error"]["message"]
    assert answer["left"] == []


def test_a_disk_that_holds_it_keeps_it(tmp_path: Path) -> None:
    answer = put_on_disk(tmp_path, f"size={DISK_BYTES}", os.urandom(DISK_BYTES // 2))
    assert answer["error"] is None
    assert [Path(path).suffix for path in answer["left"]] == ["", ".png"]


def test_a_disk_that_is_read_only_cannot_be_used(tmp_path: Path) -> None:
    answer = put_on_disk(tmp_path, "ro", b"picture")
    assert answer["error"]["code"] == "artifact_store_unreachable"
    assert "Read-only file system" in answer["error"]["message"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write any folder")
def test_a_folder_that_may_not_be_written_cannot_be_used(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    store = ArtifactStore(str(closed / "artifacts"))
    with pytest.raises(ArtifactStoreError, match="Permission denied"):
        put(store, write_source(tmp_path))
    with pytest.raises(ArtifactStoreError, match="Permission denied"):
        store.find_id()


def test_a_place_that_is_no_folder_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for broken in (ArtifactStore(str(tmp_path / "file")), ArtifactStore(str(tmp_path / "file" / "artifacts"))):
        with pytest.raises(ArtifactStoreError, match="BITINGLIP_ARTIFACT_URL"):
            put(broken, write_source(tmp_path))
        with pytest.raises(ArtifactStoreError):
            broken.find_id()


@pytest.mark.usefixtures("wide_umask")
def test_nobody_else_can_read_what_is_kept(folder: Place, tmp_path: Path) -> None:
    store = folder.open()
    store.find_id()
    name = put(store, write_source(tmp_path))

    root = Path(folder.url)
    assert {path.stat().st_mode & 0o777 for path in (root, root.parent, root / "uploads")} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in (root / name, root / ".bitinglip-store")} == {0o600}


def test_an_id_leaves_no_draft(folder: Place) -> None:
    folder.open().find_id()
    assert os.listdir(folder.url) == [".bitinglip-store"]


def test_a_folder_that_is_named_by_a_url_is_one(tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}/artifacts")
    name = put(store, write_source(tmp_path))
    assert store.is_folder
    assert Path(store.locate(name)).read_bytes() == b"picture"


def test_room_is_spared(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), spare_bytes=2**60)
    with pytest.raises(ArtifactDiskFullError, match="1,152,921,504,606,846,976 must stay so"):
        store.check_room()
    ArtifactStore(str(tmp_path / "artifacts")).check_room()


def test_a_folder_may_be_deleted_while_others_put_into_it(folder: Place, tmp_path: Path) -> None:
    store, source, ended = folder.open(), write_source(tmp_path), threading.Event()
    kept = [make_name(Maker(TASK_ID, 1), index, "png") for index in range(ROUNDS)]

    def delete_others() -> None:
        while not ended.is_set():
            store.delete([make_name(Maker(TASK_ID, 2), 0, "png")])

    deleting = threading.Thread(target=delete_others)
    deleting.start()
    try:
        for name in kept:
            put(store, source, name)
            assert read(store, name) == b"picture"
            store.delete([name])
    finally:
        ended.set()
        deleting.join()
    assert list_names(store) == []


def test_a_folder_may_go_just_after_it_was_found(
    folder: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder.open()
    store.find_id()
    calls: list[str] = []

    def find_one_that_goes(path: str | Path, mode: int = 0o777) -> None:
        calls.append(str(path))
        if len(calls) == 1:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        make_folder(path, mode)

    make_folder = os.mkdir
    monkeypatch.setattr(os, "mkdir", find_one_that_goes)
    name = put(store, write_source(tmp_path))

    assert read(store, name) == b"picture"
    assert calls == [str(Path(folder.url) / name.split("/")[0])] * 2


def test_no_folder_goes_while_a_file_is_made_in_it(folder: Place, tmp_path: Path) -> None:
    store, source = folder.open(), write_source(tmp_path)
    kept = put(store, source)
    root = os.open(folder.url, os.O_RDONLY)
    try:
        # Whoever takes a folder away is alone; those who make files in it keep him out together.
        steps = [(fcntl.LOCK_EX, lambda: put(store, source)), (fcntl.LOCK_SH, lambda: store.delete([kept]))]
        for lock, action in steps:
            fcntl.flock(root, lock)
            acting = threading.Thread(target=action)
            acting.start()
            acting.join(timeout=0.5)
            assert acting.is_alive()
            fcntl.flock(root, fcntl.LOCK_UN)
            acting.join(timeout=10)
            assert not acting.is_alive()
    finally:
        os.close(root)
    assert kept not in list_names(store)
    assert len(list_names(store)) == 1


def test_what_cannot_be_copied_here_is_not_left_half(folder: Place, tmp_path: Path) -> None:
    store = folder.open()
    name = put(store, write_source(tmp_path))
    target = tmp_path / "target"
    target.symlink_to("/dev/full")
    with pytest.raises(ArtifactDiskFullError, match=str(tmp_path)):
        store.fetch(name, target)
    assert not target.is_symlink()


def test_many_may_bring_one_file_at_once(folder: Place, tmp_path: Path) -> None:
    stores = [folder.open() for _ in range(4)]
    source, name = write_source(tmp_path, b"x" * 3_000_000), name_upload()
    wrong: list[object] = []

    def bring(store: ArtifactStore) -> None:
        for _ in range(10):
            try:
                put(store, source, name)
                wrong.extend(size for size in [len(read(store, name))] if size != 3_000_000)
            except ArtifactStoreError as exc:
                wrong.append(exc)

    threads = [threading.Thread(target=bring, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert wrong == []
    assert list_names(stores[0]) == [name]
