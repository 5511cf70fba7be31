"""Every problem at once, no password, and a schema that can be upgraded."""

import json
from pathlib import Path

import pytest

from bitinglip.client import Client
from bitinglip.store.database import Database
from bitinglip.store.migrate import downgrade
from tests.cli.conftest import Run
from tests.conftest import System


def test_every_problem_is_written_at_once(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pools = tmp_path / "pools.toml"
    pools.write_text('[pools.gpu]\nkinds = ["song"]\nslots = 0\n')
    settings = {
        "BITINGLIP_DATABASE_URL": "mysql://me:wr0ng-secret@127.0.0.1/none",
        "BITINGLIP_REDIS_URL": "redis://:wr0ng-secret@127.0.0.1/0",
        "TASK_MAX_RETRY_COUNT": "99",
        "BITINGLIP_LEASE_SECONDS": "2",
        "BITINGLIP_LOG_LEVEL": "LOUD",
        "BITINGLIP_POOLS_FILE": str(pools),
        "BITINGLIP_CELERY_CONFIG": str(tmp_path / "celeryconfig.py"),
        "BITINGLIP_ARTIFACT_URL": "nowhere://me:wr0ng-secret@bucket/prefix",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    result = run("config", "check")
    assert result.exit_code == 2
    for word in (
        "BITINGLIP_DATABASE_URL starts with 'mysql'",
        "TASK_MAX_RETRY_COUNT is '99'",
        "BITINGLIP_LEASE_SECONDS is 2",
        "BITINGLIP_LOG_LEVEL is 'LOUD'",
        "pools.gpu.kinds",
        "pools.gpu.slots",
        "BITINGLIP_CELERY_CONFIG",
        "BITINGLIP_ARTIFACT_URL is 'nowhere://bucket/prefix'",
    ):
        assert word in result.stdout
    assert "wr0ng-secret" not in result.output
    assert len(json.loads(run("config", "check", "--json").stdout)["problems"]) == 8


def test_a_celeryconfig_that_does_not_run_is_a_problem(
    run: Run, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "celeryconfig.py"
    file.write_text("task_acks_late = Tru\n")
    monkeypatch.setenv("BITINGLIP_CELERY_CONFIG", str(file))
    result = run("config", "check")
    assert result.exit_code == 2
    assert f"{file}: NameError: name 'Tru' is not defined" in result.stdout


def test_connections_are_added_up(run: Run, client: Client) -> None:
    document = json.loads(run("config", "check", "--json").stdout)
    assert document["problems"] == []
    assert document["connections"]["workers"] >= 1
    assert document["connections"]["needed"] >= 2 * document["connections"]["workers"]
    assert document["connections"]["allowed"] > document["connections"]["needed"]


def test_an_engine_that_downloads_has_connections_of_its_own(
    run: Run, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pools = tmp_path / "pools.toml"
    monkeypatch.setenv("BITINGLIP_POOLS_FILE", str(pools))

    def count(kind: str) -> int:
        pools.write_text(f'[pools.one]\nkinds = ["{kind}"]\ngpus = []\n')
        return int(json.loads(run("config", "check", "--json").stdout)["connections"]["needed"])

    assert count("download") == count("echo") + 4


def test_a_server_that_is_away_is_no_problem_of_the_configuration(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITINGLIP_DATABASE_URL", "postgresql://me@127.0.0.1:1/none")
    monkeypatch.setenv("BITINGLIP_REDIS_URL", "redis://127.0.0.1:1/0")
    result = run("config", "check", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"problems": [], "connections": None})


def test_a_database_without_a_schema_is_refused_until_it_is_upgraded(run: Run, database: Database) -> None:
    downgrade(database, "base")
    refused = run("task", "list")
    assert refused.exit_code == 5
    assert "bitinglip db upgrade" in refused.stderr
    upgraded = run("db", "upgrade", "--json")
    assert (upgraded.exit_code, json.loads(upgraded.stdout)["revision"]) == (0, "head")
    assert run("task", "list").exit_code == 0


def test_a_database_that_is_newer_than_the_code_is_left_alone(run: Run, database: Database, system: System) -> None:
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    result = run("db", "upgrade")
    assert result.exit_code == 5
    assert "upgrade this installation" in result.stderr
