"""Tasks are listed by filters and pages, shown with their attempts, followed from any event, cancelled."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from bitinglip.client import Client
from bitinglip.store.database import Database
from tests.cli.conftest import Run, Start, read_lines
from tests.cli.terminal import Terminal
from tests.conftest import System
from tests.factories import finish, make_echo, make_worker, start_task


def list_texts(run: Run, *options: str) -> list[str]:
    result = run("task", "list", *options, "--json")
    assert result.exit_code == 0, result.output
    return [item["payload"]["text"] for item in read_lines(result.stdout)]


def test_filters_choose_and_pages_continue(run: Run, client: Client) -> None:
    client.submit("echo", text="a", agent="bot", channel="1" * 17)
    client.submit("echo", text="b", agent="bot")
    client.submit("echo", text="c")
    client.submit("text", prompt="d", model="demo").cancel()
    assert list_texts(run, "--agent", "bot") == ["b", "a"]
    assert list_texts(run, "--channel", "1" * 17) == ["a"]
    assert list_texts(run, "--type", "echo", "--since", "10m") == ["c", "b", "a"]
    assert list_texts(run, "--model", "other") == []
    assert list_texts(run, "--status", "pending", "--status", "completed", "--limit", "2") == ["c", "b"]
    assert list_texts(run, "--since", (datetime.now(UTC) + timedelta(hours=1)).isoformat()) == []
    seq = read_lines(run("task", "list", "--agent", "bot", "--limit", "1", "--json").stdout)[0]["seq"]
    assert list_texts(run, "--agent", "bot", "--before", str(seq)) == ["a"]


def test_a_full_page_tells_how_to_go_on(run: Run, client: Client) -> None:
    client.submit_many([make_echo(text="a"), make_echo(text="b")])
    result = run("task", "list", "--limit", "1")
    assert result.stdout.splitlines()[0].split() == [
        "SEQ",
        "ID",
        "STATUS",
        "PRIORITY",
        "AGENT",
        "TYPE",
        "CREATED",
        "TITLE",
    ]
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr.startswith("there may be more: --before ")


def test_a_table_passes_no_control_characters_on(run: Run, client: Client) -> None:
    client.submit("echo", text="hi", title="red \x1b[31m alert\nnext")
    assert "red  [31m alert next" in run("task", "list").stdout


def test_an_error_passes_no_control_characters_to_a_terminal(database: Database, client: Client) -> None:
    worker = make_worker(database)
    handle = client.submit("echo", text="hi")
    doorbell = start_task(database, worker, handle.id)
    error = {"code": "odd", "message": "\x1b]0;owned\x07 \x9b2J", "retryable": False}
    assert finish(database, worker, doorbell, "failed", error=error)

    with Terminal("task", "follow", str(handle.id)) as terminal:
        terminal.wait()

    assert "owned" in terminal.shown
    assert not {"\x1b", "\x07", "\x9b"} & set(terminal.shown)


def test_json_has_words_for_every_control_character(run: Run, client: Client) -> None:
    client.submit("echo", text="hi", title="a\x1b \x7f \x9b b")
    shown = run("task", "list", "--json").stdout
    assert not {"\x1b", "\x7f", "\x9b"} & set(shown)
    assert json.loads(shown.splitlines()[0])["title"] == "a\x1b \x7f \x9b b"


@pytest.mark.usefixtures("system")
def test_show_has_status_result_usage_and_attempts(run: Run, client: Client) -> None:
    handle = client.submit("echo", text="hello", fail="retryable", fail_attempts=1)
    handle.wait(timeout=20)
    document = json.loads(run("task", "show", str(handle.id), "--json").stdout)
    assert (document["status"], document["result"], document["attempt"]) == ("completed", {"text": "hello"}, 2)
    assert "engine_seconds" in document["usage"]
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["retried", "completed"]
    shown = run("task", "show", str(handle.id)).stdout
    assert "completed" in shown
    assert "retried" in shown
    assert shown.endswith("\nhello\n")


@pytest.mark.usefixtures("system")
def test_follow_resumes_after_an_event(run: Run, client: Client) -> None:
    handle = client.submit("echo", text="one two three", chunks=3)
    handle.wait(timeout=10)
    events = read_lines(run("task", "follow", str(handle.id), "--json").stdout)
    first_text = next(event for event in events if event["event"] == "text")
    rest = read_lines(run("task", "follow", str(handle.id), "--json", "--after", first_text["id"]).stdout)
    assert rest == events[events.index(first_text) + 1 :]


@pytest.mark.usefixtures("system")
def test_follow_falls_back_to_the_record(run: Run, client: Client) -> None:
    handle = client.submit("echo", text="one two three", chunks=3)
    handle.wait(timeout=10)
    client.redis.flushall()
    assert run("task", "follow", str(handle.id)).stdout == "one two three\n"


def test_cancel_tells_each_and_exits_with_the_worst(run: Run, client: Client) -> None:
    first, second = client.submit("echo"), client.submit("echo")
    unknown = "01890a5d-ac96-774b-bcce-b302099a8057"
    result = run("task", "cancel", str(first.id), unknown, str(second.id), "--json")
    assert result.exit_code == 3
    outcomes = [(item["id"], item["outcome"]) for item in read_lines(result.stdout)]
    assert outcomes == [(str(first.id), "cancelled"), (unknown, "not_found"), (str(second.id), "cancelled")]
    assert run("task", "cancel", str(first.id)).exit_code == 1
    assert second.status == "cancelled"


def test_a_reader_that_goes_away_ends_a_list_quietly(start: Start, client: Client, system: System) -> None:
    client.submit_many([make_echo(text="x" * 2_000) for _ in range(200)])
    process = start("task", "list", "--json", "--limit", "200", BITINGLIP_DATABASE_URL=system.urls.database_url)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == ""


def test_a_character_that_the_terminal_lacks_is_replaced(client: Client, start: Start) -> None:
    client.submit("echo", text="capital: 東京")
    process = start("task", "list", PYTHONIOENCODING="latin-1")
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert output.endswith("capital: ??\n")
    process = start("task", "list", "--json", PYTHONIOENCODING="latin-1")
    assert json.loads(process.communicate(timeout=20)[0])["title"] == "capital: 東京"
