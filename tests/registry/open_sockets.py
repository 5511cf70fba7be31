"""The sockets that this process has open."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def count_sockets() -> int:
    """How many, of both ends if both are here."""
    return sum("socket:" in str(target) for target in _read_links(Path("/proc/self/fd")))


def _read_links(folder: Path) -> Iterator[Path]:
    for link in folder.iterdir():
        # The listing's own is gone by then.
        with contextlib.suppress(FileNotFoundError):
            yield link.readlink()
