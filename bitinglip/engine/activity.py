"""What an engine process does now, in a few bytes of memory that it shares with its worker.

The engine's one thread cannot say over the pipe that it is stuck, so it writes down what it begins before it begins it:
a quarter of a microsecond, no system call. The worker reads that as often as it likes; `limits` says how long each may
take.

Weakness: the two fields are not written as one. A reader may see a new time beside an old activity, never for longer
than the write takes.
"""

import mmap
import os
import struct
import sys
import tempfile
import time
from enum import IntEnum
from typing import BinaryIO

_LAYOUT = struct.Struct("@dq")


class Activity(IntEnum):
    """What the engine thread is busy with. The first two come before any request."""

    START = 0
    PRELOAD = 1
    IDLE = 2
    LOAD = 3
    PREFILL = 4
    STEP = 5


class ActivityBoard:
    """One end of the shared memory; it reads `START` until the engine has written.

    Args:
        fd: Of a file from `open_board_file`; may be closed afterwards.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _LAYOUT.size)

    def begin(self, activity: Activity) -> None:
        """Write down what begins now."""
        _LAYOUT.pack_into(self._memory, 0, time.monotonic(), activity)

    def read(self) -> tuple[Activity, float]:
        """What goes on, and when it began on the clock that all processes of a machine share (CLOCK_MONOTONIC)."""
        began, activity = _LAYOUT.unpack_from(self._memory)
        return Activity(activity), began


def open_board_file() -> BinaryIO:
    """A nameless file for one board, zeroed; in memory where the system can: a full disk must not end an engine.

    Raises:
        OSError: If there are too many open files.
    """
    file = _open_nameless_file()
    file.write(bytes(_LAYOUT.size))
    return file


def _open_nameless_file() -> BinaryIO:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("bitinglip-activity"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
