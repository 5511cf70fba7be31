"""What chaos finds of files: those that are gone, those that were changed, and those that nobody names."""

import uuid
from pathlib import Path

import pytest

from bitinglip.artifacts.store import ArtifactStore
from bitinglip.chaos.checks import Verdict
from bitinglip.chaos.files import add_files
from bitinglip.domain.artifacts import Maker, make_name
from bitinglip.domain.task import make_request
from bitinglip.store.database import Database
from tests.artifacts.places import hash_bytes, put, write_source
from tests.factories import execute, finish, make_running, make_worker, submit

CONTENT = b"picture"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


@pytest.fixture
def worker(database: Database) -> uuid.UUID:
    return make_worker(database, kinds=["image"])


def draw(database: Database, worker: uuid.UUID, store: ArtifactStore, tmp_path: Path, *, named: bool = True) -> str:
    """Store a file that an attempt made, and record it."""
    bell = make_running(database, worker, make_request("image", {"prompt": "a"}, model="tiny"))
    name = put(store, write_source(tmp_path, CONTENT), make_name(Maker(bell.task_id, bell.attempt), 0, "png"))
    images = [{"artifact": name, "sha256": hash_bytes(CONTENT)}] if named else []
    assert finish(database, worker, bell, result={"images": images})
    return name


def find_ids(*names: str) -> list[uuid.UUID]:
    return [uuid.UUID(name.partition("/")[0]) for name in names]


def test_files_that_are_as_recorded_break_nothing(
    database: Database, worker: uuid.UUID, store: ArtifactStore, tmp_path: Path
) -> None:
    whole = draw(database, worker, store, tmp_path)
    unnamed = draw(database, worker, store, tmp_path, named=False)

    verdict = add_files(Verdict(tasks=2, completed=2), store, database, find_ids(whole, unnamed))

    assert verdict == Verdict(tasks=2, completed=2, files=1, files_swept=1)
    assert verdict.is_clean


def test_what_is_wrong_with_files_is_found(
    database: Database, worker: uuid.UUID, store: ArtifactStore, tmp_path: Path
) -> None:
    missing, damaged, kept = (draw(database, worker, store, tmp_path) for _ in range(3))
    store.delete([missing])
    Path(store.locate(damaged)).write_bytes(b"changed")
    # The sweep leaves it to the task that takes it.
    submit(database, make_request("image", {"prompt": "a", "image": kept}, model="tiny"))
    execute(database, "UPDATE task_details SET result = '{}' WHERE task_id = :id", id=find_ids(kept)[0])

    verdict = add_files(Verdict(tasks=3, completed=3), store, database, find_ids(missing, damaged, kept))

    assert {violation.invariant: violation.task_id for violation in verdict.violations} == {
        "file_missing": find_ids(missing)[0],
        "file_damaged": find_ids(damaged)[0],
        "file_unnamed": find_ids(kept)[0],
    }
