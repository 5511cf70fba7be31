"""What nobody names goes, what somebody names or may still name stays; in a folder and in a bucket."""

import os
import threading
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bitinglip.artifacts import sweep as swept
from bitinglip.artifacts.store import ArtifactStore
from bitinglip.artifacts.sweep import Swept, sweep
from bitinglip.domain.artifacts import Maker, make_name
from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.errors import ArtifactStoreTakenError
from bitinglip.lifecycle.cancel import cancel
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.artifacts.places import Place, list_names, name_upload, put, write_source
from tests.factories import dispatch, execute, finish, make_reserved, make_running, make_worker, read, submit

KINDS = ["image", "echo"]


@pytest.fixture
def worker(database: Database) -> uuid.UUID:
    return make_worker(database, kinds=KINDS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path)


def make_image(**payload: object) -> TaskRequest:
    return make_request("image", {"prompt": "a circle", **payload}, model="tiny")


def put_made(store: ArtifactStore, source: Path, bell: Doorbell, *, index: int = 0, attempt: int | None = None) -> str:
    return put(store, source, make_name(Maker(bell.task_id, attempt or bell.attempt), index, "png"))


def name_files(database: Database, worker: uuid.UUID, bell: Doorbell, *names: str) -> None:
    """End a task with a record of these files."""
    assert finish(database, worker, bell, result={"images": [{"artifact": name} for name in names]})


def sweep_once(store: ArtifactStore, database: Database, *, upload_days: int = 7) -> Swept:
    return sweep(store, database, upload_days=upload_days)


def test_a_file_is_kept_once_its_record_names_it(
    store: ArtifactStore, database: Database, worker: uuid.UUID, source: Path
) -> None:
    bell = make_running(database, worker, make_image())
    named, _ = (put_made(store, source, bell, index=index) for index in range(2))
    name_files(database, worker, bell, named)

    assert sweep_once(store, database) == Swept(kept=1, deleted=1, missing=[])

    assert list_names(store) == [named]


def test_a_file_is_kept_while_its_attempt_may_still_name_it(
    store: ArtifactStore, database: Database, worker: uuid.UUID, source: Path
) -> None:
    bell = make_running(database, worker, make_image())
    # A crash of PostgreSQL may forget that the attempt was claimed; its worker goes on.
    reserved = make_reserved(database, worker, make_image())
    names = {put_made(store, source, bell), put_made(store, source, reserved)}

    assert sweep_once(store, database) == Swept(kept=2, deleted=0, missing=[])

    assert set(list_names(store)) == names
    assert finish(database, worker, bell, "failed", error={"code": "a", "message": "b"})
    assert sweep_once(store, database) == Swept(kept=1, deleted=1, missing=[])


def test_the_files_of_an_earlier_attempt_go(
    store: ArtifactStore, database: Database, worker: uuid.UUID, source: Path
) -> None:
    bell = make_running(database, worker, make_image())
    put_made(store, source, bell)
    assert finish(database, worker, bell, "released", error={"code": "a", "message": "b"})
    dispatch(database)
    assert read(database, bell).attempt == 2
    second = put_made(store, source, bell, attempt=2)

    assert sweep_once(store, database) == Swept(kept=1, deleted=1, missing=[])

    assert list_names(store) == [second]


def test_the_files_of_a_task_that_is_gone_go_with_their_folder(
    store: ArtifactStore, database: Database, worker: uuid.UUID, source: Path
) -> None:
    bell = make_running(database, worker, make_image())
    name_files(database, worker, bell, put_made(store, source, bell))
    execute(database, "DELETE FROM tasks WHERE id = :id", id=bell.task_id)

    assert sweep_once(store, database) == Swept(kept=0, deleted=1, missing=[])

    assert str(bell.task_id) not in store.list_folders()


def test_the_files_of_a_task_that_was_deleted_stay_while_another_takes_them(
    store: ArtifactStore, database: Database, worker: uuid.UUID, source: Path
) -> None:
    bell = make_running(database, worker, make_image())
    made = put_made(store, source, bell)
    name_files(database, worker, bell, made)
    [child] = submit(database, make_image(image=made))
    execute(database, "DELETE FROM tasks WHERE id = :id", id=bell.task_id)

    assert sweep_once(store, database) == Swept(kept=1, deleted=0, missing=[])

    assert cancel(database, [child])
    assert sweep_once(store, database).deleted == 1


def test_a_record_whose_file_is_gone_is_reported(
    store: ArtifactStore, database: Database, worker: uuid.UUID, source: Path
) -> None:
    bell, whole = (make_running(database, worker, make_image()) for _ in range(2))
    kept, lost = (put_made(store, source, bell, index=index) for index in range(2))
    name_files(database, worker, bell, kept, lost)
    name_files(database, worker, whole, put_made(store, source, whole))
    store.delete([lost])

    assert sweep_once(store, database).missing == [lost]


def test_what_was_brought_stays_for_its_days_and_while_a_task_takes_it(
    folder: Place, database: Database, worker: uuid.UUID, source: Path
) -> None:
    store = folder.open()
    fresh, stale, taken = (put(store, source, name_upload()) for _ in range(3))
    long_ago = (datetime.now(UTC) - timedelta(days=8)).timestamp()
    for name in (stale, taken):
        os.utime(store.locate(name), (long_ago, long_ago))
    bell = make_running(database, worker, make_image(image=taken))

    assert sweep_once(store, database) == Swept(kept=2, deleted=1, missing=[])

    assert set(list_names(store)) == {fresh, taken}
    assert finish(database, worker, bell)
    assert sweep_once(store, database) == Swept(kept=1, deleted=1, missing=[])
    assert sweep_once(store, database, upload_days=9) == Swept(kept=1, deleted=0, missing=[])


def test_what_a_killed_worker_left_half_written_goes(
    folder: Place, database: Database, worker: uuid.UUID, source: Path
) -> None:
    store = folder.open()
    bell = make_running(database, worker, make_image())
    half = Path(f"{store.locate(put_made(store, source, bell))}.{'0' * 32}.part")
    half.write_bytes(b"half")

    assert sweep_once(store, database) == Swept(kept=2, deleted=0, missing=[])
    assert finish(database, worker, bell, "failed", error={"code": "a", "message": "b"})
    assert sweep_once(store, database) == Swept(kept=0, deleted=2, missing=[])

    assert not half.exists()


def test_many_may_sweep_at_once(store: ArtifactStore, database: Database, worker: uuid.UUID, source: Path) -> None:
    bells = [make_running(database, worker, make_image()) for _ in range(4)]
    named = set()
    for bell in bells:
        kept, _ = (put_made(store, source, bell, index=index) for index in range(2))
        name_files(database, worker, bell, kept)
        named.add(kept)
    problems: list[BaseException] = []

    def sweep_too() -> None:
        try:
            sweep_once(store, database)
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=sweep_too) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert problems == []
    assert set(list_names(store)) == named


def test_more_tasks_than_are_asked_about_at_once(
    folder: Place, database: Database, worker: uuid.UUID, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.artifacts.sweep.BATCH", 2)
    store = folder.open()
    bells = [make_running(database, worker, make_image()) for _ in range(5)]
    for bell in bells:
        kept, _ = (put_made(store, source, bell, index=index) for index in range(2))
        name_files(database, worker, bell, kept)

    assert sweep_once(store, database) == Swept(kept=5, deleted=5, missing=[])


def test_a_store_that_another_system_uses_is_not_swept(
    store: ArtifactStore, database: Database, worker: uuid.UUID, source: Path
) -> None:
    store.check_owner("another system")
    bell = make_running(database, worker, make_image())
    theirs = put_made(store, source, bell, attempt=7)

    with pytest.raises(ArtifactStoreTakenError, match=r"\.bitinglip-owner"):
        sweep_once(store, database)

    assert list_names(store) == [theirs]


def test_what_ended_long_ago_was_looked_at_then(
    folder: Place, database: Database, worker: uuid.UUID, source: Path
) -> None:
    store = folder.open()
    old, young = (make_running(database, worker, make_image()) for _ in range(2))
    for bell in (old, young):
        named, _ = (put_made(store, source, bell, index=index) for index in range(2))
        name_files(database, worker, bell, named)
    execute(database, "UPDATE tasks SET finished_at = now() - interval '2 days' WHERE id = :id", id=old.task_id)

    assert sweep_once(store, database) == Swept(kept=1, deleted=1, missing=[])

    assert len(store.list_files(str(old.task_id))) == 2
    assert sweep(store, database, upload_days=7, old_after=timedelta(days=3)).deleted == 1


def test_what_is_brought_anew_while_it_is_swept_stays(
    folder: Place, database: Database, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder.open()
    name = put(store, source, name_upload())
    long_ago = (datetime.now(UTC) - timedelta(days=8)).timestamp()
    os.utime(store.locate(name), (long_ago, long_ago))
    list_inputs = swept._list_inputs

    def bring_anew(of: Database) -> set[str]:
        put(store, source, name)
        return list_inputs(of)

    monkeypatch.setattr(swept, "_list_inputs", bring_anew)

    assert sweep_once(store, database) == Swept(kept=1, deleted=0, missing=[])

    assert list_names(store) == [name]
