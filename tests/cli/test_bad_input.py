"""Bad input: the field, the value, the remedy, the exit code, no traceback, and nothing recorded."""

import json
from pathlib import Path

import pytest

from bitinglip.client import Client
from bitinglip.store.queries import list_tasks
from tests.cli.conftest import Run

TEXT = ("submit", "text", "hi")
NOBODY = "01890a5d-ac96-774b-bcce-b302099a8057"

BAD = {
    "unknown model": ((*TEXT, "--model", "gpt-9"), 3, ["'gpt-9'", "demo"]),
    "empty prompt": (("submit", "text", ""), 2, ["PROMPT", "''"]),
    "blank prompt": (("submit", "text", "  "), 2, ["PROMPT", "empty"]),
    "temperature 3": ((*TEXT, "--temperature", "3"), 2, ["--temperature", "3", "less than or equal to 2"]),
    "temperature -1": ((*TEXT, "--temperature", "-1"), 2, ["--temperature", "-1", "greater than or equal to 0"]),
    "temperature nan": ((*TEXT, "--temperature", "nan"), 2, ["--temperature", "nan"]),
    "temperature hot": ((*TEXT, "--temperature", "hot"), 2, ["--temperature", "'hot'"]),
    "max_tokens 0": ((*TEXT, "--max-tokens", "0"), 2, ["--max-tokens", "0", "greater than or equal to 1"]),
    "max_tokens beyond the context": ((*TEXT, "--max-tokens", "100000"), 2, ["--max-tokens", "100000", "tokens"]),
    "seed too large": ((*TEXT, "--seed", str(2**63)), 2, ["--seed", "less than"]),
    "top_p 0": ((*TEXT, "--top-p", "0"), 2, ["--top-p", "greater than 0"]),
    "empty stop": ((*TEXT, "--stop", ""), 2, ["--stop", "too short"]),
    "channel of 16 digits": (
        (*TEXT, "--channel", "1" * 16),
        2,
        ["--channel (channel_id)", "1" * 16, "17 to 19 digits"],
    ),
    "channel of 20 digits": ((*TEXT, "--channel", "1" * 20), 2, ["--channel (channel_id)", "17 to 19 digits"]),
    "agent of 101 characters": ((*TEXT, "--agent", "a" * 101), 2, ["--agent (agent_id)", "too long; at most 100"]),
    "empty agent": ((*TEXT, "--agent", ""), 2, ["--agent (agent_id)", "too short"]),
    "unknown priority": ((*TEXT, "--priority", "urgent"), 2, ["--priority", "'urgent'", "critical"]),
    "metadata that is no JSON": ((*TEXT, "--metadata", "{ticket: 17}"), 2, ["--metadata", "ticket", "JSON"]),
    "metadata that is no object": ((*TEXT, "--metadata", "[17]"), 2, ["--metadata", "'[17]'", "JSON object"]),
    "metadata with NUL": ((*TEXT, "--metadata", '{"a": "\\u0000"}'), 2, ["--metadata", "NUL"]),
    "metadata with half a character": ((*TEXT, "--metadata", '{"a": "\\ud800"}'), 2, ["--metadata", "surrogate"]),
    "metadata with NaN": ((*TEXT, "--metadata", '{"a": NaN}'), 2, ["--metadata", "JSON"]),
    "metadata too deep": ((*TEXT, "--metadata", '{"a":' * 5000), 2, ["--metadata", "characters"]),
    "metadata too large": ((*TEXT, "--metadata", json.dumps({"a": "b" * 70_000})), 2, ["--metadata", "65,536"]),
    "ttl of 5 s": ((*TEXT, "--ttl", "5"), 2, ["--ttl", "5", "greater than or equal to 300"]),
    "ttl of 2 days": ((*TEXT, "--ttl", "172800"), 2, ["--ttl", "172800", "less than or equal to 86400"]),
    "ttl that is no number": ((*TEXT, "--ttl", "1h"), 2, ["--ttl", "'1h'"]),
    "time in the past": (
        (*TEXT, "--at", "2020-01-01T00:00:00+00:00"),
        2,
        ["--at", "'2020-01-01T00:00:00+00:00'", "is not ahead of now"],
    ),
    "time beyond a year": ((*TEXT, "--at", "in 99w"), 2, ["--at", "at most 366 days"]),
    "time that is none": ((*TEXT, "--at", "tomorrow"), 2, ["--at", "'tomorrow'", "in 2h", "2026-01-31T18:00"]),
    "time before the calendar": ((*TEXT, "--at", "0001-01-01"), 2, ["--at", "'0001-01-01'"]),
    "time beyond the calendar": ((*TEXT, "--at", "+999999999w"), 2, ["--at", "'+999999999w'"]),
    "parent that is no task": ((*TEXT, "--after", "17"), 3, ["--after", "'17'", "bitinglip task list"]),
    "parent that is not there": ((*TEXT, "--after", NOBODY), 3, ["--after", NOBODY]),
    "empty idempotency key": ((*TEXT, "--idempotency-key", ""), 2, ["--idempotency-key", "too short"]),
    "payload that is no object": (("submit", "agent", "T", "--payload", "[]"), 2, ["--payload", "JSON object"]),
    "empty title": (("submit", "agent", ""), 2, ["TITLE", "too short"]),
    "title of 201 characters": (("submit", "agent", "t" * 201), 2, ["TITLE", "at most 200"]),
    "schema file not there": ((*TEXT, "--json-schema", "/nowhere/s.json"), 2, ["--json-schema", "/nowhere/s.json"]),
    "wait and follow": ((*TEXT, "--wait", "--follow"), 2, ["--wait", "--follow"]),
    "unknown option": ((*TEXT, "--temprature", "1"), 2, ["--temprature", "--temperature"]),
    "no prompt": (("submit", "text"), 2, ["PROMPT"]),
    "argument that is not UTF-8": (("submit", "text", "caf\udce9"), 2, ["UTF-8"]),
    "echo that fails in no known way": (("submit", "echo", "--fail", "maybe"), 2, ["--fail", "'maybe'", "crash"]),
    "echo of too many chunks": (("submit", "echo", "--chunks", "0"), 2, ["--chunks", "0"]),
    "task id that is none": (("task", "show", "17"), 3, ["'17'", "bitinglip task list"]),
    "task that is not there": (("task", "show", "01890a5d-ac96-774b-bcce-b302099a8057"), 3, ["01890a5d"]),
    "follow of a task that is not there": (("task", "follow", "01890a5d-ac96-774b-bcce-b302099a8057"), 3, ["01890a5d"]),
    "event id that is none": (("task", "follow", "x", "--after", "first"), 2, ["--after", "'first'", "1-17"]),
    "cancel of nothing": (("task", "cancel"), 2, ["give ids, or a filter"]),
    "cancel by ids and filters": (("task", "cancel", NOBODY, "--agent", "bot"), 2, ["ids or filters, not both"]),
    "cancel of what has ended": (("task", "cancel", "--status", "failed"), 2, ["--status", "'failed'"]),
    "retry of nothing": (("task", "retry"), 2, ["give ids, or a filter"]),
    "retry by ids and filters": (("task", "retry", NOBODY, "--error", "boom"), 2, ["ids or filters, not both"]),
    "delete of nothing": (("task", "delete", "--hard"), 2, ["give ids, or a filter"]),
    "update of nothing": (("task", "update", NOBODY), 2, ["nothing to change", "--title"]),
    "update of a task that is not there": (("task", "update", NOBODY, "--title", "T"), 3, [NOBODY]),
    "update of a status": (("task", "update", NOBODY, "--status", "completed"), 2, ["--status"]),
    "update to an empty title": (("task", "update", NOBODY, "--title", ""), 2, ["--title", "too short"]),
    "update of metadata that is no object": (("task", "update", NOBODY, "--metadata", "17"), 2, ["--metadata"]),
    "dead since no time": (("queue", "dead", "--since", "yesterday"), 2, ["--since", "'yesterday'"]),
    "unknown status": (("task", "list", "--status", "done"), 2, ["--status", "'done'", "completed"]),
    "unknown type": (("task", "list", "--type", "song"), 2, ["--type", "'song'", "echo"]),
    "since that is no time": (("task", "list", "--since", "yesterday"), 2, ["--since", "'yesterday'", "2h"]),
    "since before the calendar": (("task", "list", "--since", "999999999w"), 2, ["--since"]),
    "limit 0": (("task", "list", "--limit", "0"), 2, ["--limit", "0"]),
    "before beyond every number": (("task", "list", "--before", str(2**63)), 2, ["--before"]),
    "unknown pool": (("worker", "start", "--pool", "moon"), 2, ["'moon'", "default"]),
    "worker that a pool has not": (
        ("worker", "start", "--pool", "default", "--number", "99"),
        2,
        ["--number", "99", "counted from 0"],
    ),
    "worker of no pool in particular": (("worker", "start", "--number", "99"), 2, ["--number", "99", "--pool"]),
    "unknown revision": (("db", "upgrade", "--revision", "9999"), 2, ["--revision", "'9999'"]),
}


@pytest.mark.parametrize(("arguments", "code", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named_and_nothing_is_recorded(
    arguments: tuple[str, ...], code: int, words: list[str], run: Run, client: Client
) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    with client.database.transaction() as connection:
        assert list_tasks(connection) == []


@pytest.mark.usefixtures("client")
def test_errors_as_json_are_one_document(run: Run) -> None:
    result = run("submit", "text", "hi", "--channel", "1" * 16, "--json")
    error = json.loads(result.stderr)["error"]
    assert (error["code"], error["field"]) == ("invalid_request", "--channel (channel_id)")
    assert "17 to 19 digits" in error["message"]


@pytest.mark.usefixtures("client")
def test_usage_errors_as_json_are_one_document(run: Run) -> None:
    result = run("task", "list", "--limit", "0", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"]["code"] == "usage"


@pytest.mark.usefixtures("client")
def test_a_prompt_of_a_megabyte_is_refused_shortly(run: Run) -> None:
    result = run("submit", "text", "-", stdin="a" * 1_000_000)
    assert result.exit_code == 2
    assert "PROMPT" in result.stderr
    assert "200,000" in result.stderr
    assert len(result.stderr) < 500


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(("stdin", "word"), [(b"a\x00b", "NUL"), (b"caf\xe9", "UTF-8"), (b"", "''")])
def test_a_prompt_from_stdin_that_cannot_be_stored_is_refused(run: Run, stdin: bytes, word: str) -> None:
    result = run("submit", "text", "-", stdin=stdin)
    assert result.exit_code == 2
    assert "PROMPT" in result.stderr
    assert word in result.stderr


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("content", ["[]", "{", '{"a": "\\u0000"}'])
def test_a_schema_file_must_hold_a_json_object(run: Run, content: str, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(content)
    result = run("submit", "text", "hi", "--json-schema", str(file))
    assert result.exit_code == 2
    assert "--json-schema" in result.stderr


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("pytorch_model.bin", b"", "pickled"),
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "damaged"),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_refused(
    run: Run, tmp_path: Path, name: str, content: bytes, word: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    result = run("submit", "text", "hi", "--model", str(tmp_path))
    assert result.exit_code == 2
    assert "--model" in result.stderr
    assert word in result.stderr


COMMANDS = [
    ("submit", "text", "hi"),
    ("submit", "text", "hi", "--quote"),
    ("task", "list"),
    ("task", "show", "01890a5d-ac96-774b-bcce-b302099a8057"),
    ("task", "explain", "01890a5d-ac96-774b-bcce-b302099a8057"),
    ("task", "cancel", "01890a5d-ac96-774b-bcce-b302099a8057"),
    ("task", "cancel", "--agent", "bot"),
    ("task", "retry", NOBODY),
    ("task", "update", NOBODY, "--title", "T"),
    ("task", "delete", NOBODY, "--hard"),
    ("queue", "list"),
    ("queue", "dead"),
    ("agent", "set", "bot", "--weight", "2"),
    ("agent", "next", "--agent", "bot"),
    ("worker", "list"),
    ("worker", "start"),
    ("agent", "list"),
    ("stats",),
    ("stats", "--calibration"),
    ("db", "upgrade"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_wrong_database_password_exits_with_5(
    arguments: tuple[str, ...], run: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = client.database.url.set(drivername="postgresql", password="wr0ng-secret")
    monkeypatch.setenv("BITINGLIP_DATABASE_URL", url.render_as_string(hide_password=False))
    result = run(*arguments)
    assert result.exit_code == 5
    assert "BITINGLIP_DATABASE_URL" in result.stderr
    assert "password authentication failed" in result.stderr
    assert "wr0ng-secret" not in result.output
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_server_that_is_not_there_exits_with_5(
    arguments: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITINGLIP_DATABASE_URL", "postgresql://me:wr0ng-secret@127.0.0.1:1/none")
    monkeypatch.setenv("BITINGLIP_REDIS_URL", "redis://127.0.0.1:1/0")
    result = run(*arguments, "--json") if arguments != ("worker", "start") else run(*arguments)
    assert result.exit_code == 5
    assert "127.0.0.1:1/none" in result.stderr
    assert "wr0ng-secret" not in result.output


@pytest.mark.parametrize("arguments", [*COMMANDS, ("health",)], ids=" ".join)
def test_without_a_system_every_command_says_how_to_start_one(
    arguments: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITINGLIP_DATA_DIR", str(tmp_path))
    result = run(*arguments)
    assert result.exit_code == 5
    assert "bitinglip up" in result.stderr
    assert str(tmp_path) in result.stderr


@pytest.mark.usefixtures("client")
def test_an_unknown_key_in_pools_toml_exits_with_2(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "pools.toml"
    file.write_text('[pools.gpu]\nkinds = ["text"]\nslot = 3\n')
    monkeypatch.setenv("BITINGLIP_POOLS_FILE", str(file))
    for arguments in (("worker", "start"), ("up", "--data-dir", str(tmp_path / "data"))):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "pools.gpu.slot is unknown" in result.stderr
        assert "slots" in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [("task", "list"), ("up",), ("demo",)], ids=" ".join)
def test_a_bad_setting_exits_with_2(arguments: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITINGLIP_DATABASE_URL", "mysql://me:wr0ng-secret@127.0.0.1/none")
    monkeypatch.setenv("BITINGLIP_REDIS_URL", "redis://127.0.0.1:1/0")
    result = run(*arguments)
    assert result.exit_code == 2
    assert "BITINGLIP_DATABASE_URL starts with 'mysql'" in result.stderr
    assert "wr0ng-secret" not in result.output
