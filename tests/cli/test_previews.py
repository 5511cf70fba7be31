"""What is shown of a picture while it is drawn: a bar, and the picture where the terminal can."""

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from bitinglip.cli.preview import open_preview
from bitinglip.client import Client
from bitinglip.streams.events import EventName
from bitinglip.streams.writer import AttemptEvents
from tests.cli.conftest import Start
from tests.cli.terminal import Terminal
from tests.conftest import eventually
from tests.drawn import Artist

CIRCLE = ("submit", "image", "a red circle", "--model", "painter")


def make_preview() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def watch(terminal: Terminal, artist: Artist, client: Client) -> str:
    """What a terminal is shown of a task with one preview, and the task's id."""
    doorbell = artist.take()
    events = AttemptEvents(client.events, doorbell.task_id, doorbell.attempt, "default")
    detail = {"step": 4, "steps": 20, "done": 0, "drawing": 1, "count": 1, "preview": make_preview()}
    events.publish(EventName.STARTED, attempt=1)
    events.publish(EventName.PROGRESS, fraction=0.2, **detail)
    eventually(lambda: "step 4 of 20" in terminal.shown, within=20)
    artist.end(doorbell)
    assert terminal.wait() == 0, terminal.shown
    return str(doorbell.task_id)


def test_a_terminal_that_shows_pictures_is_shown_the_picture_as_it_comes(client: Client, artist: Artist) -> None:
    with Terminal(*CIRCLE, "--wait", shows_pictures=True) as terminal:
        task_id = watch(terminal, artist, client)

    assert client.get(task_id).payload["preview_steps"] > 0
    # A picture in sixels.
    assert "\x1bP0;0;0q" in terminal.shown
    assert "20%" in terminal.shown
    assert terminal.shown.rstrip().endswith(".png")


def test_a_terminal_that_shows_none_is_shown_a_bar_only(client: Client, artist: Artist) -> None:
    with Terminal(*CIRCLE, "--wait") as terminal:
        task_id = watch(terminal, artist, client)

    assert "preview_steps" not in client.get(task_id).payload
    assert "\x1bP" not in terminal.shown
    assert "\N{UPPER HALF BLOCK}" not in terminal.shown
    assert "20%" in terminal.shown


def test_a_terminal_that_shows_none_says_so_where_they_are_asked_for(client: Client, artist: Artist) -> None:
    with Terminal(*CIRCLE, "--wait", "--preview") as terminal:
        task_id = watch(terminal, artist, client)

    assert "preview_steps" not in client.get(task_id).payload
    assert "this terminal shows no pictures" in terminal.shown


def test_a_terminal_of_no_size_is_shown_no_picture(client: Client, artist: Artist) -> None:
    with Terminal(*CIRCLE, "--wait", "--preview", shows_pictures=True, rows=0) as terminal:
        task_id = watch(terminal, artist, client)

    assert "preview_steps" not in client.get(task_id).payload
    assert terminal.shown.rstrip().endswith(".png")


def test_a_preview_can_be_refused(client: Client, artist: Artist) -> None:
    with Terminal(*CIRCLE, "--wait", "--no-preview", shows_pictures=True) as terminal:
        task_id = watch(terminal, artist, client)

    assert "preview_steps" not in client.get(task_id).payload
    assert "\x1bP" not in terminal.shown


def test_a_request_with_a_key_is_the_same_from_every_terminal(client: Client, artist: Artist) -> None:
    with Terminal(*CIRCLE, "--wait", "--idempotency-key", "k", shows_pictures=True) as terminal:
        task_id = watch(terminal, artist, client)

    assert "preview_steps" not in client.get(task_id).payload


def test_without_a_terminal_there_are_paths_and_nothing_else(start: Start, client: Client, artist: Artist) -> None:
    process = start(*CIRCLE, "--wait", BITINGLIP_DATA_DIR=os.environ["BITINGLIP_DATA_DIR"])
    doorbell = artist.take()
    detail = {"step": 4, "steps": 20, "done": 0, "drawing": 1, "count": 1, "preview": make_preview()}
    events = AttemptEvents(client.events, doorbell.task_id, doorbell.attempt, "default")
    events.publish(EventName.PROGRESS, fraction=0.2, **detail)
    artist.end(doorbell)
    output, errors = process.communicate(timeout=20)

    assert process.returncode == 0, errors
    assert Path(output.strip()).is_file()
    assert errors == f"task {doorbell.task_id}\n"


@pytest.mark.parametrize(
    "text", ["", "no base64!", base64.b64encode(b"no picture").decode(), base64.b64encode(b"\xff\xd8\xff").decode()]
)
def test_a_preview_that_is_none_is_passed_over(text: str) -> None:
    assert open_preview(text) is None


def test_a_preview_that_is_too_large_is_passed_over() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4_000, 8)).save(file, "JPEG")

    assert open_preview(base64.b64encode(file.getvalue()).decode()) is None
