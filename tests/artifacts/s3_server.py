"""A server that speaks S3, as a process of its own on loopback; its buckets are in its memory."""

import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import fsspec
import pytest

from tests.conftest import eventually


class S3Server:
    """A server that runs until it is stopped; `url` is its endpoint.

    Args:
        folder: For its log.
    """

    def __init__(self, folder: Path) -> None:
        self.port = find_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / f"s3-{self.port}.log"

    def start(self) -> None:
        """Return when it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually(self._answers, within=30)

    def stop(self) -> None:
        """Kill it, as the kernel would; that it is dead already does not matter."""
        self.process.kill()
        self.process.wait()

    def make_bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{uuid.uuid4().hex}"
        fsspec.filesystem("s3", endpoint_url=self.url).mkdir(name)
        return name

    def ask_for_keys(self) -> None:
        """From now on, refuse whoever's keys it does not know; it knows none."""
        with urlopen(Request(f"{self.url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})):
            pass

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            with urlopen(f"{self.url}/moto-api/"):
                return True
        except (URLError, ConnectionError):
            return False


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """A server that runs, and the keys for it in the environment, for the length of a block."""
    server = S3Server(folder)
    with pytest.MonkeyPatch.context() as environment:
        set_keys(environment, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def set_keys(environment: pytest.MonkeyPatch, folder: Path) -> None:
    """Have S3 asked with keys of no account, whatever this machine's user has configured."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        environment.setenv(name, str(folder / "no-such-file"))
    environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
    environment.setenv("AWS_ACCESS_KEY_ID", "a-key")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")


def find_port() -> int:
    """A port on loopback that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
