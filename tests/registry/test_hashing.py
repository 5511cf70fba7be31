"""Bytes are proven, or found to be others; whichever hash the hub has of them."""

import hashlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from bitinglip.domain.models import ModelFile
from bitinglip.errors import DownloadStoppedError, InvalidModelError
from bitinglip.registry.hashing import BUFFER_BYTES, hash_file, make_manifest_of_folder, verify_files


def write(path: Path, content: bytes | bytearray) -> ModelFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return ModelFile(path.name, len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("size", [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, 3 * BUFFER_BYTES + 7])
def test_a_file_of_any_size_is_proven(tmp_path: Path, size: int) -> None:
    file = write(tmp_path / "a", os.urandom(size))
    assert hash_file(tmp_path / "a", file)


def test_a_git_hash_is_the_one_that_git_makes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"model_type": "llama"}\n')
    made = subprocess.run(
        ["git", "hash-object", "config.json"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert hash_file(tmp_path / "config.json", ModelFile("config.json", 24, git_sha1=made))
    assert not hash_file(tmp_path / "config.json", ModelFile("config.json", 24, git_sha1="0" * 40))


@pytest.mark.parametrize("at", [0, 1, 2 * BUFFER_BYTES, -1])
def test_one_other_byte_is_found(tmp_path: Path, at: int) -> None:
    content = bytearray(os.urandom(2 * BUFFER_BYTES + 100))
    file = write(tmp_path / "a", content)
    content[at] ^= 1
    (tmp_path / "a").write_bytes(content)
    assert not hash_file(tmp_path / "a", file)


def test_another_length_is_found_before_anything_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a", b"abc")
    (tmp_path / "a").write_bytes(b"abcd")
    read: list[int] = []
    assert not hash_file(tmp_path / "a", file, on_bytes=read.append)
    assert read == []


def test_what_is_not_there_is_not_proven(tmp_path: Path) -> None:
    file = write(tmp_path / "a", b"abc")
    assert not hash_file(tmp_path / "b", file)
    assert not hash_file(tmp_path / "a" / "b", file)
    (tmp_path / "folder").mkdir()
    assert not hash_file(tmp_path / "folder", file)


def test_the_bad_ones_of_many_files_are_named_in_order(tmp_path: Path) -> None:
    files = [write(tmp_path / f"file-{number}", os.urandom(1000 * number)) for number in range(1, 40)]
    for number in (3, 17, 38):
        (tmp_path / files[number].path).write_bytes(os.urandom(files[number].size))
    (tmp_path / files[20].path).unlink()
    read: dict[str, int] = {}
    lock = threading.Lock()

    def count(file: ModelFile, count: int) -> None:
        with lock:
            read[file.path] = read.get(file.path, 0) + count

    bad = verify_files(lambda file: tmp_path / file.path, files, threads=4, on_bytes=count)
    assert bad == [files[3], files[17], files[20], files[38]]
    assert read == {file.path: file.size for file in files if file is not files[20]}


def test_the_largest_file_is_begun_first(tmp_path: Path) -> None:
    files = [write(tmp_path / f"file-{size}", os.urandom(size)) for size in (10, 3000, 200)]
    begun: list[int] = []
    verify_files(lambda file: tmp_path / file.path, files, threads=1, on_bytes=lambda file, _: begun.append(file.size))
    assert begun == [3000, 200, 10]


def test_hashing_can_be_stopped(tmp_path: Path) -> None:
    files = [write(tmp_path / f"file-{number}", os.urandom(4 * BUFFER_BYTES)) for number in range(3)]
    stop = threading.Event()
    read: list[int] = []

    def count(_file: ModelFile, count: int) -> None:
        read.append(count)
        stop.set()

    with pytest.raises(DownloadStoppedError):
        verify_files(lambda file: tmp_path / file.path, files, threads=1, on_bytes=count, stop=stop)
    assert sum(read) <= BUFFER_BYTES * len(files)


def test_a_folder_s_manifest_has_its_files_but_no_hidden_ones(tmp_path: Path) -> None:
    write(tmp_path / "model" / "config.json", b"{}")
    write(tmp_path / "model" / "text_encoder" / "model.safetensors", os.urandom(5000))
    write(tmp_path / "model" / ".git" / "HEAD", b"ref")
    (tmp_path / "model" / ".hidden").write_bytes(b"x")
    manifest = make_manifest_of_folder(tmp_path / "model")
    assert [file.path for file in manifest.files] == ["config.json", "text_encoder/model.safetensors"]
    assert not verify_files(lambda file: tmp_path / "model" / file.path, manifest.files)


def test_a_folder_s_commit_follows_its_content_and_its_names(tmp_path: Path) -> None:
    write(tmp_path / "a" / "config.json", b"{}")
    write(tmp_path / "b" / "config.json", b"{}")
    write(tmp_path / "c" / "config.json", b"{ }")
    write(tmp_path / "d" / "other.json", b"{}")
    same, equal, other, renamed = (make_manifest_of_folder(tmp_path / name).commit for name in "abcd")
    assert same == equal
    assert len({same, other, renamed}) == 3


def test_a_folder_without_files_has_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no file in it"):
        make_manifest_of_folder(tmp_path)
