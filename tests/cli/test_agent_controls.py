"""`bitinglip agent set`, `pause`, `resume`, and what a submission that nobody could do is told."""

import json

import pytest

from bitinglip.client import Client
from bitinglip.store.database import Database
from tests.cli.conftest import Run
from tests.factories import execute, make_echo, make_running, make_worker


def test_every_limit_is_set_shown_and_taken_away(run: Run, client: Client) -> None:
    limits = ["--weight", "2", "--max-running", "4", "--daily-seconds", "3600", "--daily-tokens", "50000"]
    document = json.loads(run("agent", "set", "bot", *limits, "--json").stdout)
    wanted = {"id": "bot", "weight": 2, "max_running": 4, "daily_seconds": 3600, "daily_tokens": 50_000}
    assert document.items() >= wanted.items()

    lines = run("agent", "set", "bot", "--max-running", "none", "--daily-tokens", "none").stdout.splitlines()

    values = dict(line.split(maxsplit=1) for line in lines[1:])
    assert (values["max_running"], values["daily_seconds"], values["daily_tokens"]) == ("-", "3,600.00", "-")


def test_an_agent_is_paused_and_resumed(run: Run, client: Client) -> None:
    run("agent", "set", "bot", "--weight", "2")

    assert json.loads(run("agent", "pause", "bot", "--json").stdout)["paused"] is True
    assert ["paused", "yes"] in [line.split() for line in run("agent", "pause", "bot").stdout.splitlines()]
    assert json.loads(run("agent", "resume", "bot", "--json").stdout)["paused"] is False


def test_a_limit_below_what_runs_needs_force(run: Run, database: Database) -> None:
    worker = make_worker(database)
    for _ in range(2):
        make_running(database, worker, make_echo(agent="bot"))

    refused = run("agent", "set", "bot", "--max-running", "1")

    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: --max-running: 1: workers hold 2 of its tasks now; ")
    assert run("agent", "set", "bot", "--max-running", "1", "--force").exit_code == 0


BAD: dict[str, tuple[tuple[str, ...], int, list[str]]] = {
    "weight inf": (("set", "bot", "--weight", "inf"), 2, ["--weight", "inf", "finite"]),
    "weight negative": (("set", "bot", "--weight", "-1"), 2, ["--weight", "-1", "equal to 0.001"]),
    "max_running 0": (("set", "bot", "--max-running", "0"), 2, ["--max-running", "'0'", "greater than or equal to 1"]),
    "daily_seconds nan": (("set", "bot", "--daily-seconds", "nan"), 2, ["--daily-seconds", "finite"]),
    "daily_seconds 0": (("set", "bot", "--daily-seconds", "0"), 2, ["--daily-seconds", "greater than 0"]),
    "daily_tokens negative": (("set", "bot", "--daily-tokens", "-5"), 2, ["--daily-tokens", "-5", "greater than 0"]),
    "only force": (("set", "bot", "--force"), 2, ["nothing to change", "--max-running", "--daily-tokens"]),
    "pause nobody": (("pause", "nobody"), 3, ["'nobody' is not known", "bitinglip agent list"]),
    "resume nobody": (("resume", "nobody"), 3, ["'nobody' is not known", "bitinglip agent list"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_value_and_the_bound(run: Run, client: Client, case: str) -> None:
    arguments, exit_code, words = BAD[case]

    result = run("agent", *arguments)

    assert (result.exit_code, result.stdout) == (exit_code, "")
    for word in words:
        assert word in result.stderr


def test_what_no_worker_could_do_is_refused_with_exit_code_4(run: Run, database: Database) -> None:
    make_worker(database, "echoes")
    result = run("submit", "text", "Hello", "--model", "demo")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("error: no worker does 'text'; the workers here do echo; start one ")

    make_worker(database, "texts", kinds=["text"], memory_limit_bytes=8 * 10**9)
    execute(database, "INSERT INTO models (name, held_bytes) VALUES ('big', 14200000000)")
    result = run("submit", "text", "Hello", "--model", "big", "--json")
    error = json.loads(result.stderr)["error"]
    assert (result.exit_code, error["code"]) == (4, "infeasible")
    assert error["message"].startswith("model 'big' needs 14.2 GB, the only worker for it holds 8 GB; ")
    assert execute(database, "SELECT FROM tasks") == []
