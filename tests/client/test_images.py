"""Pictures come from the store to a folder: whole, under names of their own, and never over what is there."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bitinglip.client import AsyncClient, Client
from bitinglip.client.pictures import make_slug
from bitinglip.domain.artifacts import UPLOADS
from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.errors import (
    ArtifactDamagedError,
    ArtifactNotFoundError,
    InvalidRequestError,
    ResultTimeoutError,
    TaskEndedError,
)
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from tests.conftest import forget_settings
from tests.drawn import Artist
from tests.factories import finish, make_running, make_worker


@pytest.fixture
def artist(database: Database, tmp_path: Path) -> Artist:
    return Artist(database, tmp_path)


def test_pictures_are_saved_by_title_and_seed(client: Client, artist: Artist, tmp_path: Path) -> None:
    handle = artist.draw(client, seeds=(7, 8), prompt="A red circle, on blue!", count=2)

    saved = handle.save_images(tmp_path / "new" / "out")

    assert [path.name for path in saved] == ["a-red-circle-on-blue-x2-7.png", "a-red-circle-on-blue-x2-8.png"]
    assert [Image.open(path).getpixel((0, 0)) for path in saved] == [(7, 0, 0), (8, 0, 0)]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [path.name for path in saved]


@pytest.mark.parametrize(("format_", "suffix"), [("png", ".png"), ("webp", ".webp"), ("jpeg", ".jpg")])
def test_a_picture_keeps_the_suffix_of_its_format(
    client: Client, artist: Artist, tmp_path: Path, format_: str, suffix: str
) -> None:
    saved = artist.draw(client, format_=format_).save_images(tmp_path / "out")

    assert [path.suffix for path in saved] == [suffix]


def test_what_is_there_is_never_overwritten(client: Client, artist: Artist, tmp_path: Path) -> None:
    (tmp_path / "a-red-circle-7.png").write_text("mine")
    handle = artist.draw(client)

    again = [handle.save_images(tmp_path)[0].name for _ in range(2)]

    assert again == ["a-red-circle-7-2.png", "a-red-circle-7-3.png"]
    assert (tmp_path / "a-red-circle-7.png").read_text() == "mine"


def test_many_at_once_take_a_name_each(client: Client, artist: Artist, tmp_path: Path) -> None:
    handle = artist.draw(client)
    threads = [threading.Thread(target=handle.save_images, args=(tmp_path / "out",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(list((tmp_path / "out").glob("a-red-circle-7*.png"))) == 8
    assert len(list((tmp_path / "out").iterdir())) == 8


def test_a_folder_without_links_is_written_all_the_same(
    client: Client, artist: Artist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    handle = artist.draw(client)
    monkeypatch.setattr(os, "link", refuse)

    names = [handle.save_images(tmp_path / "out")[0].name for _ in range(2)]

    assert names == ["a-red-circle-7.png", "a-red-circle-7-2.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("/", "image"),
        ("..", "image"),
        ("", "image"),
        ("\u8d64\u3044\u5186", "image"),
        ("Caf\u00e9 cr\u00e8me", "cafe-creme"),
        ("a\x00b\n-rf", "a-b-rf"),
        ("-rf", "rf"),
        ("x" * 200, "x" * 60),
        ("x" * 59 + " y", "x" * 59),
        ("C:\\con", "c-con"),
    ],
)
def test_a_title_is_a_harmless_file_name(title: str, slug: str) -> None:
    assert make_slug(title) == slug


def test_a_picture_that_is_not_what_was_made_is_not_saved(client: Client, artist: Artist, tmp_path: Path) -> None:
    doorbell = artist.begin()
    artist.end(doorbell, sha256="0" * 64)

    with pytest.raises(ArtifactDamagedError, match="not those that the task made"):
        client.handle(doorbell.task_id).save_images(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_picture_that_is_gone_is_named(client: Client, artist: Artist, tmp_path: Path) -> None:
    handle = artist.draw(client)
    name = handle.result()["images"][0]["artifact"]
    client.artifacts.delete([name])

    with pytest.raises(ArtifactNotFoundError, match=name):
        handle.save_images(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_task_that_failed_says_so_and_saves_nothing(
    client: Client, database: Database, artist: Artist, tmp_path: Path
) -> None:
    doorbell = artist.begin()
    error = {"code": "boom", "message": "it burst", "retryable": False}
    finish(database, artist.worker, doorbell, "failed", error=error)

    with pytest.raises(TaskEndedError, match="it burst"):
        client.handle(doorbell.task_id).save_images(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_task_that_goes_on_is_waited_for_no_longer_than_told(client: Client, artist: Artist, tmp_path: Path) -> None:
    handle = client.handle(artist.begin().task_id)

    with pytest.raises(ResultTimeoutError):
        handle.save_images(tmp_path, timeout=0.1)


def test_a_task_that_draws_nothing_has_no_pictures(client: Client, database: Database, tmp_path: Path) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    finish(database, worker, doorbell, result={"text": "hello"})

    with pytest.raises(InvalidRequestError, match=r"type 'echo' makes no pictures"):
        client.handle(doorbell.task_id).save_images(tmp_path)


def test_a_picture_that_is_brought_is_kept_under_its_name(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "mine.dat"
    Image.new("RGB", (8, 8), "red").save(file, "PNG")

    name = client.upload(file)

    assert name.startswith(f"{UPLOADS}/")
    with client.artifacts.open(name) as kept:
        assert kept.read() == file.read_bytes()
    with pytest.raises(InvalidRequestError, match="image"):
        client.upload(tmp_path / "nothing.png")


def test_a_picture_larger_than_may_be_brought_is_refused(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.png"
    Image.new("RGB", (8, 8), "red").save(file)
    monkeypatch.setenv("BITINGLIP_ARTIFACT_UPLOAD_BYTES", "10")
    forget_settings()

    with pytest.raises(InvalidRequestError, match="at most 10"):
        client.upload(file)


def test_the_async_client_does_the_same(urls: ServerUrls, client: Client, artist: Artist, tmp_path: Path) -> None:
    drawn = artist.draw(client)
    file = tmp_path / "mine.png"
    Image.new("RGB", (8, 8), "red").save(file)

    async def save() -> tuple[list[Path], str]:
        async with AsyncClient(*urls) as opened:
            handle = await opened.handle(drawn.id)
            return await handle.save_images(tmp_path / "out", 5), await opened.upload(file)

    saved, name = asyncio.run(save())

    assert [path.name for path in saved] == ["a-red-circle-7.png"]
    assert client.artifacts.locate(name)


def test_submitting_imports_nothing_of_the_store(urls: ServerUrls) -> None:
    program = (
        "import sys; from bitinglip.client import Client\n"
        "with Client() as client: client.submit('echo', text='hi')\n"
        "print(*[name for name in ('fsspec', 'PIL', 's3fs') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ended.stdout.split() == []


def test_only_a_file_that_its_task_has_made_may_be_taken(client: Client, artist: Artist) -> None:
    drawn = artist.draw(client, seeds=(7, 8), count=2)
    first, second = (image["artifact"] for image in drawn.result()["images"])
    mistyped = first[:-5] + ("0" if first[-5] != "0" else "1") + ".png"

    def ask(name: str) -> TaskRequest:
        return make_request("image", {"prompt": "the same in winter", "image": name}, model="painter")

    for names in ([mistyped], [second, mistyped]):
        with pytest.raises(InvalidRequestError, match=f"image: '{mistyped}': task {drawn.id} has made no such file"):
            client.submit_many([ask(name) for name in names])
    running = artist.begin()
    with pytest.raises(InvalidRequestError, match=f"task {running.task_id} has made no such file"):
        client.submit_many([ask(f"{running.task_id}/1-0-00000000.png")])
    taken = client.submit_many([ask(first), ask(second)])
    assert [handle.task().depends_on for handle in taken] == [[drawn.id], [drawn.id]]
