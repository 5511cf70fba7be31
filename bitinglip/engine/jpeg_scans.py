"""How often a JPEG goes over its picture: a scan is a few bytes of file, and a pass over every pixel to its decoder."""

from pathlib import Path

MAX_SCANS = 200
"""Programs write ten, at most some dozens."""

_START_OF_SCAN = b"\xff\xda"
_CHUNK_BYTES = 1 << 20


def has_too_many_scans(path: Path) -> bool:
    """Whether a JPEG has more than `MAX_SCANS`; whatever else the file is, it may seem so.

    Raises:
        OSError: If it cannot be read.
    """
    scans, last = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            # Within its data a JPEG never has these two bytes.
            scans += (last + chunk).count(_START_OF_SCAN)
            last = chunk[-1:]
    return scans > MAX_SCANS
