"""A picture that somebody brings: checked by what its file says of itself, and kept under a name that its bytes make.

No pixel of it is decoded here: the engine does that, under the same bounds.
"""

import hashlib
import stat
import warnings
from pathlib import Path

from bitinglip.artifacts.store import ArtifactStore
from bitinglip.domain.artifacts import make_upload_name
from bitinglip.domain.image_payload import INPUT_FORMATS, MAX_INPUT_BYTES, MAX_INPUT_PIXELS
from bitinglip.engine.jpeg_scans import MAX_SCANS, has_too_many_scans
from bitinglip.errors import InvalidRequestError

_REMEDY = f"name a picture: {', '.join(INPUT_FORMATS[:-1])} or {INPUT_FORMATS[-1]}"


def upload_picture(store: ArtifactStore, path: Path, *, max_bytes: int) -> str:
    """Keep a picture, and return the name that a task can start from.

    Args:
        store: Where it is kept.
        path: Of its file, whatever its suffix.
        max_bytes: Of the largest file that may be brought.

    Raises:
        InvalidRequestError: If it is no picture, or more than may be brought.
        ArtifactDamagedError: If the file changes meanwhile. Try again when nobody writes it.
        ArtifactDiskFullError: If there is no room.
        ArtifactStoreError: If the store cannot be used.
    """
    try:
        size = _check_size(path, min(max_bytes, MAX_INPUT_BYTES))
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        # After the hash, so that a file that is another by then is not kept.
        suffix = _check_header(path)
        if suffix == "jpeg" and has_too_many_scans(path):
            raise _refuse(path, f"it has more than {MAX_SCANS} scans; save it anew")
    except (OSError, ValueError, SyntaxError) as exc:
        reason = getattr(exc, "strerror", None) or "it is none, or damaged"
        raise _refuse(path, f"it cannot be read ({reason}); {_REMEDY}") from exc
    store.check_room()
    name = make_upload_name(sha256, suffix)
    store.put(path, name, size=size, sha256=sha256)
    return name


def _check_size(path: Path, max_bytes: int) -> int:
    status = path.stat()
    # Opening a pipe would wait for its writer.
    if not stat.S_ISREG(status.st_mode):
        raise _refuse(path, f"it is no file; {_REMEDY}")
    if not status.st_size:
        raise _refuse(path, f"it is empty; {_REMEDY}")
    if status.st_size > max_bytes:
        raise _refuse(path, f"it has {status.st_size:,} bytes; bring one of at most {max_bytes:,}")
    return status.st_size


def _check_header(path: Path) -> str:
    """The suffix of the picture's format."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=INPUT_FORMATS) as picture:
                (width, height), kind = picture.size, str(picture.format)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise _refuse(path, f"it is far too large; bring one of at most {MAX_INPUT_PIXELS:,} pixels") from exc
    if width * height > MAX_INPUT_PIXELS:
        raise _refuse(path, f"it is {width:,} x {height:,}; bring one of at most {MAX_INPUT_PIXELS:,} pixels")
    # What cameras write of several JPEGs begins as one.
    return "jpeg" if kind == "MPO" else kind.lower()


def _refuse(path: Path, reason: str) -> InvalidRequestError:
    return InvalidRequestError("image", str(path), reason)
