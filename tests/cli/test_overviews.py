"""Queues, workers, agents, counts, health: what is there, for people and for programs."""

import io
import json
import signal
from pathlib import Path

import pytest
from rich.console import Console, Group

from bitinglip.cli.output import format_table
from bitinglip.cli.overviews import AGENT_COLUMNS, draw
from bitinglip.client import Client
from bitinglip.store.database import Database
from bitinglip.store.queries import list_agents
from tests.artifacts.s3_server import find_port, set_keys
from tests.cli.conftest import Run, Start, read_lines
from tests.conftest import System
from tests.factories import make_echo, make_worker


def test_queues_are_listed_by_agent_priority_and_type(run: Run, client: Client) -> None:
    client.submit_many([make_echo(agent="bot", priority="high"), make_echo(agent="bot", priority="high"), make_echo()])
    queues = read_lines(run("queue", "list", "--json").stdout)
    assert [(q["agent_id"], q["priority"], q["type"], q["ready"]) for q in queues] == [
        ("bot", "high", "echo", 2),
        ("default", "medium", "echo", 1),
    ]
    assert queues[0]["longest_wait_seconds"] >= 0
    assert len(run("queue", "list", "--agent", "bot").stdout.splitlines()) == 2


def test_a_watch_writes_what_changed_until_it_is_interrupted(start: Start, client: Client, database: Database) -> None:
    client.submit("echo", agent="bot")
    process = start("queue", "list", "--watch", "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["ready"] == 1
    client.submit("echo", agent="bot")
    assert json.loads(process.stdout.readline())["ready"] == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_workers_are_listed_with_their_models(run: Run, database: Database) -> None:
    make_worker(database, "one", models=["demo"])
    make_worker(database, "two", lease_seconds=0)
    workers = read_lines(run("worker", "list", "--json").stdout)
    assert [(w["name"], w["alive"], w["models"], w["slots"]) for w in workers] == [
        ("one", True, ["demo"], 8),
        ("two", False, [], 8),
    ]
    assert "demo" in run("worker", "list").stdout


def test_agents_are_listed_with_their_counts(run: Run, client: Client) -> None:
    client.submit("echo", agent="bot")
    client.submit("echo", agent="bot").cancel()
    (agent,) = read_lines(run("agent", "list", "--json").stdout)
    assert (agent["id"], agent["weight"], agent["pending"], agent["cancelled"]) == ("bot", 1.0, 1, 1)
    assert run("agent", "list").stdout.splitlines()[1].startswith("bot")


def test_stats_are_one_document(run: Run, client: Client) -> None:
    client.submit("echo")
    document = json.loads(run("stats", "--json").stdout)
    assert (document["tasks"], document["agents"], document["workers"]) == ({"pending": 1}, 1, 0)
    assert document["tokens_last_hour"] == 0
    assert "tasks pending" in run("stats").stdout


@pytest.mark.usefixtures("system")
def test_a_running_system_is_healthy(run: Run) -> None:
    result = run("health", "--json")
    document = json.loads(result.stdout)
    assert document["healthy"], document
    assert result.exit_code == 0
    parts = ["postgresql", "schema", "redis", "dispatcher", "workers", "artifacts"]
    assert [check["part"] for check in document["checks"]] == parts
    assert not Path(document["checks"][-1]["detail"]).exists(), "health writes nothing"


@pytest.mark.usefixtures("system")
def test_without_a_place_for_artifacts_it_is_not_healthy(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITINGLIP_ARTIFACT_SPARE_BYTES", str(2**62))
    full = run("health")
    set_keys(monkeypatch, tmp_path)
    monkeypatch.setenv("BITINGLIP_ARTIFACT_URL", "s3://bucket/prefix")
    monkeypatch.setenv("BITINGLIP_ARTIFACT_ENDPOINT_URL", f"http://127.0.0.1:{find_port()}")
    away = run("health")
    assert (full.exit_code, away.exit_code) == (5, 5)
    assert "BITINGLIP_ARTIFACT_SPARE_BYTES" in full.stdout.splitlines()[-1]
    assert "Could not connect" in away.stdout.splitlines()[-1]


def test_without_a_worker_and_a_dispatcher_it_is_not_healthy(run: Run, client: Client) -> None:
    result = run("health", "--json")
    assert result.exit_code == 5
    wrong = {check["part"]: check["detail"] for check in json.loads(result.stdout)["checks"] if not check["ok"]}
    assert set(wrong) == {"dispatcher", "workers"}
    assert "bitinglip worker start" in wrong["workers"]


def test_health_looks_at_redis_when_postgresql_is_away(
    run: Run, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITINGLIP_DATABASE_URL", "postgresql://me:wr0ng-secret@127.0.0.1:1/none")
    result = run("health")
    assert result.exit_code == 5
    assert "not looked at: postgresql" in result.stdout
    assert "wr0ng-secret" not in result.output


def test_health_says_that_redis_is_away(run: Run, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITINGLIP_REDIS_URL", "redis://:wr0ng-secret@127.0.0.1:1/0")
    result = run("health")
    assert result.exit_code == 5
    assert "BITINGLIP_REDIS_URL" in result.stdout
    assert "wr0ng-secret" not in result.output


def test_numbers_stand_to_the_right_where_some_are_missing() -> None:
    assert format_table(["who", "wait"], [("a", 1.5), ("b", None)])[1:] == ["a    1.50", "b       -"]


def test_a_screen_shows_each_agent_on_one_line_and_no_column_that_nobody_has(
    client: Client, database: Database
) -> None:
    client.submit("echo", agent="bot")
    with database.transaction() as connection:
        items = [dict(row._mapping) for row in list_agents(connection)]
    screen = io.StringIO()

    Console(file=screen, width=60).print(Group(draw(items, AGENT_COLUMNS)))

    header, line = screen.getvalue().splitlines()
    assert header.startswith("AGENT  WEIGHT")
    assert "MAX QUEUED" not in header
    assert line.startswith("bot")
    assert max(len(header), len(line)) <= 60


def test_a_screen_without_agents_says_so() -> None:
    assert str(draw([], AGENT_COLUMNS)) == "nothing yet"
