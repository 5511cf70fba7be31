"""A folder, a server that speaks S3, and a store on either."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip.artifacts.store import ArtifactStore
from tests.artifacts.places import Place
from tests.artifacts.s3_server import S3Server, serve_s3


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server for the whole run; tests that kill it start one of their own."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    """A folder that is not there yet."""
    return Place(str(tmp_path / "above" / "artifacts"))


@pytest.fixture
def bucket(s3: S3Server) -> Place:
    """A prefix in a new bucket."""
    return Place(f"s3://{s3.make_bucket()}/some/prefix", s3.url)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    """One, then the other."""
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def store(place: Place) -> ArtifactStore:
    """On a folder, then in a bucket."""
    return place.open()
