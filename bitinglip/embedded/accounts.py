"""Which account the servers run under.

PostgreSQL refuses to run as root, so root lends it an account of the machine. Everybody else runs it as themselves.
Whether an account may enter a folder is asked of the kernel, by trying: mode bits alone miss ACLs and read-only mounts.
"""

import os
import pwd
import subprocess
from pathlib import Path
from typing import NamedTuple

from bitinglip.errors import ConfigurationError

CANDIDATES = ("postgres", "nobody")


class Account(NamedTuple):
    """An account of this machine."""

    name: str
    uid: int
    gid: int


def choose_server_account() -> Account | None:
    """The account that PostgreSQL runs under, or None to run it as ourselves.

    Raises:
        ConfigurationError: If we are root and the machine has no account to lend.
    """
    if os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise ConfigurationError(
        f"PostgreSQL refuses to run as root and there is no account named {' or '.join(CANDIDATES)}; "
        "create one with 'useradd --system postgres', or run BitingLip as another user"
    )


def can_enter(account: Account | None, folder: Path) -> bool:
    """Whether the account can open files below the folder by their full path."""
    return _try_as(account, 'cd "$1"', folder)


def can_run(account: Account | None, program: Path) -> bool:
    """Whether the account can execute the program by its full path."""
    return _try_as(account, 'test -x "$1"', program)


def _try_as(account: Account | None, test: str, path: Path) -> bool:
    command = ["/bin/sh", "-c", test, "sh", str(path)]
    if account is None:
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0  # noqa: S603
    tried = subprocess.run(  # noqa: S603
        command,
        stderr=subprocess.DEVNULL,
        cwd="/",
        check=False,
        user=account.uid,
        group=account.gid,
        extra_groups=[],
    )
    return tried.returncode == 0
