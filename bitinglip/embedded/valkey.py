"""The private Valkey: every message on disk within a second, only `127.0.0.1`, only with the password.

Its settings go in through stdin: arguments can be read by every user of the machine, and a file would be one more to
keep. It runs in its data folder, so that no path needs quoting. It is ready when its log says so: asking it over the
network would hand the password to whoever else listens there.
"""

from dataclasses import dataclass
from pathlib import Path

from bitinglip.embedded.binaries import find_valkey
from bitinglip.embedded.child import Child, Program
from bitinglip.embedded.ports import LOOPBACK

READY_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Valkey:
    """One Valkey or Redis server.

    Attributes:
        folder: Its data folder.
        log_folder: Takes `valkey.log`.
        password: Of its default user.
        fsync: False leaves writing to the kernel: for tests.
    """

    folder: Path
    log_folder: Path
    password: str
    fsync: bool = True

    def make_url(self, port: int) -> str:
        """Where clients find it. Holds the password: never log it."""
        return f"redis://:{self.password}@{LOOPBACK}:{port}/0"

    def make_program(self, port: int) -> Program:
        """The server on that port.

        Raises:
            ConfigurationError: If neither Valkey nor Redis is installed.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        settings = {
            "bind": LOOPBACK,
            "port": str(port),
            "requirepass": self.password,
            "appendonly": "yes",
            "appendfsync": "everysec" if self.fsync else "no",
            "save": '""',
            "daemonize": "no",
        }
        return Program(
            name="valkey",
            argv=(str(find_valkey()), "-"),
            log_file=self.log_folder / "valkey.log",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            folder=self.folder,
            stdin="".join(f"{name} {value}\n" for name, value in settings.items()),
            wait_ready=_wait_ready,
        )


def _wait_ready(child: Child) -> None:
    child.wait_until(lambda: "ready to accept connections" in child.read_log().lower(), within_seconds=READY_SECONDS)
