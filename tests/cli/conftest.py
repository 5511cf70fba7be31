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
from huggingface_hub import constants

from bitinglip.cli.root import cli
from bitinglip.client import Client
from bitinglip.registry.cache import ModelCache
from bitinglip.store.database import Database
from tests.conftest import REPOSITORY, System, forget_settings, wait_for_workers
from tests.drawn import Artist
from tests.hub import LocalHub
from tests.registry.kept import NODE, make_model, write_files

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


@pytest.fixture
def artist(client: Client, database: Database, tmp_path: Path) -> Artist:
    """Does image tasks without an engine."""
    return Artist(database, tmp_path)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelCache:
    """The models' folder of a node of its own, here and in every process that is started."""
    folder = tmp_path / "hub"
    monkeypatch.setenv("BITINGLIP_NODE", NODE)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    # The library has read the environment long ago.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return ModelCache(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A hub with `org/name`, which every process that is started asks."""
    with LocalHub() as opened:
        opened.add_repo("org/name", write_files(tmp_path / "served", make_model(parameters=50_000)), licence="mit")
        monkeypatch.setenv("HF_ENDPOINT", opened.url)
        yield opened


@pytest.fixture
def fetching(processes: System, database: Database, cache: ModelCache, hub: LocalHub) -> System:
    """A dispatcher, and the node's worker, which downloads from the hub."""
    processes.start_dispatcher()
    processes.start_worker("io", pools='[pools.io]\nkinds = ["download"]\ngpus = []\nslots = 3\n', pool="io")
    wait_for_workers(database, 1)
    return processes


def read_lines(text: str) -> list[Any]:
    """One JSON document a line."""
    return [json.loads(line) for line in text.splitlines()]
