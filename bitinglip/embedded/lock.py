"""One system a data folder: a lock that lives as long as the system's last child.

The guard inherits the descriptor, so after a `kill -9` of the parent the lock is released when the guard has stopped
the children, not before. The kernel releases it however its holders end.
"""

import fcntl
import os
import time
from pathlib import Path

from bitinglip.embedded.guard_process import POLL_SECONDS, find_start
from bitinglip.errors import ConfigurationError

HANDOVER_SECONDS = 60


class DataLock:
    """The right to run the servers of a data folder.

    Raises:
        ConfigurationError: If a live process has it; names that process.
    """

    def __init__(self, data_dir: Path) -> None:
        self._descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._acquire(data_dir)
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def descriptor(self) -> int:
        """To be held open by whoever must keep the lock."""
        return self._descriptor

    def release(self) -> None:
        """Give it up."""
        os.close(self._descriptor)

    def _acquire(self, data_dir: Path) -> None:
        deadline = time.monotonic() + HANDOVER_SECONDS
        while not self._try():
            holder, _, started_at = os.pread(self._descriptor, 100, 0).decode().partition(" ")
            if holder and find_start(int(holder)) == started_at:
                raise ConfigurationError(
                    f"--data-dir is {data_dir}: process {holder} runs a system there already; "
                    "stop it, use it with BITINGLIP_DATA_DIR, or name another folder"
                )
            # The holder was killed and its guard is stopping the servers.
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"--data-dir is {data_dir}: the servers of process {holder or '(unknown)'}, which was killed, "
                    f"have not ended within {HANDOVER_SECONDS} s; end them, or name another folder"
                )
            time.sleep(POLL_SECONDS)
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()} {find_start(os.getpid())}".encode(), 0)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
