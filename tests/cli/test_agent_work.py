"""Agents are limited, and do their own work, from a shell."""

import json
from typing import Any

import pytest

from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.lifecycle.rescue import rescue
from bitinglip.store.database import Database
from tests.cli.conftest import Run, read_lines
from tests.factories import execute

CHANNEL = "1" * 18


def take(run: Run, *options: str) -> tuple[str, str]:
    """The id and the token of the next task."""
    result = run("agent", "next", "--agent", "bot", "--timeout", "0", "--json", *options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    return document["task"]["id"], document["token"]


def submit(run: Run, title: str = "Minutes", *options: str) -> str:
    result = run("submit", "agent", title, "--agent", "bot", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.strip()


def test_a_task_is_submitted_taken_and_completed(run: Run, client: Client) -> None:
    task_id = submit(run, "Minutes", "--description", "As usual", "--payload", '{"meeting": 17}', "--priority", "high")
    record = client.get(task_id)
    assert (record.type, record.title, record.description) == ("agent", "Minutes", "As usual")
    assert record.payload == {"payload": {"meeting": 17}}

    taken, token = take(run)
    assert taken == task_id
    result = run("agent", "complete", taken, "--token", token, "--result", '{"text": "done"}')
    assert (result.exit_code, result.stdout) == (0, f"{taken} completed\n")
    assert client.handle(task_id).result(timeout=1) == {"text": "done"}


@pytest.mark.usefixtures("client")
def test_next_writes_what_a_person_needs(run: Run) -> None:
    task_id = submit(run, "Minutes", "--payload", '{"meeting": "große"}', "--channel", CHANNEL)
    result = run("agent", "next", "--agent", "bot", "--channel", CHANNEL, "--timeout", "0")
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[1:])
    assert shown["id"] == task_id
    assert len(shown["token"]) == 36
    assert (shown["title"], shown["payload"], shown["channel"]) == ("Minutes", '{"meeting": "große"}', CHANNEL)


@pytest.mark.usefixtures("client")
def test_nothing_within_the_timeout_exits_with_1(run: Run) -> None:
    submit(run, "elsewhere")
    result = run("agent", "next", "--agent", "bot", "--channel", CHANNEL, "--timeout", "0.1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "no task for agent 'bot' within 0.1 s\n"


def test_a_failure_is_recorded_or_tried_again(run: Run, client: Client) -> None:
    submit(run)
    task_id, token = take(run)
    failed = run("agent", "fail", task_id, "--token", token, "--message", "busy", "--code", "busy", "--retryable")
    assert failed.stdout == f"{task_id} retried\n"
    assert client.get(task_id).queue_state == "scheduled"
    submit(run)
    task_id, token = take(run)
    result = run("agent", "fail", task_id, "--token", token, "--message", "no such meeting", "--json")
    assert json.loads(result.stdout) == {"id": task_id, "outcome": "failed"}
    error = client.get(task_id).error
    assert error is not None
    assert (error.code, error.message) == ("agent_failed", "no such meeting")


def test_a_lease_is_renewed(run: Run, client: Client, database: Database) -> None:
    submit(run)
    task_id, token = take(run, "--lease", "1")
    assert run("agent", "renew", task_id, "--token", token, "--lease", "600").stdout == f"{task_id} renewed\n"
    assert rescue(database, lease_seconds=0.001) == []
    (left,) = execute(database, "SELECT extract(epoch FROM lease_expires_at - now())::int FROM workers")
    assert 590 <= left[0] <= 600
    client.cancel([task_id])
    assert run("agent", "renew", task_id, "--token", token).stdout == f"{task_id} cancelling\n"


@pytest.mark.parametrize(
    "command", [("complete",), ("fail", "--message", "late"), ("renew",)], ids=["complete", "fail", "renew"]
)
def test_what_another_took_is_not_ended(run: Run, client: Client, database: Database, command: tuple[str, ...]) -> None:
    submit(run)
    task_id, first = take(run)
    execute(database, "UPDATE workers SET lease_expires_at = now() - interval '1 s'")
    rescue(database, lease_seconds=0.001)
    _, second = take(run)
    before = client.get(task_id)

    result = run("agent", command[0], task_id, "--token", first, *command[1:])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: task {task_id}: attempt 2 is no longer yours; stop working on it\n"
    assert client.get(task_id) == before
    assert before.status is Status.IN_PROGRESS
    assert run("agent", "complete", task_id, "--token", second).exit_code == 0


def test_weights_and_limits_are_set_listed_and_taken_away(run: Run, client: Client) -> None:
    client.submit("echo", agent="bot")
    changed = run("agent", "set", "bot", "--weight", "2.5", "--max-priority", "high", "--max-queued", "7", "--json")
    document = json.loads(changed.stdout)
    assert (document["weight"], document["max_priority"], document["max_queued"]) == (2.5, "high", 7)
    assert run("agent", "set", "new", "--max-queued", "1").exit_code == 0

    agents = {agent["id"]: agent for agent in read_lines(run("agent", "list", "--json").stdout)}
    assert (agents["bot"]["weight"], agents["bot"]["max_priority"], agents["bot"]["max_queued"]) == (2.5, "high", 7)
    assert (agents["new"]["weight"], agents["new"]["max_priority"], agents["new"]["max_queued"]) == (1, None, 1)
    assert run("agent", "list").stdout.splitlines()[1].split()[:2] == ["bot", "2.50"]

    run("agent", "set", "bot", "--max-priority", "none")
    document = json.loads(run("agent", "set", "bot", "--max-queued", "none", "--json").stdout)
    assert (document["weight"], document["max_priority"], document["max_queued"]) == (2.5, None, None)


def test_a_limit_refuses_with_exit_code_4_and_the_numbers(run: Run, client: Client) -> None:
    run("agent", "set", "bot", "--max-queued", "1", "--max-priority", "medium")
    submit(run)

    result = run("submit", "agent", "One more", "--agent", "bot")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "agent 'bot' has 1 tasks waiting, the limit is 1" in result.stderr
    result = run("submit", "echo", "--agent", "bot", "--priority", "critical", "--json")
    assert (result.exit_code, json.loads(result.stderr)["error"]["code"]) == (4, "limit_exceeded")
    assert len(read_lines(run("task", "list", "--json").stdout)) == 1


BAD: dict[str, tuple[tuple[str, ...], int, list[str]]] = {
    "weight 0": (("set", "bot", "--weight", "0"), 2, ["--weight", "equal to 0.001"]),
    "weight too large": (("set", "bot", "--weight", "1001"), 2, ["--weight", "1001"]),
    "weight nan": (("set", "bot", "--weight", "nan"), 2, ["--weight"]),
    "max_queued 0": (("set", "bot", "--max-queued", "0"), 2, ["--max-queued", "greater than or equal to 1"]),
    "max_queued that is no number": (("set", "bot", "--max-queued", "many"), 2, ["--max-queued", "'many'", "integer"]),
    "unknown priority": (("set", "bot", "--max-priority", "urgent"), 2, ["--max-priority", "'urgent'"]),
    "nothing to set": (("set", "bot"), 2, ["--weight", "--max-priority", "--max-queued"]),
    "empty agent": (("set", "", "--weight", "1"), 2, ["AGENT", "too short"]),
    "agent of 101 characters": (("set", "a" * 101, "--weight", "1"), 2, ["AGENT", "at most 100"]),
    "next for nobody": (("next",), 2, ["--agent"]),
    "next for an empty agent": (("next", "--agent", ""), 2, ["--agent", "too short"]),
    "next in no channel": (("next", "--agent", "bot", "--channel", "17"), 2, ["--channel", "17 to 19 digits"]),
    "negative timeout": (("next", "--agent", "bot", "--timeout", "-1"), 2, ["--timeout", "-1"]),
    "lease too short": (("next", "--agent", "bot", "--lease", "0"), 2, ["--lease", "0"]),
    "token that is none": (
        ("complete", "01890a5d-ac96-774b-bcce-b302099a8057", "--token", "17"),
        2,
        ["--token", "'17'", "came with the task"],
    ),
    "task that is not there": (
        ("complete", "01890a5d-ac96-774b-bcce-b302099a8057", "--token", "01890a5d-ac96-774b-bcce-b302099a8057"),
        3,
        ["01890a5d"],
    ),
    "result that is no object": (("complete", "x", "--token", "x", "--result", "17"), 2, ["--result", "JSON object"]),
    "fail without a word": (("fail", "x", "--token", "x"), 2, ["--message"]),
}


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(("arguments", "code", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(
    arguments: tuple[str, ...], code: int, words: list[str], run: Run, database: Database
) -> None:
    result = run("agent", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    counts: list[Any] = execute(database, "SELECT (SELECT count(*) FROM agents), (SELECT count(*) FROM workers)")
    assert counts == [(0, 0)]
