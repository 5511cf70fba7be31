"""What the demo says of a picture is what the picture shows."""

from pathlib import Path
from random import Random

import pytest
from PIL import Image

from bitinglip.artifacts.store import open_artifacts
from bitinglip.cli.demo_pictures import WISHES, Picture
from bitinglip.client import Client
from bitinglip.demo.images.scenes import SIZE, Scene, draw
from bitinglip.store.database import Database
from tests.drawn import Artist
from tests.factories import finish


@pytest.mark.parametrize("wish", WISHES)
def test_a_picture_of_what_was_asked_for_is_right(client: Client, artist: Artist, wish: tuple[str, str, str]) -> None:
    drawn = Image.fromarray(draw(Scene(*wish), Random(1)))
    picture = Picture(wish, handle=artist.draw(client, picture=drawn))

    picture.look(open_artifacts())

    assert (picture.shows, picture.right) == (picture.prompt, True)
    assert Path(picture.place or "").is_file()


def test_a_picture_of_something_else_is_not(client: Client, artist: Artist) -> None:
    drawn = Image.fromarray(draw(Scene("ring", "yellow", "green"), Random(1)))
    picture = Picture(("circle", "red", "blue"), handle=artist.draw(client, picture=drawn))

    picture.look(open_artifacts())

    assert (picture.shows, picture.right) == ("a yellow ring on green", False)


def test_an_empty_picture_shows_nothing(client: Client, artist: Artist) -> None:
    drawn = Image.new("RGB", (SIZE, SIZE), (45, 80, 220))
    picture = Picture(("circle", "red", "blue"), handle=artist.draw(client, picture=drawn))

    picture.look(open_artifacts())

    assert (picture.shows, picture.right) == ("nothing on blue", False)


def test_a_picture_that_failed_says_why(client: Client, database: Database, artist: Artist) -> None:
    doorbell = artist.begin()
    finish(database, artist.worker, doorbell, "failed", error={"code": "boom", "message": "it burst"})
    picture = Picture(("circle", "red", "blue"), handle=client.handle(doorbell.task_id))

    picture.look(open_artifacts())

    assert (picture.shows, picture.right, picture.place) == ("nothing: boom", False, None)
