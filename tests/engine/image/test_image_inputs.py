"""A picture to start from: opened with care, and drawn over."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_driver import ImageDriver
from PIL import Image, ImageOps

from bitinglip.domain.image_payload import MAX_INPUT_BYTES, MAX_INPUT_PIXELS
from bitinglip.engine.image.inputs import open_input
from bitinglip.engine.jpeg_scans import MAX_SCANS, has_too_many_scans
from bitinglip.errors import InvalidRequestError

Drive = Callable[..., ImageDriver]

NAME = f"uploads/{'0' * 32}.png"


def make_png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def make_gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (4, 4)).save(file, "GIF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (make_png(8_000, 8_000), "8,000 x 8,000; at most 50,000,000"),
        (make_png(10_000, 10_000), "larger than 50,000,000|10,000 x 10,000"),
        (make_png(60_000, 60_000), "larger than 50,000,000"),
        (make_png(64, 64, b"\0" * 9), "cannot be read"),
        (make_gif(), "send a whole PNG, JPEG or WEBP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be read"),
        (b"", "cannot be read"),
        (b"no picture", "cannot be read"),
    ],
)
def test_what_may_not_be_decoded_is_refused_with_the_reason(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "input"
    file.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=words):
        open_input(file)


def make_jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG that goes over its pixels so often, and changes none of them."""

    def segment(marker: int, data: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data

    blocks = ((side + 7) // 8) ** 2
    begin = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    begin += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    begin += segment(0xC4, bytes([0x00, 1, *[0] * 15, 0])) + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    runs = -(-blocks // 16_384)
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bytes((runs * 15 + 7) // 8)
    return begin + scan * scans + b"\xff\xd9"


def test_a_jpeg_that_goes_over_its_pixels_for_hours_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.jpg"
    file.write_bytes(make_jpeg_of_scans(7_000, MAX_SCANS + 1))
    with pytest.raises(InvalidRequestError, match="scans"):
        open_input(file)
    file.write_bytes(make_jpeg_of_scans(64, MAX_SCANS))
    assert open_input(file).size == (64, 64)


def test_a_start_of_scan_between_two_chunks_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitinglip.engine.jpeg_scans._CHUNK_BYTES", 1)
    file = tmp_path / "bomb.jpg"
    file.write_bytes(make_jpeg_of_scans(64, MAX_SCANS + 1))
    assert has_too_many_scans(file)


def test_a_bomb_is_refused_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(make_png(8_000, 8_000, b"\0" * (8_000 * 3 + 1) * 100))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert MAX_INPUT_PIXELS < 8_000 * 8_000
    with pytest.raises(InvalidRequestError, match="at most"):
        open_input(file)


def test_a_file_too_large_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    with file.open("wb") as stream:
        stream.write(make_png(8, 8))
        stream.truncate(MAX_INPUT_BYTES + 1)
    with pytest.raises(InvalidRequestError, match="bytes; at most"):
        open_input(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        open_input(tmp_path / "nowhere.png")


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    Image.fromarray(np.linspace(0, 65_535, 4_096).astype(np.uint16).reshape(64, 64)).save(file)
    levels = np.asarray(open_input(file))
    assert (levels[0, 0, 0], levels[-1, -1, 0]) == (0, 255)
    assert 126 <= levels.mean() <= 129


def test_exif_that_cannot_be_read_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Image.Image) -> None:
        raise struct.error

    file = tmp_path / "odd.jpg"
    Image.new("RGB", (8, 4), "red").save(file)
    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert open_input(file).size == (8, 4)


@pytest.mark.parametrize(
    ("name", "mode"), [("png", "RGB"), ("png", "L"), ("png", "P"), ("jpeg", "RGB"), ("jpeg", "CMYK"), ("webp", "RGB")]
)
def test_a_picture_becomes_rgb(tmp_path: Path, name: str, mode: str) -> None:
    file = tmp_path / f"input.{name}"
    Image.new("RGB", (20, 10), "red").convert(mode).save(file)
    assert open_input(file).mode == "RGB"
    assert open_input(file).size == (20, 10)


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    file = tmp_path / "input.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(file)
    assert open_input(file).getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_that_was_held_sideways_is_turned(tmp_path: Path) -> None:
    file = tmp_path / "input.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(file, exif=exif)
    assert open_input(file).size == (10, 20)


@pytest.fixture
def halves(tmp_path: Path) -> str:
    """A picture that is red above and blue below."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :, 0] = pixels[16:, :, 2] = 255
    file = tmp_path / "halves.png"
    Image.fromarray(pixels).save(file)
    return str(file)


@pytest.mark.parametrize("family", ["stable_diffusion", "flux", "stable_diffusion_3"])
def test_a_picture_is_drawn_over_as_much_as_asked(drive: Drive, halves: str, family: str) -> None:
    driver = drive(family)
    drawn = [
        driver.draw(image=NAME, inputs={"image": halves}, prompt="a tree", steps=8, strength=strength, seed=seed)
        for strength, seed in ((0.25, 1), (1.0, 2), (1.0, 3))
    ]
    assert [driver.result(f"alone-{number}")["steps"] for number in range(3)] == [2, 8, 8]
    assert abs(drawn[0] - drawn[1]).max() > 0.01


def test_rows_that_start_from_pictures_equal_themselves_alone(drive: Drive, halves: str, tmp_path: Path) -> None:
    driver = drive()
    other = str(tmp_path / "other.png")
    Image.new("RGB", (64, 64), "green").save(other)
    files = {1: halves, 2: other}
    for seed, file in files.items():
        driver.add(str(seed), image=NAME, inputs={"image": file}, seed=seed, prompt="a tree", strength=0.5)
    driver.run()
    assert driver.pipeline.batches == [[1, 2]]
    for seed, file in files.items():
        alone = drive().draw(image=NAME, inputs={"image": file}, seed=seed, prompt="a tree", strength=0.5)
        assert abs(driver.pipeline.pixels[seed] - alone).max() <= 1e-5


def test_the_shape_is_the_pictures_and_no_larger_than_the_models(drive: Drive, tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    Image.new("RGB", (400, 100)).save(file)
    driver = drive()
    driver.add("a", image=NAME, inputs={"image": str(file)}, width=None, height=None, strength=0.5)
    driver.run()
    image = driver.result("a")["images"][0]
    assert (image["width"], image["height"]) == (64, 16)


def test_a_strength_that_was_not_chosen_must_leave_a_step_as_well(drive: Drive, halves: str) -> None:
    driver = drive()
    assert driver.pipeline.default_strength < 1
    driver.add("a", image=NAME, inputs={"image": halves}, steps=1)
    driver.step()
    assert driver.failure("a").code == "invalid_request"
    assert "of 1 steps it leaves none" in driver.failure("a").message
    assert driver.pipeline.batches == []


def test_a_bomb_fails_its_request_alone(drive: Drive, tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(make_png(60_000, 60_000))
    driver = drive()
    driver.add("bomb", image=NAME, inputs={"image": str(file)}, strength=0.5)
    driver.add("good", seed=1)
    driver.run()
    assert driver.failure("bomb").code == "invalid_request"
    assert driver.result("good")["images"]


def test_pictures_that_take_long_to_decode_are_not_all_waited_for(
    drive: Drive, halves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.engine.image.engine.READ_SECONDS", 0)
    driver = drive()
    for seed in (1, 2):
        driver.add(str(seed), image=NAME, inputs={"image": halves}, seed=seed, prompt="a tree", strength=0.5)
    driver.run()
    assert driver.pipeline.batches == [[1], [2]]
