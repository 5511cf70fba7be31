"""Where tests keep artifacts, and the artifacts that they keep."""

import hashlib
import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitinglip.artifacts.store import ArtifactStore
from bitinglip.domain.artifacts import make_upload_name
from tests.conftest import REPOSITORY

PROGRAM = [sys.executable, "-m", "tests.artifacts.program"]


@dataclass(frozen=True)
class Place:
    """A folder or a URL."""

    url: str
    endpoint_url: str | None = None

    def open(self) -> ArtifactStore:
        """A store there, as another process would make it."""
        return ArtifactStore(self.url, endpoint_url=self.endpoint_url)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a process that uses the store: see `program`."""
        environment = {**os.environ, "BITINGLIP_ARTIFACT_URL": self.url}
        if self.endpoint_url:
            environment["BITINGLIP_ARTIFACT_ENDPOINT_URL"] = self.endpoint_url
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *arguments: object) -> dict[str, Any]:
        """What such a process says."""
        return read_answer(self.start(*arguments))


def read_answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process says that must end well."""
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    answer: dict[str, Any] = json.loads(output)
    return answer


def name_upload() -> str:
    """A name that no file has yet."""
    return make_upload_name(secrets.token_hex(32), "png")


def write_source(folder: Path, content: bytes = b"picture") -> Path:
    """A file to keep."""
    file = folder / "source.png"
    file.write_bytes(content)
    return file


def put(store: ArtifactStore, source: Path, name: str | None = None) -> str:
    """Keep a file, and return its name."""
    name = name or name_upload()
    content = source.read_bytes()
    store.put(source, name, size=len(content), sha256=hash_bytes(content))
    return name


def read(store: ArtifactStore, name: str) -> bytes:
    """All of a file that is kept."""
    with store.open(name) as file:
        return file.read()


def list_names(store: ArtifactStore) -> list[str]:
    """Every file that is kept."""
    return [file.name for folder in store.list_folders() for file in store.list_files(folder)]


def hash_bytes(content: bytes) -> str:
    """Of a file."""
    return hashlib.sha256(content).hexdigest()
