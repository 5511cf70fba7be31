"""The servers start, come back with their data, and never outlive who started them."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
import redis

from bitinglip.embedded import ChildStartError, EmbeddedServers, read_running, remove_data
from bitinglip.embedded.cluster import is_ready
from bitinglip.errors import ConfigurationError


def test_data_and_urls_survive_a_restart(start_servers, query, connect_redis) -> None:
    servers = start_servers()
    urls = servers.urls
    query(urls, "CREATE TABLE kept AS SELECT 42 AS answer")
    connect_redis(urls.redis_url).set("kept", "42")
    servers.stop()
    assert servers.start() == urls
    assert query(urls, "SELECT answer FROM kept") == [(42,)]
    assert connect_redis(urls.redis_url).get("kept") == "42"


def test_the_database_is_durable_unless_told_otherwise(data_dir: Path, open_folder: Path, start_servers, query) -> None:
    assert query(start_servers().urls, "SHOW fsync") == [("off",)]
    with EmbeddedServers(open_folder / "durable", postgres_options={"work_mem": "8MB"}) as servers:
        assert query(servers.urls, "SHOW fsync") == [("on",)]
        assert query(servers.urls, "SHOW work_mem") == [("8MB",)]
        assert query(servers.urls, "SHOW max_connections") == [("200",)]


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_a_killed_server_comes_back_with_its_data(
    name: str, start_servers, deaths, query, connect_redis, eventually
) -> None:
    servers = start_servers(on_death=deaths.append)
    query(servers.urls, "CREATE TABLE kept AS SELECT 42 AS answer")
    connect_redis(servers.urls.redis_url).set("kept", "42")
    pid = servers.stack.find_pids()[name]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: servers.stack.find_pids().get(name, pid) != pid)
    eventually(lambda: answer(lambda: query(servers.urls, "SELECT 1"), psycopg2.OperationalError))
    eventually(lambda: answer(connect_redis(servers.urls.redis_url).ping, redis.RedisError))
    assert query(servers.urls, "SELECT answer FROM kept") == [(42,)]
    assert connect_redis(servers.urls.redis_url).get("kept") == "42"
    assert [death.name for death in deaths] == [name]


def answer(ask: Callable[[], object], not_yet: type[Exception]) -> object:
    try:
        return ask()
    except not_yet:
        return None


def test_a_second_start_is_refused_and_names_the_first(start_servers, data_dir: Path, query) -> None:
    servers = start_servers()
    with pytest.raises(ConfigurationError, match=f"process {os.getpid()} runs a system there already"):
        EmbeddedServers(data_dir).start()
    assert read_running(data_dir) is not None
    assert query(servers.urls, "SELECT 1") == [(1,)]


def test_a_folder_that_cannot_be_written_is_named(new_dir: Path) -> None:
    new_dir.touch()
    with pytest.raises(ConfigurationError, match=r"--data-dir is .*/new: File exists; name a folder"):
        EmbeddedServers(new_dir).start()
    with pytest.raises(ConfigurationError, match="Not a directory"):
        EmbeddedServers(new_dir / "below").start()


def test_remove_data_refuses_while_a_system_runs(start_servers, data_dir: Path) -> None:
    start_servers()
    with pytest.raises(ConfigurationError, match="runs a system there already"):
        remove_data(data_dir)


def test_other_terminals_find_the_system_while_it_runs(start_servers, data_dir: Path) -> None:
    servers = start_servers()
    servers.describe(flower_url="http://127.0.0.1:1/")
    assert read_running(data_dir) == {
        **servers.urls._asdict(),
        "pid": os.getpid(),
        "extra": {"flower_url": "http://127.0.0.1:1/"},
    }
    servers.stop()
    assert read_running(data_dir) is None


def test_a_killed_parent_leaves_nothing(start_parent, data_dir: Path, eventually, is_gone) -> None:
    parent = start_parent(str(data_dir))
    assert set(parent.pids) == {"postgres", "valkey", "first", "second", "guard"}
    parent.kill()
    eventually(lambda: all(is_gone(pid) for pid in parent.pids.values()))
    stopped = (data_dir / "logs" / "guard.log").read_text()
    names = [line.split()[-2] for line in stopped.splitlines()]
    assert names == ["second", "first", "valkey", "postgres"]
    assert read_running(data_dir) is None


def test_the_next_start_waits_for_the_guard_of_a_killed_one(start_parent, data_dir: Path, start_servers, query) -> None:
    parent = start_parent(str(data_dir))
    query(parent.urls, "CREATE TABLE kept AS SELECT 42 AS answer")
    parent.kill()
    servers = start_servers()
    assert servers.urls == parent.urls
    assert query(servers.urls, "SELECT answer FROM kept") == [(42,)]


def test_the_next_start_takes_over_when_the_guard_was_killed_too(
    start_parent, data_dir: Path, start_servers, query, is_gone
) -> None:
    parent = start_parent(str(data_dir))
    query(parent.urls, "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(parent.pids["guard"], signal.SIGKILL)
    parent.kill()
    assert not is_gone(parent.pids["postgres"])
    servers = start_servers()
    assert is_gone(parent.pids["postgres"])
    assert is_gone(parent.pids["valkey"])
    assert query(servers.urls, "SELECT answer FROM kept") == [(42,)]
    for name in ("first", "second"):
        os.killpg(parent.pids[name], signal.SIGTERM)


def test_everything_killed_at_once_comes_back_with_its_data(start_parent, data_dir: Path, start_servers, query) -> None:
    parent = start_parent(str(data_dir))
    query(parent.urls, "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(parent.pids["guard"], signal.SIGKILL)
    for name in ("postgres", "valkey", "first", "second"):
        os.killpg(parent.pids[name], signal.SIGKILL)
    parent.kill()
    assert query(start_servers().urls, "SELECT answer FROM kept") == [(42,)]


def test_a_stale_lock_with_a_recycled_pid_does_not_block(start_servers, data_dir: Path) -> None:
    """As after a restarted container: the numbers in the files belong to other processes now."""
    servers = start_servers()
    servers.stop()
    cluster = (data_dir / "postgresql-18").resolve()
    bystander = os.getppid() if os.geteuid() else 0
    pid = bystander or start_bystander(cluster)
    (cluster / "postmaster.pid").write_text(f"{pid}\n{cluster}\n1\n1\n\n\n\nready\n")
    (data_dir / "run" / "postgres.pid").write_text(f"postgres {pid} 1-of-an-earlier-boot 2 30")
    try:
        servers.start()
    finally:
        if not bystander:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def start_bystander(cluster: Path) -> int:
    """A process of the server's account, which PostgreSQL would take for a server."""
    owner = cluster.stat()
    pid = os.fork()
    if pid == 0:
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
        os.execv("/bin/sleep", ["sleep", "1000"])
    return pid


def test_a_killed_servers_file_does_not_say_that_the_next_one_is_ready(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(f"4711\n{tmp_path}\n1\n1\n\n\n\nready   \n")
    assert is_ready(tmp_path, 4711)
    assert not is_ready(tmp_path, 4712)
    assert not is_ready(tmp_path / "nowhere", 4711)


def test_a_port_in_use_is_replaced(start_servers, data_dir: Path, query) -> None:
    servers = start_servers()
    servers.stop()
    ports = {}
    for name in ("postgres", "valkey"):
        ports[name] = int((data_dir / f"{name}.port").read_text())
    with socket.create_server(("127.0.0.1", ports["postgres"])), socket.create_server(("127.0.0.1", ports["valkey"])):
        urls = servers.start()
    assert f":{ports['postgres']}/" not in urls.database_url
    assert f":{ports['valkey']}/" not in urls.redis_url
    assert query(urls, "SELECT 1") == [(1,)]


def test_a_port_taken_between_choice_and_start_costs_another_try(
    start_servers, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        taken = squatter.getsockname()[1]
        choices = iter([taken])
        from bitinglip.embedded import servers as module

        keep = module.keep_port
        monkeypatch.setattr(module, "keep_port", lambda path: next(choices, None) or keep(path))
        urls = start_servers().urls
    assert f":{taken}/" not in urls.database_url


def test_a_failed_start_shows_the_servers_words_and_leaves_nothing(start_servers, data_dir: Path) -> None:
    with pytest.raises(ChildStartError, match=r'(?s)postgres ended with 1.*"max_connections": "many"'):
        start_servers(postgres_options={"max_connections": "many"})
    assert read_running(data_dir) is None
    start_servers()


def test_a_lost_password_names_the_file(start_servers, data_dir: Path) -> None:
    servers = start_servers()
    servers.stop()
    password = data_dir / "postgres.password"
    kept = password.read_text()
    password.write_text("wrong")
    with pytest.raises(ConfigurationError, match=r"refuses the password in .*postgres\.password"):
        servers.start()
    password.write_text(kept)
    servers.start()


def test_a_start_that_died_while_the_database_was_made_is_repeated(new_dir: Path, start_servers) -> None:
    new_dir.mkdir()
    draft = new_dir / "postgresql-18.draft"
    draft.mkdir()
    (draft / "PG_VERSION").write_text("18\n")
    start_servers(new_dir)
    assert not draft.exists()


def test_a_very_long_path_and_odd_environment_do_no_harm(
    open_folder: Path, start_servers, monkeypatch: pytest.MonkeyPatch, query
) -> None:
    for name, value in {
        "TMPDIR": "/nonexistent",
        "LC_ALL": "xx_YY.UTF-8",
        "PGPORT": "1",
        "PGDATA": "/",
        "TZ": "Mars",
    }.items():
        monkeypatch.setenv(name, value)
    folder = open_folder / ("long " * 20) / ("longer " * 20)
    folder.mkdir(parents=True)
    servers = start_servers(folder / "data")
    assert query(servers.urls, "SHOW timezone") == [("UTC",)]
    for name in ("postgres", "valkey"):
        environment = Path(f"/proc/{servers.stack.find_pids()[name]}/environ").read_text()
        assert "PGPORT" not in environment, "nothing of ours goes to the account that runs it"
    servers.stop()
    remove_data(folder / "data")


def test_it_runs_as_a_user_without_rights(as_nobody, open_folder: Path, start_parent, query, connect_redis) -> None:
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    parent = start_parent(str(home / "data"), prefix=as_nobody, env={**os.environ, "HOME": str(home)})
    for name in ("postgres", "valkey"):
        assert Path(f"/proc/{parent.pids[name]}").stat().st_uid == 65534
    assert query(parent.urls, "SELECT current_user") == [("bitinglip",)]
    assert connect_redis(parent.urls.redis_url).ping()
    assert (home / "data").stat().st_mode & 0o777 == 0o700
    parent.finish(signal.SIGTERM)


def test_running_json_is_written_whole(start_servers, data_dir: Path) -> None:
    servers = start_servers()
    for number in range(20):
        servers.describe(number=number)
        assert json.loads((data_dir / "running.json").read_text())["extra"] == {"number": number}
    assert [path.name for path in data_dir.iterdir() if path.name.startswith(".")] == []
