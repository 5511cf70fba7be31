"""Beats as processes of the test's own, each in a folder of its own, as any Celery user may start one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import run  # noqa: F401 - a fixture
from tests.conftest import System

StartBeat = Callable[..., Path]


@pytest.fixture
def start_beat(processes: System, tmp_path: Path) -> StartBeat:
    """Start `celery beat` with a schedule and return the folder it stands in; it is ended after the test."""

    def start(schedule: str, name: str = "beat", **environment: str) -> Path:
        file = tmp_path / f"{name}.schedule.toml"
        file.write_text(schedule)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        with (tmp_path / f"{name}.log").open("ab") as log:
            processes.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "bitinglip", "beat"],
                cwd=folder,
                env={
                    **os.environ,
                    "BITINGLIP_SCHEDULE_FILE": str(file),
                    "BITINGLIP_LOG_FORMAT": "json",
                    "PYTHONUNBUFFERED": "1",
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return folder

    return start


def read_events(processes: System, name: str, event: str) -> list[dict[str, Any]]:
    """What a process has logged of one event."""
    found = []
    for line in processes.read_log(name).splitlines():
        if line.startswith("{") and line.endswith("}") and (entry := json.loads(line))["event"] == event:
            found.append(entry)
    return found
