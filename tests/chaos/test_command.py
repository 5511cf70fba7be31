"""`bitinglip chaos`: a short real run, an interrupted one, and one against a system that others run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from bitinglip.chaos import run as chaos_run
from bitinglip.cli.root import cli
from bitinglip.store.database import Database
from tests.conftest import REPOSITORY, System, eventually, forget_settings
from tests.factories import execute


@pytest.fixture(autouse=True)
def _small_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast it is, is not what is tested."""
    monkeypatch.setattr(chaos_run, "BURST_TASKS", 20)


def invoke(*arguments: str) -> Result:
    forget_settings()
    return CliRunner().invoke(cli, ["chaos", *arguments], prog_name="bitinglip")


def test_nothing_is_lost_when_engines_and_workers_are_killed_and_redis_is_flushed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    others = set(psutil.Process().children(recursive=True))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    # Of another system: it must not shape this one.
    monkeypatch.setenv("BITINGLIP_DATABASE_URL", "nonsense")
    result = invoke("--json", "--seed", "7", "--faults", "engine,worker,redis-flush")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert list(document) == [
        "tasks",
        "completed",
        "lost",
        "double_recorded",
        "stuck",
        "files",
        "files_swept",
        "file_missing",
        "file_damaged",
        "file_unnamed",
        "throughput_before",
        "throughput_after",
        "throughput_ratio",
        "rounds",
        "seed",
        "faults",
    ]
    assert (document["lost"], document["double_recorded"], document["stuck"]) == (0, 0, 0)
    assert (document["file_missing"], document["file_damaged"], document["file_unnamed"]) == (0, 0, 0)
    assert document["files"] > 0
    assert document["completed"] == document["tasks"] > 240
    assert (document["rounds"], document["seed"]) == (1, 7)
    assert {fault["kind"]: fault["times"] for fault in document["faults"]} == {
        "engine": 1,
        "worker": 1,
        "redis-flush": 1,
    }
    assert all(0 < fault["recovery_p50_s"] == fault["recovery_max_s"] < 30 for fault in document["faults"])
    assert "ended by itself" not in result.stderr
    assert list(tmp_path.glob("bitinglip-chaos-*")) == []
    assert set(psutil.Process().children(recursive=True)) <= others


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from bitinglip.cli import main; main()", "chaos", "--faults", "pause"],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        # The worst moment: a worker that is stopped hears no request to end.
        eventually(lambda: find_stopped(process.pid), within=90)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, output) == (130, ""), errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert list(tmp_path.glob("bitinglip-chaos-*")) == []


def find_stopped(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            found += [child] if child.status() == psutil.STATUS_STOPPED else []
        except psutil.NoSuchProcess:
            continue
    return found


def test_what_would_need_a_person_is_skipped(system: System, database: Database) -> None:
    """Nobody starts this system's processes again: only connections and Redis' content are there to be broken."""
    faults = "engine,worker,node,pause,dispatcher,redis-kill,redis-flush,postgres-kill,postgres-terminate"
    pids = {name: process.pid for name, process in system.processes.items()}
    result = invoke("--confirm", "--json", "--faults", faults)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert {fault["kind"] for fault in document["faults"]} == {"redis-flush", "postgres-terminate"}
    for fault in ("engine", "worker", "node", "pause", "dispatcher", "redis-kill", "postgres-kill"):
        assert f"{fault} is skipped: " in result.stderr
    assert "node is skipped: nobody would start the node again" in result.stderr
    assert {name: process.pid for name, process in system.processes.items() if process.poll() is None} == pids
    database.close()  # Its connections were ended, too.
    assert execute(database, "SELECT DISTINCT type, agent_id FROM tasks") == [("echo", "chaos")]


@pytest.mark.usefixtures("urls")
def test_a_system_without_workers_is_refused() -> None:
    result = invoke("--confirm")
    assert result.exit_code == 2
    assert "no worker does tasks of kind 'echo'" in result.stderr


def test_an_unknown_fault_is_refused() -> None:
    result = invoke("--faults", "engine,earthquake")
    assert result.exit_code == 2
    assert "'earthquake' is not a valid Fault; choose from engine, worker," in result.stderr
