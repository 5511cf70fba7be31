"""Other users of the machine can reach the loopback address, and get nothing."""

import os
import stat
import subprocess
from pathlib import Path

import psycopg2
import pytest
import redis

from bitinglip.embedded import EmbeddedServers


@pytest.mark.parametrize("user", ["bitinglip", "postgres", "root"])
@pytest.mark.parametrize("password", ["", "wrong"])
def test_postgres_refuses_a_wrong_password(user: str, password: str, shared_servers: EmbeddedServers) -> None:
    port = int((shared_servers.data_dir / "postgres.port").read_text())
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(
            host="127.0.0.1", port=port, user=user, password=password, dbname="postgres", passfile="/dev/null"
        )


def test_no_rule_of_postgres_trusts_anybody(shared_servers: EmbeddedServers, query) -> None:
    rules = query(shared_servers.urls, "SELECT DISTINCT type, auth_method FROM pg_hba_file_rules")
    assert set(rules) <= {("local", "reject"), ("host", "scram-sha-256")}


def test_valkey_refuses_a_wrong_password(shared_servers: EmbeddedServers, connect_redis) -> None:
    url = shared_servers.urls.redis_url
    with pytest.raises(redis.AuthenticationError):
        connect_redis(url.replace("redis://:", "redis://:x")).ping()
    with pytest.raises(redis.AuthenticationError):
        connect_redis(f"redis://{url.partition('@')[2]}").ping()


def test_they_listen_on_loopback_only(shared_servers: EmbeddedServers) -> None:
    ports = {int((shared_servers.data_dir / f"{name}.port").read_text()) for name in ("postgres", "valkey")}
    tables = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    listening = [fields[1].split(":") for fields in tables if fields[3] == "0A"]
    addresses = {address for address, port in listening if int(port, 16) in ports}
    assert addresses == {"0100007F"}


def test_every_file_is_private(shared_servers: EmbeddedServers) -> None:
    assert stat.S_IMODE(shared_servers.data_dir.stat().st_mode) == (0o711 if os.geteuid() == 0 else 0o700)
    for path in shared_servers.data_dir.iterdir():
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == allowed, path


def test_a_folder_that_was_open_is_closed(new_dir: Path, start_servers) -> None:
    new_dir.mkdir(mode=0o755)
    start_servers(new_dir)
    assert stat.S_IMODE(new_dir.stat().st_mode) & 0o066 == 0


def test_a_folder_with_other_files_keeps_its_mode(new_dir: Path, start_servers) -> None:
    new_dir.mkdir(mode=0o755)
    (new_dir / "of somebody else").touch()
    start_servers(new_dir)
    assert stat.S_IMODE(new_dir.stat().st_mode) == 0o755


def test_no_argument_holds_a_password(shared_servers: EmbeddedServers) -> None:
    passwords = [path.read_text() for path in shared_servers.data_dir.glob("*.password")]
    assert len(passwords) == 2
    for pid in [*shared_servers.stack.find_pids().values(), shared_servers.guard.pid]:
        arguments = Path(f"/proc/{pid}/cmdline").read_text()
        assert not [password for password in passwords if password in arguments]


def test_no_log_holds_a_password(shared_servers: EmbeddedServers) -> None:
    passwords = [path.read_text() for path in shared_servers.data_dir.glob("*.password")]
    for log in (shared_servers.data_dir / "logs").iterdir():
        assert not [password for password in passwords if password in log.read_text()]


def test_another_user_reads_no_file(shared_servers: EmbeddedServers, as_nobody) -> None:
    names = ["postgres.password", "valkey.password", "running.json", "logs/postgres.log"]
    for name in names:
        command = [*as_nobody[:4], "cat", str(shared_servers.data_dir / name)]
        read = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Permission denied" in read.stderr, name


def test_each_data_folder_has_its_own_passwords(start_servers, open_folder: Path) -> None:
    for name in ("one", "two"):
        start_servers(open_folder / name)
    for kind in ("postgres", "valkey"):
        assert (open_folder / "one" / f"{kind}.password").read_text() != (
            open_folder / "two" / f"{kind}.password"
        ).read_text()
