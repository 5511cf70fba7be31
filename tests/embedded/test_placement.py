"""Root's PostgreSQL runs under another account, which must reach data and programs without any parent being opened."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from bitinglip.embedded import placement, remove_data
from bitinglip.embedded.accounts import choose_server_account
from bitinglip.embedded.binaries import find_postgres

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root lends an account")


@pytest.fixture
def system_folder(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(placement, "SYSTEM_FOLDER", open_folder / "system")
    return open_folder / "system"


@pytest.fixture
def closed_home(open_folder: Path) -> Path:
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    return home


@root_only
def test_a_data_folder_in_a_closed_home_links_to_its_database(
    closed_home: Path, system_folder: Path, start_servers, query
) -> None:
    servers = start_servers(closed_home / "data")
    query(servers.urls, "CREATE TABLE kept AS SELECT 42 AS answer")
    servers.stop()
    servers.start()
    assert query(servers.urls, "SELECT answer FROM kept") == [(42,)]
    link = closed_home / "data" / "postgresql-18"
    assert link.readlink().parent == system_folder
    assert stat.S_IMODE(closed_home.stat().st_mode) == 0o700
    assert stat.S_IMODE(link.stat().st_mode) == 0o700
    servers.stop()
    remove_data(closed_home / "data")
    assert list(system_folder.glob("postgresql-*")) == []


@root_only
def test_programs_in_a_closed_home_are_copied_once(closed_home: Path, system_folder: Path) -> None:
    programs = find_postgres()
    assert programs.wheel is not None
    wheel = closed_home / programs.wheel.name
    (wheel / "pginstall" / "bin").mkdir(parents=True)
    shutil.copy(programs.folder / "postgres", wheel / "pginstall" / "bin")
    (closed_home / f"{wheel.name}.libs").mkdir()
    moved = programs._replace(folder=wheel / "pginstall" / "bin", wheel=wheel)
    account = choose_server_account()
    folder = placement.place_programs(moved, account)
    assert folder == system_folder / f"programs-{programs.version}" / wheel.name / "pginstall" / "bin"
    made = folder.stat().st_ctime_ns
    assert placement.place_programs(moved, account).stat().st_ctime_ns == made
    assert [path.name for path in system_folder.iterdir()] == [f"programs-{programs.version}"]


@root_only
def test_postgres_runs_from_copied_programs(
    closed_home: Path, system_folder: Path, start_servers, monkeypatch: pytest.MonkeyPatch, query
) -> None:
    programs = find_postgres()
    assert programs.wheel is not None
    for source in (programs.wheel, programs.wheel.with_name(f"{programs.wheel.name}.libs")):
        shutil.copytree(source, closed_home / source.name)
    wheel = closed_home / programs.wheel.name
    moved = programs._replace(folder=wheel / "pginstall" / "bin", wheel=wheel)
    monkeypatch.setattr("bitinglip.embedded.postgres.find_postgres", lambda: moved)
    servers = start_servers()
    program = Path(f"/proc/{servers.stack.find_pids()['postgres']}/exe").readlink()
    assert program.is_relative_to(system_folder)
    assert query(servers.urls, "SELECT 1") == [(1,)]
