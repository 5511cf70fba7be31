"""`up` and `demo`: real processes, which leave nothing behind."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitinglip.embedded import read_running, remove_data
from bitinglip.store.database import Database
from tests.cli.conftest import Run, Start
from tests.conftest import eventually


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that every account may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="bitinglip-cli-"))
    folder.chmod(0o755)
    yield folder / "data"
    # A system that was killed is stopped by its guard, which holds the lock until then.
    remove_data(folder / "data")
    shutil.rmtree(folder)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No servers are configured."""
    monkeypatch.delenv("BITINGLIP_DATABASE_URL", raising=False)
    monkeypatch.delenv("BITINGLIP_REDIS_URL", raising=False)


def list_descendants(pid: int) -> set[int]:
    """The process and all that it started, sessions of their own included."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in table.splitlines())}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def mean_place(order: list[str], priority: str) -> float:
    return statistics.mean(place for place, item in enumerate(order) if item == priority)


def read_until(process: "subprocess.Popen[str]", word: str) -> str:
    """What it wrote to stderr up to and with the line that has the word."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if word in line:
            return seen
    pytest.fail(f"it ended without {word!r}: {seen}")


def start_up(start: Start, data_dir: Path, **environment: str) -> "tuple[subprocess.Popen[str], dict[str, Any]]":
    process = start("up", "--data-dir", str(data_dir), "--json", BITINGLIP_DATA_DIR=str(data_dir), **environment)
    read_until(process, "ready")
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


@pytest.mark.usefixtures("alone")
def test_up_answers_another_terminal_and_leaves_nothing_behind(
    start: Start, data_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, document = start_up(start, data_dir)
    family = list_descendants(process.pid)
    assert len(family) >= 7
    assert Path(document["flower_password_file"]).stat().st_mode & 0o777 == 0o600
    assert document["flower_url"].startswith("http://127.0.0.1:")
    monkeypatch.setenv("BITINGLIP_DATA_DIR", str(data_dir))
    assert run("submit", "echo", "hello", "--wait").stdout == "hello\n"
    assert run("health").exit_code == 0
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert errors.startswith("stopping")
    assert len(errors.splitlines()) == 1
    eventually(lambda: not any(is_alive(pid) for pid in family))
    assert read_running(data_dir) is None
    assert run("task", "list").exit_code == 5


@pytest.mark.usefixtures("alone")
def test_files_are_kept_in_the_folder_of_the_system(start: Start, data_dir: Path, tmp_path: Path) -> None:
    process = start("up", "--data-dir", str(data_dir), BITINGLIP_DATA_DIR=str(tmp_path / "other"))
    read_until(process, "ready")

    assert list((data_dir / "artifacts").iterdir())
    assert not (tmp_path / "other").exists()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.usefixtures("alone")
def test_a_second_up_in_the_same_folder_is_refused(start: Start, data_dir: Path, run: Run) -> None:
    process, _ = start_up(start, data_dir)
    result = run("up", "--data-dir", str(data_dir))
    assert result.exit_code == 2
    assert f"process {process.pid} runs a system there already" in result.stderr
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_up_uses_the_servers_that_are_configured(start: Start, data_dir: Path, run: Run, database: Database) -> None:
    process, document = start_up(start, data_dir)
    assert (document["embedded"], document["database"]) == (False, database.address)
    assert not list(data_dir.glob("postgresql-*"))
    assert run("submit", "echo", "hello", "--wait").stdout == "hello\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.usefixtures("alone")
def test_a_signal_while_it_starts_stops_what_had_started(start: Start, data_dir: Path) -> None:
    process = start("up", "--data-dir", str(data_dir))
    read_until(process, "starting the dispatcher")
    family = list_descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    eventually(lambda: not any(is_alive(pid) for pid in family))


@pytest.mark.usefixtures("alone")
def test_a_killed_up_leaves_nothing_behind(start: Start, data_dir: Path) -> None:
    process, _ = start_up(start, data_dir)
    family = list_descendants(process.pid)
    process.kill()
    process.communicate()
    eventually(lambda: not any(is_alive(pid) for pid in family), within=30)


def test_what_no_process_could_read_is_refused_before_any_starts(
    data_dir: Path, database: Database, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "celeryconfig.py"
    file.write_text("worker_pool = threads\n")
    monkeypatch.setenv("BITINGLIP_CELERY_CONFIG", str(file))
    for command in (("up", "--data-dir", str(data_dir)), ("worker", "start")):
        result = run(*command)
        assert result.exit_code == 2
        assert "NameError: name 'threads' is not defined" in result.stderr
    assert not data_dir.exists()


def test_a_worker_that_cannot_start_ends_up_with_its_last_words(
    start: Start, data_dir: Path, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "celeryconfig.py"
    file.write_text("worker_pool = 'broken-on-purpose'\n")
    process = start("up", "--data-dir", str(data_dir), BITINGLIP_CELERY_CONFIG=str(file))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5, errors
    assert "before it was ready" in errors
    assert "broken-on-purpose" in errors


@pytest.mark.usefixtures("alone")
def test_the_demo_is_right(start: Start, data_dir: Path) -> None:
    process = start("demo", "--data-dir", str(data_dir), "--json")
    output, errors = process.communicate(timeout=110)
    document = json.loads(output)
    assert (document["tasks"], document["completed"]) == (60, 60), errors
    assert document["right"] >= 57, document
    assert process.returncode == 0
    assert document["ttft_p50_s"] > 0
    assert document["tokens_per_s"] > 0
    order = [item["priority"] for item in document["served"][1:]]
    assert mean_place(order, "critical") < mean_place(order, "high") < mean_place(order, "low")
    assert "the model answers: " in errors
    assert (len(document["pictures"]), document["drawn"]) == (4, 4), document["pictures"]
    assert document["shown"] >= 3, document["pictures"]
    for picture in document["pictures"]:
        assert Path(picture["place"]).is_relative_to(data_dir / "artifacts")
        assert Path(picture["place"]).is_file()
    assert read_running(data_dir) is None


@pytest.mark.usefixtures("alone")
def test_an_interrupted_demo_stops_everything(start: Start, data_dir: Path) -> None:
    process = start("demo", "--data-dir", str(data_dir))
    read_until(process, "asks: ")
    family = list_descendants(process.pid)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, ""), errors
    assert "Traceback" not in errors
    eventually(lambda: not any(is_alive(pid) for pid in family))
