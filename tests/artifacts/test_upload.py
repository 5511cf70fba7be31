"""What somebody brings is a picture by its first bytes, of a bounded size, or is refused before it is stored."""

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from bitinglip.artifacts.store import ArtifactStore
from bitinglip.artifacts.upload import upload_picture
from bitinglip.domain.artifacts import is_artifact_name
from bitinglip.domain.image_payload import MAX_INPUT_BYTES
from bitinglip.errors import ArtifactDamagedError, ArtifactDiskFullError, InvalidRequestError
from tests.artifacts.places import Place, list_names, read

MAX_BYTES = 100_000


def encode(format_name: str, **options: object) -> bytes:
    written = BytesIO()
    Image.new("RGB", (40, 30), "teal").save(written, format_name, **options)
    return written.getvalue()


def make_bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size, and has a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def make_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def make_large_file(path: Path) -> None:
    path.write_bytes(encode("PNG"))
    os.truncate(path, MAX_INPUT_BYTES + 1)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "No such file"),
    "folder": (Path.mkdir, "it is no file; name a picture: PNG, JPEG or WEBP"),
    "pipe": (os.mkfifo, "it is no file"),
    "empty": (Path.touch, "it is empty"),
    "text": (lambda path: make_file(path, b"GIF is no PNG"), "it is none, or damaged.*PNG, JPEG or WEBP"),
    "gif": (lambda path: make_file(path, encode("GIF")), "PNG, JPEG or WEBP"),
    "bmp": (lambda path: make_file(path, encode("BMP")), "PNG, JPEG or WEBP"),
    "header": (lambda path: make_file(path, encode("PNG")[:12]), "PNG, JPEG or WEBP"),
    "bomb": (lambda path: make_file(path, make_bomb(8_000, 8_000)), "8,000 x 8,000; bring one of at most 50,000,000"),
    "warned bomb": (lambda path: make_file(path, make_bomb(10_000, 10_000)), "at most 50,000,000 pixels"),
    "worst bomb": (lambda path: make_file(path, make_bomb(60_000, 60_000)), "at most 50,000,000 pixels"),
    "heavy": (lambda path: make_file(path, encode("PNG") + bytes(MAX_BYTES)), "bytes; bring one of at most 100,000"),
}


@pytest.fixture
def store(folder: Place) -> ArtifactStore:
    return folder.open()


@pytest.mark.parametrize(("format_name", "suffix"), [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp")])
def test_a_picture_is_kept_by_what_it_is_not_by_its_suffix(
    store: ArtifactStore, tmp_path: Path, format_name: str, suffix: str
) -> None:
    file = tmp_path / "picture.tiff"
    file.write_bytes(encode(format_name))
    name = upload_picture(store, file, max_bytes=MAX_BYTES)
    assert is_artifact_name(name)
    assert name.startswith("uploads/")
    assert name.endswith(f".{suffix}")
    assert read(store, name) == file.read_bytes()


def test_a_picture_that_is_brought_twice_is_one_file(store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(encode("PNG"))
    again = tmp_path / "again.png"
    again.write_bytes(file.read_bytes())
    names = {upload_picture(store, brought, max_bytes=MAX_BYTES) for brought in (file, again)}
    assert len(names) == 1
    assert {*list_names(store)} == names


def test_a_camera_that_writes_two_pictures_in_one_has_brought_a_jpeg(store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "picture.mpo"
    file.write_bytes(encode("MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))]))
    assert upload_picture(store, file, max_bytes=MAX_BYTES).endswith(".jpeg")


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_picture_is_refused(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    make, remedy = REFUSED[what]
    # An error shows 80 characters of a value; the folders of some runs are longer.
    monkeypatch.chdir(tmp_path)
    file = Path("picture.png")
    make(file)
    with pytest.raises(InvalidRequestError, match=remedy) as caught:
        upload_picture(store, file, max_bytes=MAX_BYTES)
    assert caught.value.field == "image"
    assert str(file) in str(caught.value)
    assert store.list_folders() == []


def test_a_bomb_is_refused_without_a_warning(store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(make_bomb(10_000, 10_000))
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        with pytest.raises(InvalidRequestError):
            upload_picture(store, file, max_bytes=MAX_BYTES)
    assert not leaked


def test_no_setting_lets_in_more_than_an_engine_opens(store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    make_large_file(file)
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_INPUT_BYTES:,}"):
        upload_picture(store, file, max_bytes=2 * MAX_INPUT_BYTES)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_a_file_that_may_not_be_read_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(encode("PNG"))
    file.chmod(0)
    with pytest.raises(InvalidRequestError, match="Permission denied"):
        upload_picture(store, file, max_bytes=MAX_BYTES)


def test_a_file_that_changes_meanwhile_is_refused(folder: Place, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(encode("PNG"))

    class SlowStore(ArtifactStore):
        def check_room(self) -> None:
            super().check_room()
            file.write_bytes(encode("PNG")[:-1] + b"!")

    store = SlowStore(folder.url)
    with pytest.raises(ArtifactDamagedError, match=r"picture\.png was changed"):
        upload_picture(store, file, max_bytes=MAX_BYTES)
    assert store.list_folders() == []


def test_a_disk_that_is_to_be_spared_takes_no_upload(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(encode("PNG"))
    store = ArtifactStore(str(tmp_path / "artifacts"), spare_bytes=2**60)
    with pytest.raises(ArtifactDiskFullError):
        upload_picture(store, file, max_bytes=MAX_BYTES)
    assert store.list_folders() == []


def test_a_bucket_takes_uploads_too(bucket: Place, tmp_path: Path) -> None:
    file = tmp_path / "picture.webp"
    file.write_bytes(encode("WEBP"))
    store = bucket.open()
    assert read(store, upload_picture(store, file, max_bytes=MAX_BYTES)) == file.read_bytes()
