"""How the hub's tests ask it: with the real client, and with plain HTTP where every byte counts."""

import hashlib
import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import hf_hub_download

from tests.hub import LocalHub

WEIGHTS = os.urandom(100_000)
WEIGHTS_PATH = "sub folder/model.safetensors"

Token = str | bool
T = TypeVar("T")


def make_folder(folder: Path, weights: bytes = WEIGHTS) -> Path:
    """A folder with large and small files, an empty one, and one whose name has to be quoted."""
    (folder / "sub folder").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(b"hello\n")
    (folder / "empty.txt").touch()
    (folder / "sub folder" / "ä b.txt").write_bytes(os.urandom(99))
    (folder / "sub folder" / "model.safetensors").write_bytes(weights)
    return folder


def read_folder(folder: Path) -> dict[str, bytes]:
    """Its files by their paths."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def download(
    hub: LocalHub, cache: Path, file: str = "config.json", *, revision: str = "main", token: Token = False
) -> bytes:
    """What the real client has of a file of `org/name`, loaded into the cache."""
    path = hf_hub_download("org/name", file, endpoint=hub.url, cache_dir=cache, revision=revision, token=token)
    return Path(path).read_bytes()


def get(
    url: str, range_: str | None = None, *, if_range: str | None = None, timeout: float = 20
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, as they came; the body of a reply that was cut as far as it came."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=timeout)
    try:
        asked = {"Range": range_, "If-Range": if_range}
        connection.request("GET", parts.path, headers={name: value for name, value in asked.items() if value})
        response = connection.getresponse()
        try:
            body = response.read()
        except http.client.IncompleteRead as cut:
            body = cut.partial
        return response.status, dict(response.headers), body
    finally:
        connection.close()


def head(url: str) -> int:
    """The status of a HEAD request."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    try:
        connection.request("HEAD", parts.path)
        return connection.getresponse().status
    finally:
        connection.close()


def weights_url(hub: LocalHub) -> str:
    """Where the CDN has them."""
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    return f"{hub.cdn_url}/org/name/{sha256}/sub%20folder/model.safetensors"


def measure(ask: Callable[[], T]) -> tuple[float, T]:
    """The seconds that it took, and the answer."""
    began = time.monotonic()
    answer = ask()
    return time.monotonic() - began, answer
