"""Submission: the id, the text, the record, the stream; and what goes wrong after it."""

import json
import signal
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bitinglip.client import Client
from tests.cli.conftest import Run, Start, read_lines
from tests.conftest import System, eventually


def test_a_submission_writes_the_id_and_nothing_else(run: Run, client: Client) -> None:
    result = run("submit", "text", "What is the capital of Peru?")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert client.get(uuid.UUID(result.stdout.strip())).payload == {"prompt": "What is the capital of Peru?"}


def test_every_option_reaches_the_record(run: Run, client: Client, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    options = (
        "--agent bot --user ada --priority high --channel 12345678901234567 --max-tokens 7 --temperature 0 --top-p 0.5 "
        f"--top-k 3 --seed 4 --stop END --stop ; --repetition-penalty 1.5 --json-schema {schema} --title T "
        "--description D"
    ).split()
    result = run("submit", "text", "hi", *options, "--metadata", '{"ticket": 17}', "--json")
    document = json.loads(result.stdout)
    assert document["status"] == "pending"
    task = client.get(document["id"])
    assert (task.agent_id, task.user_id, task.priority, task.channel_id) == ("bot", "ada", "high", "12345678901234567")
    assert (task.title, task.description, task.metadata, task.model) == ("T", "D", {"ticket": 17}, "demo")
    assert task.payload == {
        "prompt": "hi",
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 4,
        "stop": ["END", ";"],
        "repetition_penalty": 1.5,
        "json_schema": {"type": "object"},
    }


def test_the_shared_options_reach_the_record(run: Run, client: Client) -> None:
    first = run("submit", "echo", "a").stdout.strip()
    second = run("submit", "echo", "b").stdout.strip()
    options = ("--ttl", "600", "--at", "+1h", "--after", first, "--after", second, "--idempotency-key", "k")

    result = run("submit", "echo", "c", *options, "--json")

    task = client.get(json.loads(result.stdout)["id"])
    assert (task.queue_state, task.idempotency_key) == ("blocked", "k")
    assert [str(parent) for parent in task.depends_on] == [first, second]
    assert task.not_before is not None
    assert 3_590 < (task.not_before - task.created_at).total_seconds() <= 3_600
    again = json.loads(run("submit", "echo", "c", *options, "--json").stdout)
    assert again == {"id": str(task.id), "status": "pending"}


def test_a_repeated_key_tells_what_became_of_its_task(run: Run, client: Client) -> None:
    task_id = run("submit", "echo", "--idempotency-key", "k").stdout.strip()
    client.cancel([task_id])

    assert json.loads(run("submit", "echo", "--idempotency-key", "k", "--json").stdout) == {
        "id": task_id,
        "status": "cancelled",
    }
    refused = run("submit", "echo", "other", "--idempotency-key", "k")
    assert refused.exit_code == 2
    assert "--idempotency-key" in refused.stderr
    assert f"was used for task {task_id}" in refused.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("in 10m", 600), ("+10m", 600), ("10m", 600), ("in 2h", 7_200), ("1d", 86_400), ("30s", 30)]
)
def test_a_while_from_now_is_a_time(run: Run, client: Client, text: str, seconds: int) -> None:
    task = client.get(run("submit", "echo", "--at", text).stdout.strip())
    assert task.not_before is not None
    assert seconds - 10 < (task.not_before - task.created_at).total_seconds() <= seconds
    assert task.queue_state == "scheduled"


def test_a_time_is_local_unless_it_names_a_zone(run: Run, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = (datetime.now(UTC) + timedelta(days=2)).replace(microsecond=0, tzinfo=None)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        local = client.get(run("submit", "echo", "--at", soon.isoformat()).stdout.strip())
        zoned = client.get(run("submit", "echo", "--at", f"{soon.isoformat()}+02:00").stdout.strip())
    finally:
        monkeypatch.undo()
        time.tzset()
    assert local.not_before == (soon - timedelta(hours=9)).replace(tzinfo=UTC)
    assert zoned.not_before == (soon - timedelta(hours=2)).replace(tzinfo=UTC)


def test_a_prompt_is_read_from_stdin_without_its_last_newline(run: Run, client: Client) -> None:
    result = run("submit", "text", "-", stdin="What is\n17 plus 25?\n")
    assert client.get(result.stdout.strip()).payload["prompt"] == "What is\n17 plus 25?"


def test_a_model_folder_is_recorded_by_its_full_path(run: Run, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitinglip.demo import model_folder

    monkeypatch.chdir(model_folder().parent)
    result = run("submit", "text", "hi", "--model", "model")
    assert client.get(result.stdout.strip()).model == str(model_folder().resolve())


@pytest.mark.usefixtures("system")
def test_wait_writes_the_text(run: Run) -> None:
    result = run("submit", "echo", "hello", "--wait")
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    assert result.stderr.startswith("task ")


@pytest.mark.usefixtures("system")
def test_wait_as_json_writes_the_record(run: Run) -> None:
    result = run("submit", "echo", "hello", "--wait", "--json")
    document = json.loads(result.stdout)
    assert (document["status"], document["result"]) == ("completed", {"text": "hello"})


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("chunks", ["1", "4"])
def test_follow_writes_the_text_streamed_or_not(run: Run, chunks: str) -> None:
    result = run("submit", "echo", "hello there", "--chunks", chunks, "--follow")
    assert (result.exit_code, result.stdout) == (0, "hello there\n")


@pytest.mark.usefixtures("system")
def test_follow_as_json_writes_a_line_an_event(run: Run) -> None:
    result = run("submit", "echo", "hello there", "--chunks", "2", "--follow", "--json")
    events = read_lines(result.stdout)
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        "queued",
        "started",
        "text",
        "text",
        "finished",
    ]
    assert "".join(event.get("text", "") for event in events) == "hello there"
    assert events[-1]["status"] == "completed"


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("way", ["--wait", "--follow"])
def test_a_task_that_fails_exits_with_1_and_says_why(run: Run, way: str) -> None:
    result = run("submit", "echo", "hello", "--fail", "error", way)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "failed (echo_error): fail='error' was asked for" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("system")
def test_a_task_that_fails_says_so_in_json_on_both_streams(run: Run) -> None:
    result = run("submit", "echo", "hello", "--fail", "error", "--wait", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "echo_error"
    assert json.loads(result.stderr.splitlines()[-1])["error"]["code"] == "task_ended"


@pytest.mark.usefixtures("system")
def test_a_retry_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITINGLIP_TASK_BASE_RETRY_DELAY", "1")
    result = run("submit", "echo", "hello", "--fail", "retryable", "--fail-attempts", "1", "--follow")
    assert (result.exit_code, result.stdout) == (0, "hello\n")
    assert "attempt 1 failed" in result.stderr


def test_waiting_without_a_worker_says_how_to_start_one(start: Start, client: Client) -> None:
    process = start("submit", "echo", "hello", "--wait", BITINGLIP_DATABASE_URL=_url(client))
    assert process.stderr is not None
    task_id = process.stderr.readline().split()[1]
    assert "bitinglip worker start" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert f"task {task_id} goes on" in errors
    assert "Traceback" not in errors
    assert client.get(task_id).status == "pending"


def test_redis_away_does_not_stop_a_submission(run: Run, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITINGLIP_REDIS_URL", "redis://127.0.0.1:1/0")
    result = run("submit", "echo", "hello")
    assert result.exit_code == 0
    assert client.get(result.stdout.strip()).status == "pending"


def test_a_followed_task_that_is_cancelled_exits_with_1(start: Start, system: System, run: Run) -> None:
    process = start("submit", "echo", "hello", "--seconds", "60", "--follow", BITINGLIP_DATABASE_URL=system.urls[0])
    assert process.stderr is not None
    task_id = process.stderr.readline().split()[1]
    eventually(lambda: json.loads(run("task", "show", task_id, "--json").stdout)["status"] == "in_progress")
    assert run("task", "cancel", task_id).stdout == f"{task_id} cancelling\n"
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "cancelled" in errors


def _url(client: Client) -> str:
    return client.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
