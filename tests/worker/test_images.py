"""Pictures through the whole path: drawn, stored, recorded, swept."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitinglip.artifacts.store import ArtifactStore, open_artifacts
from bitinglip.artifacts.sweep import sweep
from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.engine.image.files import TEXT_KEY
from bitinglip.errors import InvalidRequestError, TaskNotFoundError
from bitinglip.store.database import Database
from bitinglip.streams.events import EventName
from tests.conftest import System, eventually, wait_for_workers
from tests.engine.image.tiny_pipelines import make_stable_diffusion
from tests.factories import execute

POOL = '[pools.default]\nkinds = ["image", "echo"]\ngpus = []\nslots = 4\npreload = []\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny-diffusion")
    make_stable_diffusion(folder)
    return str(folder)


@pytest.fixture
def store(processes: System) -> ArtifactStore:
    """As the worker sees it."""
    return open_artifacts()


@pytest.fixture
def drawing(processes: System, database: Database) -> System:
    """A dispatcher and a worker that draws."""
    processes.start_dispatcher()
    processes.start_worker(pools=POOL)
    wait_for_workers(database, 1)
    return processes


def list_stored(store: ArtifactStore) -> set[str]:
    return {file.name for folder in store.list_folders() for file in store.list_files(folder)}


def find_spool() -> Path:
    return Path(os.environ["BITINGLIP_DATA_DIR"]) / "spool"


def list_spooled() -> list[Path]:
    return [path for path in find_spool().rglob("*") if path.is_file()]


def test_a_record_names_files_that_are_there_and_nothing_stays_behind(
    drawing: System, client: Client, store: ArtifactStore, model: str, database: Database
) -> None:
    handle = client.submit("image", model=model, prompt="a red circle", width=64, height=32, steps=2, count=2, seed=7)

    images = handle.result(timeout=90)["images"]

    assert [image["seed"] for image in images] == [7, 8]
    assert {image["artifact"] for image in images} == list_stored(store)
    for image in images:
        assert set(image) == {"index", "artifact", "media_type", "size", "sha256", "seed", "width", "height"}
        with store.open(image["artifact"]) as file:
            content = file.read()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (image["size"], image["sha256"])
        with Image.open(io.BytesIO(content)) as picture:
            assert (picture.format, picture.size) == ("PNG", (64, 32))
            # The model's folder is nobody's business who gets the picture.
            assert json.loads(picture.info[TEXT_KEY])["model"] == Path(model).name
    usage = handle.task().usage
    assert usage is not None
    assert (usage["steps"], usage["pixels"]) == (4, 2 * 64 * 32)
    assert list_spooled() == []
    # It would stand before an engine's last words.
    assert "[transformers]" not in drawing.read_log("worker")
    assert sweep(store, database, upload_days=1).deleted == 0
    assert {image["artifact"] for image in images} == list_stored(store)


@pytest.mark.usefixtures("drawing")
def test_a_picture_starts_from_one_of_the_agents_own(client: Client, model: str, tmp_path: Path) -> None:
    first = client.submit("image", model=model, prompt="a circle", width=64, height=64, steps=2, seed=1)
    made = first.result(timeout=90)["images"][0]["artifact"]
    brought = tmp_path / "photo.jpg"
    Image.fromarray(np.full((40, 80, 3), 200, dtype=np.uint8)).save(brought)

    from_made = client.submit("image", model=model, prompt="a ring", image=made, strength=0.5, steps=4)
    from_brought = client.submit("image", model=model, prompt="a ring", image=client.upload(brought), steps=2)

    assert from_made.task().depends_on == [first.id]
    [drawn] = from_made.result(timeout=60)["images"]
    assert drawn["width"] == drawn["height"]
    [drawn] = from_brought.result(timeout=60)["images"]
    assert drawn["width"] == 2 * drawn["height"]
    with pytest.raises(InvalidRequestError, match="another agent"):
        client.submit("image", model=model, prompt="a ring", image=made, agent="somebody-else")
    with pytest.raises(TaskNotFoundError):
        client.submit("image", model=model, prompt="a ring", image=f"{made[:30]}000000/1-0-00000000.png")
    gone = client.submit("image", model=model, prompt="a ring", image=f"uploads/{'0' * 32}.png").wait(timeout=60)
    assert gone.error is not None
    assert (gone.error.code, gone.attempt) == ("artifact_not_found", 1)


def test_a_worker_that_is_killed_over_its_files_leaves_none_for_long(
    processes: System, client: Client, database: Database, store: ArtifactStore, model: str
) -> None:
    processes.start_dispatcher()
    processes.start_worker(pools=POOL)
    wait_for_workers(database, 1)
    client.submit("image", model=model, prompt="warm up", width=64, height=64, steps=1).result(timeout=90)
    handle = client.submit("image", model=model, prompt="a circle", width=64, height=64, steps=2, count=3)
    # Stopped where the files are stored and the ending is not recorded: PostgreSQL lets nobody write the task.
    with database.transaction() as connection:
        eventually(lambda: handle.status is Status.IN_PROGRESS)
        connection.exec_driver_sql(f"SELECT FROM tasks WHERE id = '{handle.id}' FOR UPDATE")
        eventually(lambda: len(store.list_files(str(handle.id))) == 3, within=60)
        processes.kill("worker")
        # What it has sent is PostgreSQL's to do, even now.
        execute(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'bitinglip-worker%'",
        )
    first = {file.name for file in store.list_files(str(handle.id))}

    processes.start_worker(pools=POOL)
    images = handle.result(timeout=90)["images"]

    named = {image["artifact"] for image in images}
    assert len(named) == 3
    assert not named & first
    swept = sweep(store, database, upload_days=1)
    assert (swept.deleted, swept.missing) == (3, [])
    assert {file.name for file in store.list_files(str(handle.id))} == named
    eventually(lambda: list_spooled() == [])


@pytest.mark.usefixtures("drawing")
def test_a_full_disk_is_told_before_anything_is_drawn(
    processes: System, client: Client, database: Database, model: str
) -> None:
    processes.kill("worker")
    processes.start_worker("full", pools=POOL, environment={"BITINGLIP_ARTIFACT_SPARE_BYTES": str(2**62)})
    wait_for_workers(database, 1)

    task = client.submit("image", model=model, prompt="a circle", steps=2).wait(timeout=60)

    assert task.error is not None
    assert task.error.code == "artifact_disk_full"
    assert "BITINGLIP_ARTIFACT_SPARE_BYTES" in task.error.message
    assert (task.attempt, (task.usage or {}).get("steps")) == (1, None)


@pytest.mark.usefixtures("drawing")
def test_a_cancelled_drawing_leaves_no_file(client: Client, store: ArtifactStore, model: str) -> None:
    handle = client.submit("image", model=model, prompt="a circle", width=64, height=64, steps=500, count=4)
    next(event for event in handle.stream() if event.name is EventName.PROGRESS)

    handle.cancel()

    assert handle.wait(timeout=30).status is Status.CANCELLED
    eventually(lambda: list_spooled() == [])
    assert list_stored(store) == set()


def test_workers_that_see_different_stores_say_so(processes: System, database: Database, tmp_path: Path) -> None:
    processes.start_worker("here", pools=POOL)
    wait_for_workers(database, 1)
    elsewhere = {"BITINGLIP_ARTIFACT_URL": str(tmp_path / "elsewhere"), "BITINGLIP_NODE": "other-node"}

    processes.start_worker("there", pools=POOL, environment=elsewhere)
    processes.start_worker("beside", pools=POOL)
    wait_for_workers(database, 3)

    assert "artifacts_not_shared" in processes.read_log("there")
    assert "artifacts_not_shared" not in processes.read_log("here")
    stores = execute(database, "SELECT count(DISTINCT artifact_store) FROM workers")
    assert stores[0][0] == 2


def test_a_worker_clears_what_was_left_in_its_spool(processes: System, database: Database) -> None:
    processes.start_worker(pools=POOL)
    wait_for_workers(database, 1)
    name = execute(database, "SELECT name FROM workers")[0][0]
    processes.kill("worker")
    left = find_spool() / name / "left"
    left.mkdir(parents=True)
    (left / "0.png").write_bytes(b"half a picture")

    processes.start_worker(pools=POOL)

    eventually(lambda: not left.exists(), within=20)


@pytest.mark.usefixtures("drawing")
def test_nothing_is_drawn_where_another_system_keeps_its_own(client: Client, store: ArtifactStore, model: str) -> None:
    store.check_owner("another system")

    task = client.submit("image", model=model, prompt="a circle", steps=2).wait(timeout=60)

    assert task.error is not None
    assert (task.error.code, task.attempt) == ("artifact_store_taken", 1)
    assert "BITINGLIP_ARTIFACT_URL" in task.error.message
    assert client.submit("echo", text="still here").result(timeout=30)["text"] == "still here"
