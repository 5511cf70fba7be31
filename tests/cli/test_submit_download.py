"""`submit download` and following: the id of the one download, how far it is, and what waits for it."""

import json
import os
import pty
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip.client import Client
from bitinglip.registry.locate import BUNDLED
from bitinglip.store.database import Database
from tests.cli.conftest import Run, read_lines
from tests.conftest import REPOSITORY, System, eventually, wait_for_workers
from tests.hub import Fault, LocalHub
from tests.worker.io_node import MODEL, SIZE, IoNode

POOLS = '[pools.io]\nkinds = ["download", "echo"]\ngpus = []\nslots = 3\n'


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A hub with the bundled model, which takes three seconds to send it."""
    with LocalHub() as opened:
        opened.add_repo(MODEL, BUNDLED["demo"])
        opened.faults.add(Fault(kind="cdn", times=None, bytes_per_second=SIZE / 3))
        yield opened


@pytest.fixture
def node(processes: System, tmp_path: Path, hub: LocalHub, database: Database) -> IoNode:
    """A dispatcher, and a worker that downloads and echoes."""
    made = IoNode(processes, tmp_path, hub.url)
    processes.start_dispatcher()
    made.start_io(pools=POOLS)
    wait_for_workers(database, 1)
    return made


def test_whoever_asks_for_a_model_is_given_the_id_of_its_one_download(run: Run, client: Client) -> None:
    first = run("submit", "download", "org/name", "--agent", "ann", "--priority", "high")
    again = run("submit", "download", "org/name@main", "--agent", "bob", "--json")
    other = run("submit", "download", "org/name", "--revision", "v2")

    assert (first.exit_code, first.stderr) == (0, "")
    assert json.loads(again.stdout) == {"id": first.stdout.strip(), "status": "pending"}
    task, second = client.get(first.stdout.strip()), client.get(other.stdout.strip())
    assert (task.type, task.agent_id, task.priority, task.title) == ("download", "ann", "high", "download org/name")
    assert second.payload == {"model": "org/name", "revision": "v2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no such/model name"], "MODEL: 'no such/model name': no model's name; write organisation/name"),
        (["../../etc"], "MODEL: '../../etc': no model's name"),
        (["org/name", "--revision", "a..b"], "--revision: 'a..b': no revision; write a branch, a tag or a commit"),
        (["org/name@v1", "--revision", "v2"], "--revision: 'v2': the name says 'v1' already"),
    ],
)
@pytest.mark.usefixtures("client")
def test_what_is_no_model_is_refused_by_its_argument(run: Run, arguments: list[str], message: str) -> None:
    result = run("submit", "download", *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.usefixtures("node")
def test_following_a_download_tells_how_far_it_is_and_writes_what_came(run: Run) -> None:
    result = run("submit", "download", MODEL, "--follow")

    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["model"], document["node"]) == (MODEL, "node-1")
    told = [line for line in result.stderr.splitlines() if "of 3.6 MB" in line]
    assert told
    assert len(told) <= 3, "one line a stage, or five seconds"
    assert "\x1b" not in result.stderr


@pytest.mark.usefixtures("node")
def test_a_program_is_given_each_progress_as_a_line(run: Run) -> None:
    result = run("submit", "download", MODEL, "--follow", "--json")

    progress = [event for event in read_lines(result.stdout) if event["event"] == "progress"]
    assert len(progress) >= 4
    assert progress[-1].keys() >= {"fraction", "stage", "done_bytes", "total_bytes", "files"}
    assert read_lines(result.stdout)[-1]["status"] == "completed"


@pytest.mark.usefixtures("node")
def test_a_terminal_is_shown_one_line_with_the_rate() -> None:
    theirs, ours = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from bitinglip.cli import main; main()", "submit", "download", MODEL, "--follow"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=ours,
        text=True,
    )
    os.close(ours)
    shown = ""
    with open(theirs, "rb", buffering=0, closefd=True) as terminal:
        # A terminal that nobody writes to any more ends with an error.
        while chunk := _read(terminal.fileno()):
            shown += chunk
    output, _ = process.communicate(timeout=20)

    assert process.returncode == 0
    assert json.loads(output)["model"] == MODEL
    lines = shown.replace("\r\n", "\n").splitlines()
    _, progress = lines[0], shown.partition("\n")[2]
    assert len(re.findall(r"\rdownloading: \d+% of 3\.6 MB", progress)) >= 4
    rates = [float(rate) for rate in re.findall(r"of 3\.6 MB, ([\d.]+) MB/s\x1b\[K", progress)]
    assert rates
    assert all(0 <= rate < 3 for rate in rates)
    assert progress.count("\n") == 1


def _read(descriptor: int) -> str:
    try:
        return os.read(descriptor, 4_096).decode()
    except OSError:
        return ""


@pytest.mark.usefixtures("node")
def test_whoever_follows_a_task_sees_the_download_that_it_waits_for_first(run: Run) -> None:
    download = run("submit", "download", MODEL).stdout.strip()

    result = run("submit", "echo", "it is here", "--after", download, "--agent", "bob", "--follow")

    assert (result.exit_code, result.stdout) == (0, "it is here\n")
    assert f"waits for task {download}, the download of its model" in result.stderr
    assert "downloading: " in result.stderr


@pytest.mark.usefixtures("node")
def test_a_program_that_follows_a_task_is_given_the_download_under_a_name_of_its_own(run: Run) -> None:
    download = run("submit", "download", MODEL).stdout.strip()

    result = run("submit", "echo", "it is here", "--after", download, "--follow", "--json")

    events = read_lines(result.stdout)
    names = [event["event"] for event in events]
    first = events[0]
    assert names.index("queued") == names.count("download") >= 4
    assert (first["task_id"], first["stage"]) == (download, "downloading") or first["stage"] == "waiting"
    assert names[-1] == "finished"


@pytest.mark.usefixtures("node")
def test_a_waiting_task_explains_its_download(run: Run, hub: LocalHub, client: Client) -> None:
    hub.faults.clear()
    hub.faults.add(Fault(kind="cdn", stall_after_bytes=SIZE // 2))
    download = run("submit", "download", MODEL).stdout.strip()
    task = run("submit", "echo", "hi", "--after", download).stdout.strip()

    def explain() -> str:
        return str(json.loads(run("task", "explain", task, "--json").stdout)["message"])

    # A node notes how far it is every two seconds.
    eventually(lambda: re.search(r"[1-9]\d*% done", explain()), within=20)
    message = explain()
    assert re.fullmatch(rf"it depends on {download} \(the download of model 'local/demo', \d+% done\)", message)
    hub.faults.clear()
    assert client.handle(task).result(timeout=40) == {"text": "hi"}


@pytest.mark.usefixtures("node")
def test_a_download_that_fails_exits_with_1_and_says_what_to_do(run: Run) -> None:
    result = run("submit", "download", "local/missing", "--follow")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "failed (model_not_found): model 'local/missing'" in result.stderr
    task = uuid.UUID(result.stderr.split()[1])
    waiting = run("submit", "echo", "hi", "--after", str(task), "--follow")
    assert waiting.exit_code == 1
    assert "dependency_failed" in waiting.stderr
    assert "local/missing" in waiting.stderr
