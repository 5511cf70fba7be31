"""`bitinglip model pull`: a model comes, and is watched while it does."""

import io
import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from bitinglip.cli.model_pull import Bars
from bitinglip.client import Client
from bitinglip.domain.models import ModelSource
from bitinglip.domain.task import Status
from bitinglip.registry.cache import ModelCache
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelRecord, insert_entry, set_removing
from tests.cli.conftest import Run, Start, read_lines
from tests.conftest import REPOSITORY, System, eventually
from tests.hub import Fault, LocalHub
from tests.registry.kept import NODE, find_entry


@pytest.mark.usefixtures("fetching")
def test_a_model_is_pulled_and_then_it_is_there_at_once(run: Run, hub: LocalHub) -> None:
    pulled = run("model", "pull", "org/name")

    assert pulled.exit_code == 0, pulled.stderr
    assert pulled.stderr.startswith("task ")
    header, line = pulled.stdout.splitlines()
    assert header.split() == ["NAME", "STATUS", "TYPE", "SIZE", "PARAMETERS", "NODES", "LAST", "USED", "PINNED"]
    assert line.split()[:7] == ["org/name", "available", "text", "0.2", "MB", "50K", NODE]
    hub.requests.clear()
    again = run("model", "pull", "org/name@main", "--json")
    assert again.exit_code == 0
    assert again.stderr == ""
    document = json.loads(again.stdout)
    assert (document["name"], document["status"], document["licence"]) == ("org/name", "available", "mit")
    assert hub.requests.matching() == []


@pytest.mark.usefixtures("fetching")
def test_a_pull_that_fails_says_why_and_exits_with_1(run: Run) -> None:
    pulled = run("model", "pull", "org/missing", "--json")
    assert pulled.exit_code == 1
    assert pulled.stdout == ""
    error = json.loads(pulled.stderr.splitlines()[-1])["error"]
    assert error["code"] == "task_ended"
    assert "org/missing" in error["message"]


def test_a_name_or_revision_that_cannot_be_is_bad_usage(run: Run, client: Client) -> None:
    for arguments, word in (
        (("../etc",), "NAME: '../etc'"),
        (("org/name@v1", "--revision", "v2"), "--revision: 'v2'"),
        (("org/name", "--revision", "../x"), "--revision: '../x'"),
    ):
        pulled = run("model", "pull", *arguments)
        assert pulled.exit_code == 2
        assert word in pulled.stderr


def test_a_pull_need_not_be_watched(run: Run, client: Client) -> None:
    pulled = run("model", "pull", "org/name", "--revision", "v1", "--no-wait", "--json")
    assert pulled.exit_code == 0, pulled.stderr
    document = json.loads(pulled.stdout)
    assert (document["model"], document["status"]) == ("org/name@v1", "pending")
    assert client.get(document["id"]).payload["model"] == "org/name@v1"
    assert run("model", "pull", "org/name", "--revision", "v1", "--no-wait").stdout.strip() == document["id"]
    (listed,) = read_lines(run("model", "list", "--json").stdout)
    assert (listed["status"], listed["download_task_id"]) == ("queued", document["id"])


def test_ctrl_c_leaves_the_download_running(
    fetching: System, start: Start, hub: LocalHub, client: Client, run: Run
) -> None:
    stalled = hub.faults.add(Fault(kind="cdn", stall_after_bytes=100_000))
    pull = start("model", "pull", "org/name")
    eventually(lambda: hub.requests.sent_bytes("cdn") >= 100_000, within=30)

    pull.send_signal(signal.SIGINT)
    _, said = pull.communicate(timeout=10)

    assert pull.returncode == 130
    task_id = said.split()[1]
    assert f"'bitinglip task cancel {task_id}' ends it" in said
    assert "Traceback" not in said
    assert client.get(task_id).status is Status.IN_PROGRESS
    (line,) = run("model", "list").stdout.splitlines()[1:]
    assert line.split()[1] == "downloading"
    stalled.release()
    assert client.handle(task_id).wait(timeout=30).status is Status.COMPLETED


@pytest.mark.usefixtures("fetching")
def test_a_terminal_shows_a_bar_for_each_file(hub: LocalHub) -> None:
    hub.faults.add(Fault(kind="cdn", bytes_per_second=100_000))
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", "from bitinglip.cli import main; main()", "model", "pull", "org/name"]
    with subprocess.Popen(program, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        seen = _read_terminal(ours)
        out, _ = process.communicate(timeout=30)

    assert process.returncode == 0, seen
    assert "available" in out
    assert "downloading" in seen
    assert "  model.safetensors" in seen


def test_a_bar_goes_when_its_file_is_whole() -> None:
    screen = io.StringIO()
    bars = Bars(Console(file=screen, width=100, force_terminal=True))
    progress = {"stage": "downloading", "done_bytes": 1, "total_bytes": 4}
    bars.show({**progress, "files": {"[red]a": [1, 2], "b": [0, 2]}})
    bars.show({**progress, "done_bytes": 3, "files": {"b": [1, 2]}})
    bars.end()
    last = screen.getvalue().rpartition("downloading")[2]
    assert "[red]a" in screen.getvalue()
    assert "b " in last
    assert "[red]a" not in last


def test_a_model_that_is_removed_by_force_while_it_comes_leaves_nothing(
    fetching: System, run: Run, hub: LocalHub, client: Client, cache: ModelCache
) -> None:
    hub.faults.add(Fault(kind="cdn", stall_after_bytes=100_000))
    task_id = run("model", "pull", "org/name", "--no-wait").stdout.strip()
    eventually(lambda: hub.requests.sent_bytes("cdn") >= 100_000, within=30)

    removed = run("model", "remove", "org/name", "--force")

    assert removed.exit_code == 0, removed.stderr
    assert client.get(task_id).status is Status.CANCELLED
    eventually(lambda: not run("model", "list", "--json").stdout, within=20)
    eventually(lambda: not cache.find_repo("org/name").exists(), within=20)


@pytest.mark.usefixtures("fetching")
def test_a_model_that_was_to_go_when_its_last_copy_went_is_forgotten_by_the_node(database: Database) -> None:
    with database.transaction() as connection:
        insert_entry(connection, ModelRecord("org/a", ModelSource.HUB, repo="org/a"))
        set_removing(connection, "org/a")
    eventually(lambda: find_entry(database, "org/a") is None, within=20)


def _read_terminal(descriptor: int) -> str:
    """What a process writes to a terminal, until it has closed it."""
    seen = b""
    while True:
        try:
            chunk = os.read(descriptor, 65_536)
        except OSError:
            chunk = b""
        if not chunk:
            os.close(descriptor)
            return seen.decode(errors="replace")
        seen += chunk
