"""Where PostgreSQL's data and programs lie so that the account that runs it can reach them.

Normally: the data in `<data_dir>/postgresql-18`, the programs in the wheel. Root lends PostgreSQL another account, and
that one cannot enter root's home (0700), where the data folder is by default and a virtual environment often is. Parent
folders are never opened up for it. Instead, below `/var/lib/bitinglip`, as any system service would have it:

- the data: `postgresql-18-<random>`, which only the account may enter; `<data_dir>/postgresql-18` is then a link to it,
  so the data folder still names everything that belongs to it. A copy of the data folder is no copy of the database.
- the programs: one copy a version (42 MB, 0.2 s), shared by every data folder.
"""

import os
import secrets
import shutil
from pathlib import Path

from bitinglip.embedded.accounts import Account, can_enter, can_run
from bitinglip.embedded.binaries import PostgresPrograms
from bitinglip.errors import ConfigurationError

SYSTEM_FOLDER = Path("/var/lib/bitinglip")


def place_cluster(data_dir: Path, major: int, account: Account | None) -> Path:
    """The folder that holds the database, or will: the account can enter its parent by its full path."""
    folder = data_dir / f"postgresql-{major}"
    if folder.is_symlink():
        return folder.readlink()
    if folder.exists() or can_enter(account, data_dir):
        return folder
    target = _open_system_folder() / f"{folder.name}-{secrets.token_hex(4)}"
    folder.symlink_to(target)
    return target


def place_programs(programs: PostgresPrograms, account: Account | None) -> Path:
    """The folder from which the account can run `postgres` and `initdb`.

    Raises:
        ConfigurationError: If it cannot run those of the system.
    """
    if can_run(account, programs.folder / "postgres"):
        return programs.folder
    if programs.wheel is None:
        name = account.name if account else "this user"
        raise ConfigurationError(f"{programs.folder}: {name} cannot run the programs there; make them executable")
    home = _open_system_folder() / f"programs-{programs.version}"
    if not home.exists():
        _copy_wheel(programs.wheel, home)
    return home / programs.folder.relative_to(programs.wheel.parent)


def remove_cluster(data_dir: Path) -> None:
    """Remove every database that the data folder holds or links to."""
    for folder in data_dir.glob("postgresql-*"):
        target = folder.readlink() if folder.is_symlink() else folder
        shutil.rmtree(target, ignore_errors=True)
        if folder.is_symlink():
            folder.unlink()


def _open_system_folder() -> Path:
    try:
        SYSTEM_FOLDER.mkdir(parents=True, exist_ok=True)
        SYSTEM_FOLDER.chmod(0o711)
    except OSError as exc:
        raise ConfigurationError(
            f"{SYSTEM_FOLDER} cannot be made ({exc.strerror}), and PostgreSQL's account cannot enter the data folder; "
            "name another with --data-dir, such as /srv/bitinglip, or run BitingLip as another user"
        ) from exc
    return SYSTEM_FOLDER


def _copy_wheel(wheel: Path, home: Path) -> None:
    """Copy the wheel's package and the libraries beside it, whole or not at all."""
    draft = home.with_name(f".{home.name}.{os.getpid()}")
    for source in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        if source.is_dir():
            shutil.copytree(source, draft / source.name, ignore=shutil.ignore_patterns("__pycache__", "include"))
    draft.chmod(0o755)
    try:
        draft.rename(home)
    except OSError:
        # Another start was faster; its copy is the same.
        shutil.rmtree(draft)
