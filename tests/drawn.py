"""Image tasks that are drawn without an engine: files in the store, and a record that names them."""

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bitinglip.artifacts.store import ArtifactStore, open_artifacts
from bitinglip.client import Client, Handle
from bitinglip.domain.artifacts import Maker, make_name
from bitinglip.domain.task import make_request
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.conftest import eventually
from tests.factories import execute, finish, make_running, make_worker, start_task

SUFFIXES = {"png": "png", "webp": "webp", "jpeg": "jpg"}


class Artist:
    """A worker that draws one colour.

    Args:
        database: Where its tasks are.
        folder: For files on their way into the store.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self.worker = make_worker(database, "artist", kinds=("image",), models=("painter",))

    def begin(self, **payload: Any) -> Doorbell:
        """An image task that this worker runs."""
        title = payload.pop("title", None)
        fields = {"title": title} if title is not None else {}
        request = make_request("image", {"prompt": "a red circle", **payload}, model="painter", **fields)
        return make_running(self._database, self.worker, request)

    def take(self) -> Doorbell:
        """Begin the image task that somebody submits."""
        sql = "SELECT id FROM tasks WHERE type = 'image' AND queue_state = 'ready'"
        ready = eventually(lambda: execute(self._database, sql), within=20)
        return start_task(self._database, self.worker, ready[0][0])

    def end(
        self,
        doorbell: Doorbell,
        *,
        seeds: Sequence[int] = (7,),
        format_: str = "png",
        picture: Image.Image | None = None,
        **lies: Any,
    ) -> None:
        """Store a picture for each seed, and record that the task has completed.

        Args:
            doorbell: Of the attempt.
            seeds: Of the pictures; also how red each is.
            format_: Of their files.
            picture: In place of one colour.
            **lies: What the record says of each in place of the truth.
        """
        store = open_artifacts()
        pictures = [picture or Image.new("RGB", (64, 48), (seed % 256, 0, 0)) for seed in seeds]
        files = [self._store(store, doorbell, number, made, format_) for number, made in enumerate(pictures)]
        images = [{**file, "seed": seed, **lies} for file, seed in zip(files, seeds, strict=True)]
        told = {"images": images, "steps": 20, "model": "painter"}
        assert finish(self._database, self.worker, doorbell, result=told)

    def draw(
        self,
        client: Client,
        *,
        seeds: Sequence[int] = (7,),
        format_: str = "png",
        picture: Image.Image | None = None,
        **payload: Any,
    ) -> Handle:
        """A completed image task, of one colour or of the picture given."""
        doorbell = self.begin(**payload)
        self.end(doorbell, seeds=seeds, format_=format_, picture=picture)
        return client.handle(doorbell.task_id)

    def _store(
        self, store: ArtifactStore, doorbell: Doorbell, number: int, picture: Image.Image, format_: str
    ) -> dict[str, Any]:
        file = self._folder / uuid.uuid4().hex
        picture.save(file, format_)
        size, sha256 = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
        name = make_name(Maker(doorbell.task_id, doorbell.attempt), number, SUFFIXES[format_])
        store.put(file, name, size=size, sha256=sha256)
        facts = {"media_type": f"image/{format_}", "size": size, "sha256": sha256, "index": number}
        return {"artifact": name, **facts, "width": picture.width, "height": picture.height}
