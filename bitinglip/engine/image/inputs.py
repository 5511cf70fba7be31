"""A picture to start from, opened as if its sender meant harm.

What a file says of its size is checked before a pixel of it is decoded: a few kilobytes can claim gigabytes. Only three
formats are tried, so that no other decoder of Pillow's is ever run.
"""

import struct
from pathlib import Path

from PIL import Image, ImageOps

from bitinglip.domain.image_payload import INPUT_FORMATS, MAX_INPUT_BYTES, MAX_INPUT_PIXELS
from bitinglip.engine.jpeg_scans import MAX_SCANS, has_too_many_scans
from bitinglip.errors import InvalidRequestError

_FORMATS = f"{', '.join(INPUT_FORMATS[:-1])} or {INPUT_FORMATS[-1]}"


def open_input(path: Path) -> Image.Image:
    """Return the picture, upright, in RGB, transparent parts white.

    Args:
        path: A local file that the worker has fetched, never one that a request names.

    Raises:
        InvalidRequestError: If it is no picture, or more than may be decoded.
    """
    try:
        size = path.stat().st_size
        if size > MAX_INPUT_BYTES:
            raise _refuse(f"it has {size:,} bytes; at most {MAX_INPUT_BYTES:,}")
        with Image.open(path, formats=INPUT_FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_INPUT_PIXELS:
                raise _refuse(f"it is {width:,} x {height:,}; at most {MAX_INPUT_PIXELS:,} pixels")
            if picture.format in {"JPEG", "MPO"} and has_too_many_scans(path):
                raise _refuse(f"it has more than {MAX_SCANS} scans; save it anew")
            picture.load()
            return _flatten(_turn(picture))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise _refuse(f"it is larger than {MAX_INPUT_PIXELS:,} pixels") from exc
    except (OSError, ValueError, SyntaxError) as exc:
        raise _refuse(f"it cannot be read ({exc}); send a whole {_FORMATS}") from exc


def fit_picture(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in that size: scaled, and cut to the middle where its shape is another."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def _turn(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except (struct.error, TypeError, LookupError):
        # Its EXIF cannot be read, and so says nothing.
        return picture


def _flatten(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Sixteen bits of grey, which converting would cut off at eight.
        return picture.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    whole = picture.convert("RGBA")
    white = Image.new("RGBA", whole.size, "white")
    return Image.alpha_composite(white, whole).convert("RGB")


def _refuse(reason: str) -> InvalidRequestError:
    return InvalidRequestError("image", "the picture to start from", reason)
