"""A picture's file: written as it is encoded, hashed on the way, with how it was made inside.

The prompt is inside only where the worker's operator wants it: pictures are passed on, and prompts may be private.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bitinglip.domain.image_payload import ImageFormat
from bitinglip.engine.base import JsonObject

TEXT_KEY = "bitinglip"
"""Of the PNG text chunk."""

EXIF_IFD = 0x8769
USER_COMMENT = 0x9286
MAX_COMMENT_BYTES = 60_000
"""JPEG's EXIF ends at 64 KiB."""

_PNG_LEVEL = 3
"""A third of the time of Pillow's default; files are a few percent larger."""

_SUFFIXES = {ImageFormat.PNG: "png", ImageFormat.WEBP: "webp", ImageFormat.JPEG: "jpg"}


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A picture on disk.

    Attributes:
        name: Within its folder.
        size: In bytes.
    """

    name: str
    media_type: str
    size: int
    sha256: str


def write_picture(
    folder: Path,
    index: int,
    pixels: NDArray[np.float32],
    image_format: ImageFormat,
    *,
    quality: int,
    parameters: JsonObject,
    prompts: JsonObject,
) -> WrittenFile:
    """Write one picture as `<index>.<suffix>`.

    Args:
        folder: Where; it is made if need be.
        index: The picture's number in its request.
        pixels: float32[height, width, 3], 0 to 1.
        image_format: How to write it.
        quality: Of a format that loses some.
        parameters: How it was made.
        prompts: Of that, what may be left out where there is no room.

    Raises:
        OSError: If it cannot be written.
    """
    picture = Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8))
    name = f"{index}.{_SUFFIXES[image_format]}"
    options = _describe(image_format, quality, parameters, prompts)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        hashing = _HashingFile(file)
        picture.save(cast("IO[bytes]", hashing), image_format.value, **options)
    return WrittenFile(name, f"image/{image_format}", hashing.size, hashing.hash.hexdigest())


def _describe(image_format: ImageFormat, quality: int, parameters: JsonObject, prompts: JsonObject) -> dict[str, Any]:
    """Pillow's options for a format, with what is to be known of the picture."""
    text = json.dumps({**parameters, **prompts})
    match image_format:
        case ImageFormat.PNG:
            chunks = PngInfo()
            chunks.add_text(TEXT_KEY, text)
            return {"pnginfo": chunks, "compress_level": _PNG_LEVEL}
        case ImageFormat.JPEG | ImageFormat.WEBP:
            exif = Image.Exif()
            exif.get_ifd(EXIF_IFD)[USER_COMMENT] = _make_comment(text) or _make_comment(json.dumps(parameters))
            return {"exif": exif, "quality": quality}


def _make_comment(text: str) -> bytes | None:
    """An EXIF user comment, its encoding named first as EXIF asks; None if it is too long."""
    comment = b"ASCII\0\0\0" + text.encode("ascii")
    return comment if len(comment) <= MAX_COMMENT_BYTES else None


class _HashingFile(io.RawIOBase):
    """What Pillow writes to; counts and hashes on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.hash.update(data)
        self.size += len(data)
        return len(data)
