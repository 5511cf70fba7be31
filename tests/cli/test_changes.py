"""Tasks are cancelled, retried, updated and deleted by their ids or by filters; the dead are listed with the reason."""

import json
import os
import pty
import subprocess
import sys
import uuid

import pytest
from click.testing import CliRunner

from bitinglip.cli.drain import drain
from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.store.database import Database
from tests.cli.conftest import Run, read_lines
from tests.conftest import REPOSITORY
from tests.factories import execute, finish, make_echo, make_running, make_worker, read

FAILURE = {"code": "boom", "message": "it broke", "retryable": False}
NOBODY = "01890a5d-ac96-774b-bcce-b302099a8057"


def make_failed(database: Database, agent: str = "default", code: str = "boom") -> uuid.UUID:
    worker = make_worker(database, str(uuid.uuid4()))
    doorbell = make_running(database, worker, make_echo(agent=agent))
    usage = {"engine_seconds": 1.25, "total_tokens": 42}
    finish(database, worker, doorbell, "failed", error={**FAILURE, "code": code}, usage=usage)
    return doorbell.task_id


def outcomes(text: str) -> list[tuple[str, str]]:
    return [(item["id"], item["outcome"]) for item in read_lines(text)]


def test_cancel_by_filter_tells_how_many(run: Run, client: Client, database: Database) -> None:
    make_running(database, make_worker(database), make_echo(agent="bot"))
    client.submit_many([make_echo(agent="bot"), make_echo(agent="bot")])
    other = client.submit("echo")

    assert json.loads(run("task", "cancel", "--agent", "bot", "--status", "pending", "--json").stdout) == {
        "cancelled": 2,
        "cancelling": 0,
    }
    assert run("task", "cancel", "--agent", "bot").stdout == "1 cancelling\n"
    assert run("task", "cancel", "--agent", "nobody").stdout == "0 cancelled\n"
    assert other.status == "pending"


def test_cancel_says_what_had_ended(run: Run, database: Database) -> None:
    task = str(make_failed(database))

    result = run("task", "cancel", task)

    assert (result.exit_code, result.stdout) == (1, f"{task} ended\n")
    assert result.stderr == f"error: task {task}: it is failed already\n"
    result = run("task", "cancel", task, "--json")
    assert json.loads(result.stderr)["error"]["code"] == "conflict"


def test_retry_tells_each_and_exits_with_the_worst(run: Run, client: Client, database: Database) -> None:
    failed, waiting = str(make_failed(database)), str(client.submit("echo").id)

    result = run("task", "retry", failed, waiting, "--json")
    assert (result.exit_code, outcomes(result.stdout)) == (1, [(failed, "retried"), (waiting, "not_failed")])
    assert "only failed tasks are tried again" in result.stderr
    result = run("task", "retry", waiting, NOBODY, "--json")
    assert (result.exit_code, outcomes(result.stdout)) == (3, [(waiting, "not_failed"), (NOBODY, "not_found")])
    assert client.get(failed).status is Status.PENDING


def test_retry_by_filter_tells_how_many(run: Run, database: Database) -> None:
    first, second = make_failed(database, "bot"), make_failed(database, "bot", code="other")

    assert run("task", "retry", "--error", "boom", "--agent", "bot").stdout == "1 retried\n"
    assert read(database, first).status is Status.PENDING
    assert read(database, second).status is Status.FAILED
    assert json.loads(run("task", "retry", "--since", "1h", "--json").stdout) == {"retried": 1}


def test_delete_is_soft_unless_it_is_said_to_be_hard(run: Run, client: Client, database: Database) -> None:
    task, running = client.submit("echo"), make_running(database, make_worker(database))

    assert run("task", "delete", str(task.id)).stdout == f"{task.id} cancelled\n"
    again = run("task", "delete", str(task.id))
    assert again.exit_code == 1
    assert again.stderr.endswith("what has ended is deleted, record and all, with --hard\n")
    result = run("task", "delete", str(task.id), str(running.task_id), "--hard", "--json")
    assert result.exit_code == 1
    assert outcomes(result.stdout) == [(str(task.id), "deleted"), (str(running.task_id), "not_deleted")]
    assert "it runs; cancel it" in result.stderr
    assert run("task", "delete", str(task.id), "--hard").exit_code == 3
    assert client.get(running.task_id).status is Status.IN_PROGRESS


def test_delete_by_filter_tells_how_many(run: Run, client: Client, database: Database) -> None:
    client.submit("echo", agent="bot")
    make_failed(database, "bot")

    assert run("task", "delete", "--agent", "bot").stdout == "1 cancelled\n"
    assert run("task", "delete", "--agent", "bot", "--status", "failed", "--hard").stdout == "1 deleted\n"
    assert json.loads(run("task", "delete", "--agent", "bot", "--hard", "--json").stdout) == {"deleted": 1}


def test_update_changes_what_is_given(run: Run, client: Client) -> None:
    task = client.submit("echo", metadata={"a": 1})

    result = run("task", "update", str(task.id), "--title", "New", "--priority", "high", "--metadata", '{"b": 2}')
    assert result.stdout == f"{task.id} updated\n"
    document = json.loads(run("task", "update", str(task.id), "--description", "D", "--json").stdout)
    assert (document["title"], document["priority"], document["description"]) == ("New", "high", "D")
    assert document["metadata"] == {"a": 1, "b": 2}


def test_update_of_what_waits_no_more_exits_with_1(run: Run, client: Client, database: Database) -> None:
    task = make_failed(database)
    result = run("task", "update", str(task), "--priority", "high")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "waits no more" in result.stderr


def test_the_dead_are_listed_newest_first_with_the_reason(run: Run, client: Client, database: Database) -> None:
    first, second = make_failed(database, "bot"), make_failed(database, "bot", code="other")
    make_failed(database, "else")
    client.submit("echo", agent="bot")

    listed = read_lines(run("queue", "dead", "--agent", "bot", "--json").stdout)
    assert [(item["id"], item["error"]["code"], item["error"]["message"]) for item in listed] == [
        (str(second), "other", "it broke"),
        (str(first), "boom", "it broke"),
    ]
    result = run("queue", "dead", "--limit", "1", "--agent", "bot")
    assert result.stdout.splitlines()[0].split() == ["ID", "AGENT", "TYPE", "FAILED", "ATTEMPTS", "CODE", "MESSAGE"]
    assert result.stdout.splitlines()[1].endswith("1  other  it broke")
    assert "--before" in result.stderr
    assert run("queue", "dead", "--since", "2100-01-01").stdout.splitlines()[1:] == []


def test_list_filters_by_error(run: Run, database: Database) -> None:
    task = make_failed(database)
    make_failed(database, code="other")

    assert [item["id"] for item in read_lines(run("task", "list", "--error", "boom", "--json").stdout)] == [str(task)]


def test_show_tells_what_each_attempt_cost(run: Run, database: Database) -> None:
    task = make_failed(database)
    execute(database, "UPDATE attempts SET started_at = finished_at - interval '3 s'")

    shown = run("task", "show", str(task)).stdout.splitlines()
    headers = shown[-2].split()
    assert headers == ["ATTEMPT", "OUTCOME", "WORKER", "STARTED", "FINISHED", "ENGINE", "S", "TOKENS", "ERROR"]
    assert shown[-1].endswith("boom: it broke")
    assert shown[-1].split()[-5:-3] == ["1.25", "42"]
    document = json.loads(run("task", "show", str(task), "--json").stdout)
    assert document["attempts"][0]["usage"] == {"engine_seconds": 1.25, "total_tokens": 42}
    assert document["attempts"][0]["error"] == FAILURE


def test_show_tells_what_a_task_waits_for(run: Run, client: Client) -> None:
    parent = client.submit("echo")
    child = client.submit("echo", depends_on=[parent], idempotency_key="k")

    shown = run("task", "show", str(child.id)).stdout
    assert "pending (blocked)" in shown
    assert str(parent.id) in shown


@pytest.mark.parametrize(("answer", "code", "status"), [("y\n", 0, "cancelled"), ("n\n", 1, "pending")])
def test_a_person_is_asked_before_many_are_changed(client: Client, answer: str, code: int, status: str) -> None:
    tasks = [client.submit("echo", agent="bot") for _ in range(3)]
    written, exit_code = answer_on_terminal(["task", "cancel", "--agent", "bot"], answer)

    assert exit_code == code, written
    assert "cancel 3 tasks? [y/N]" in written
    assert ("3 cancelled" in written) == (code == 0)
    assert {task.status for task in tasks} == {status}


def test_a_person_who_said_yes_before_is_not_asked(client: Client) -> None:
    client.submit("echo", agent="bot")
    written, exit_code = answer_on_terminal(["task", "cancel", "--agent", "bot", "--yes"], "")

    assert (exit_code, written.strip()) == (0, "1 cancelled")


def answer_on_terminal(arguments: list[str], answer: str) -> tuple[str, int]:
    """Run a command as a person does; what the terminal showed, and the exit code."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from bitinglip.cli import main; main()", *arguments]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    shown = b""
    while True:
        try:
            more = os.read(ours, 1_024)
        except OSError:
            # The kernel's word for a terminal that nobody writes to any more.
            break
        if not more:
            break
        shown += more
    os.close(ours)
    return shown.decode(), process.wait(timeout=20)


def test_a_worker_is_drained_by_its_name(client: Client, database: Database) -> None:
    make_worker(database, "one")
    result = CliRunner().invoke(drain, ["one"])
    assert (result.exit_code, result.stdout) == (0, "one draining\n")
    assert execute(database, "SELECT state FROM workers") == [("draining",)]
    assert type(CliRunner().invoke(drain, ["two"]).exception).__name__ == "WorkerNotFoundError"
