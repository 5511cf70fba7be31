"""Run commands, in this process where nothing but the answer matters, and in one of their own where signals do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bitinglip.cli.root import cli
from tests.conftest import REPOSITORY, forget_settings

Run = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def _read_settings_anew() -> Iterator[None]:
    """A process reads its settings once; here many commands share one process."""
    yield
    forget_settings()


@pytest.fixture
def run() -> Run:
    """Run a command and return its exit code and what it wrote."""

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        forget_settings()
        return CliRunner().invoke(cli, list(arguments), input=stdin, prog_name="bitinglip")

    return invoke


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command as a process of its own; all are ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def spawn(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", "from bitinglip.cli import main; main()", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "BITINGLIP_DATA_DIR": str(tmp_path), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield spawn
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def read_lines(text: str) -> list[Any]:
    """One JSON document a line."""
    return [json.loads(line) for line in text.splitlines()]
