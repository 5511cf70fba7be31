"""`submit image`: pictures drawn, shown as they come, saved, put on a sheet and opened; and what is refused at once."""

import json
import os
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitinglip.artifacts.store import open_artifacts
from bitinglip.cli.images import submit_image
from bitinglip.cli.pictures import CELL_SIDE, write_sheet
from bitinglip.client import Client
from bitinglip.demo.images.judge import judge
from bitinglip.demo.images.scenes import Scene
from bitinglip.domain.artifacts import make_upload_name
from bitinglip.errors import InvalidRequestError
from bitinglip.store.database import Database
from bitinglip.store.queries import list_tasks
from bitinglip.streams.events import EventName
from bitinglip.streams.writer import AttemptEvents
from tests.cli.conftest import Run, Start, read_lines
from tests.conftest import System, wait_for_workers
from tests.drawn import Artist
from tests.factories import execute, finish, make_running, make_worker

CIRCLE = ("submit", "image", "a red circle", "--model", "painter")


@pytest.fixture
def drawing(artist: Artist) -> "Iterator[Callable[..., None]]":
    """Let the artist do the next image task that is submitted, in a thread."""
    threads: list[threading.Thread] = []

    def start(work: Callable[[Any], None] | None = None, **ending: Any) -> None:
        def run() -> None:
            doorbell = artist.take()
            if work is not None:
                work(doorbell)
            artist.end(doorbell, **ending)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def list_recorded(client: Client) -> list[Any]:
    with client.database.transaction() as connection:
        return list_tasks(connection)


def make_picture(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("RGB", size, "red").save(path)
    return path


@pytest.mark.usefixtures("artist")
def test_every_option_reaches_the_record(run: Run, client: Client) -> None:
    name = make_upload_name("0" * 64, "png")
    options = (
        "--size 64x48 --steps 7 --guidance 2.5 --seed 4 --count 3 --negative-prompt blurred --scheduler euler "
        f"--image {name} --strength 0.5 --format webp --quality 50 --agent bot --title T"
    ).split()

    result = run(*CIRCLE, *options)

    assert result.exit_code == 0, result.output
    task = client.get(result.stdout.strip())
    assert (task.type, task.model, task.agent_id, task.title) == ("image", "painter", "bot", "T")
    assert task.payload == {
        "prompt": "a red circle",
        "width": 64,
        "height": 48,
        "steps": 7,
        "guidance": 2.5,
        "seed": 4,
        "count": 3,
        "negative_prompt": "blurred",
        "scheduler": "euler",
        "image": name,
        "strength": 0.5,
        "format": "webp",
        "quality": 50,
    }


@pytest.mark.usefixtures("artist")
def test_a_file_to_start_from_is_brought(run: Run, client: Client, tmp_path: Path) -> None:
    file = make_picture(tmp_path / "mine.png")

    task = client.get(run(*CIRCLE, "--image", str(file)).stdout.strip())

    with open_artifacts().open(task.payload["image"]) as kept:
        assert kept.read() == file.read_bytes()


@pytest.mark.usefixtures("artist")
def test_a_quote_brings_nothing_and_records_nothing(run: Run, client: Client, tmp_path: Path) -> None:
    file = make_picture(tmp_path / "mine.png")

    result = run(*CIRCLE, "--image", str(file), "--strength", "0.5", "--quote")

    assert result.exit_code == 0, result.output
    assert list_recorded(client) == []
    assert open_artifacts().list_folders() == []


BAD = {
    "no multiple": (("--size", "7x9"), ["--size (width)", "7", "multiple of 8 from 16 to 4,096", "16 is nearest"]),
    "too large": (("--size", "20000x20000"), ["--size (width)", "20000", "4,096 is nearest"]),
    "too high": (("--size", "64x8000"), ["--size (height)", "8000"]),
    "no size": (("--size", "12"), ["--size", "'12'", "512x512"]),
    "sizes of words": (("--size", "axb"), ["--size", "'axb'"]),
    "no steps": (("--steps", "0"), ["--steps", "greater than or equal to 1"]),
    "too many steps": (("--steps", "10000"), ["--steps", "10000", "less than or equal to 500"]),
    "too many pictures": (("--count", "1000"), ["--count", "1000", "less than or equal to 64"]),
    "no pictures": (("--count", "0"), ["--count", "greater than or equal to 1"]),
    "unknown scheduler": (("--scheduler", "fast"), ["--scheduler", "'fast'", "'euler'", "'ddim'"]),
    "unknown format": (("--format", "gif"), ["--format", "'gif'", "'webp'"]),
    "quality 0": (("--quality", "0"), ["--quality", "greater than or equal to 1"]),
    "strength of nothing": (("--strength", "0.5"), ["--strength", "name an image to start from"]),
    "guidance 100": (("--guidance", "100"), ["--guidance", "less than or equal to 50"]),
    "seed below 0": (("--seed", "-1"), ["--seed", "greater than or equal to 0"]),
    "file not there": (("--image", "/nowhere.png"), ["--image", "'/nowhere.png'", "no such file"]),
    "artifact that nobody could have": (("--image", "uploads/../x.png"), ["--image", "no artifact has such a name"]),
    "folder to start from": (("--image", "/tmp"), ["--image", "'/tmp'", "no file"]),
    "text to start from": (("--image", __file__), ["--image", "name a picture"]),
    "model that writes": (("--model", "demo"), ["--model", "'demo'", "'text'", "'image'"]),
    "unknown model": (("--model", "dall-e"), ["'dall-e'", "demo"]),
    "out that is a file": (("--out", __file__), ["--out", "test_images.py", "folder that you may write"]),
    "out below a file": (("--out", f"{__file__}/x"), ["--out", "Not a directory"]),
    "out that nobody may write": (("--out", "/proc/pictures"), ["--out", "/proc/pictures"]),
    "quote and out": (("--quote", "--out", "."), ["--quote", "--out"]),
    "wait and follow": (("--wait", "--follow"), ["--wait", "--follow"]),
    "blank prompt": (("--prompt-of-spaces",), ["--prompt-of-spaces"]),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
@pytest.mark.usefixtures("artist")
def test_bad_input_is_named_and_nothing_is_recorded(
    options: tuple[str, ...], words: list[str], run: Run, client: Client
) -> None:
    result = run(*CIRCLE, *options)

    assert result.exit_code == (3 if "dall-e" in options else 2), result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert list_recorded(client) == []
    assert open_artifacts().list_folders() == []


@pytest.mark.usefixtures("artist")
def test_a_picture_that_claims_too_many_pixels_is_refused(run: Run, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(file)

    result = run(*CIRCLE, "--image", str(file))

    assert result.exit_code == 2, result.output
    assert "--image" in result.stderr
    assert "pixels" in result.stderr
    assert list_recorded(client) == []


@pytest.mark.usefixtures("artist")
def test_nothing_is_brought_for_a_request_that_is_wrong(run: Run, tmp_path: Path) -> None:
    file = make_picture(tmp_path / "mine.png")

    result = run(*CIRCLE, "--image", str(file), "--steps", "10000")

    assert result.exit_code == 2
    assert open_artifacts().list_folders() == []


@pytest.mark.usefixtures("client")
def test_a_model_that_draws_is_refused_for_text(run: Run, database: Database) -> None:
    execute(database, "INSERT INTO models (name, source, type, weight_bytes) VALUES ('drawer', 'folder', 'image', 5)")
    result = run("submit", "text", "hi", "--model", "drawer")

    assert result.exit_code == 2, result.output
    for word in ("--model", "'drawer'", "'image'", "'text'"):
        assert word in result.stderr


def test_wait_writes_where_the_pictures_are(run: Run, drawing: Callable[..., None]) -> None:
    drawing(seeds=(7, 8))

    result = run(*CIRCLE, "--count", "2", "--wait")

    assert result.exit_code == 0, result.output
    assert [stat.S_ISREG(Path(line).stat().st_mode) for line in result.stdout.splitlines()] == [True, True]


def test_wait_as_json_writes_the_record(run: Run, drawing: Callable[..., None], tmp_path: Path) -> None:
    drawing()

    result = run(*CIRCLE, "--wait", "--json", "--out", str(tmp_path / "out"))

    document = json.loads(result.stdout)
    assert [image["seed"] for image in document["result"]["images"]] == [7]
    assert str(tmp_path / "out" / "a-red-circle-7.png") in result.stderr


def test_out_saves_the_pictures_and_a_sheet_of_them(run: Run, drawing: Callable[..., None], tmp_path: Path) -> None:
    drawing(seeds=(7, 8, 9))
    out = tmp_path / "new" / "out"

    result = run(*CIRCLE, "--count", "3", "--out", str(out))

    assert result.exit_code == 0, result.output
    names = [f"a-red-circle-x3-{what}.png" for what in ("7", "8", "9", "sheet")]
    assert result.stdout.splitlines() == [str(out / name) for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    with Image.open(out / names[-1]) as sheet:
        # Two columns, two rows: the last cell is empty.
        assert [sheet.getpixel(place) for place in ((10, 10), (90, 10), (10, 70), (90, 70))] == [
            (7, 0, 0),
            (8, 0, 0),
            (9, 0, 0),
            (255, 255, 255),
        ]


def test_one_picture_has_no_sheet(run: Run, drawing: Callable[..., None], tmp_path: Path) -> None:
    drawing()

    result = run(*CIRCLE, "--out", str(tmp_path / "out"))

    assert result.stdout.splitlines() == [str(tmp_path / "out" / "a-red-circle-7.png")]


def test_large_pictures_are_small_on_a_sheet(tmp_path: Path) -> None:
    pictures = [make_picture(tmp_path / f"{number}.png", (2_048, 1_024)) for number in range(2)]

    with Image.open(write_sheet(pictures, tmp_path, "large")) as sheet:
        assert sheet.width < 2 * CELL_SIDE + 30
        assert sheet.height < CELL_SIDE / 2 + 30


@pytest.mark.usefixtures("client")
def test_a_task_that_fails_says_why_and_saves_nothing(
    run: Run, database: Database, artist: Artist, tmp_path: Path
) -> None:
    def fail() -> None:
        doorbell = artist.take()
        error = {"code": "boom", "message": "it burst", "retryable": False}
        finish(database, artist.worker, doorbell, "failed", error=error)

    thread = threading.Thread(target=fail)
    thread.start()
    result = run(*CIRCLE, "--out", str(tmp_path / "out"))
    thread.join()

    assert (result.exit_code, result.stdout) == (1, "")
    assert "it burst" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_open_has_the_desktop_show_the_sheet(start: Start, drawing: Callable[..., None], tmp_path: Path) -> None:
    script = tmp_path / "bin" / "xdg-open"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/opened\necho noise\n')
    script.chmod(0o755)
    (script.parent / "open").symlink_to(script)
    path = f"{script.parent}:{os.environ['PATH']}"
    drawing(seeds=(7, 8))

    environment = {"PATH": path, "BITINGLIP_DATA_DIR": os.environ["BITINGLIP_DATA_DIR"]}
    process = start(*CIRCLE, "--count", "2", "--open", "--out", str(tmp_path / "out"), **environment)
    output, errors = process.communicate(timeout=30)

    assert process.returncode == 0, errors
    assert (tmp_path / "opened").read_text().strip() == output.splitlines()[-1]
    assert "noise" not in output


def test_open_without_a_desktop_says_so(
    run: Run, drawing: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    drawing()

    result = run(*CIRCLE, "--open")

    assert result.exit_code == 0, result.output
    assert "no program opens pictures here" in result.stderr
    # Where it is kept; what was shown is a copy.
    assert Path(result.stdout.strip()).is_relative_to(os.environ["BITINGLIP_DATA_DIR"])


def test_follow_tells_how_far_it_is_and_ends_with_the_paths(
    run: Run, client: Client, drawing: Callable[..., None]
) -> None:
    def work(doorbell: Any) -> None:
        events = AttemptEvents(client.events, doorbell.task_id, doorbell.attempt, "default")
        detail = {"step": 5, "steps": 20, "done": 1, "drawing": 1, "count": 2}
        events.publish(EventName.PROGRESS, fraction=0.625, **detail)

    drawing(work, seeds=(7, 8))
    result = run(*CIRCLE, "--count", "2", "--follow")

    assert result.exit_code == 0, result.output
    assert "62%: step 5 of 20, picture 2 of 2\n" in result.stderr
    assert len(result.stdout.splitlines()) == 2
    task_id = result.stderr.split()[1]
    assert run("task", "follow", task_id).stdout == result.stdout
    assert run("task", "show", task_id).stdout.endswith("\n" + result.stdout)
    events = read_lines(run("task", "follow", task_id, "--json").stdout)
    assert events[-1]["event"] == "finished"
    assert run("task", "follow", task_id, "--after", events[1]["id"]).stdout == result.stdout


def test_the_demo_model_is_the_default() -> None:
    assert [parameter.default for parameter in submit_image.params if parameter.name == "model"] == ["demo-image"]


def test_the_demo_model_draws_what_is_asked_for(
    processes: System, database: Database, run: Run, tmp_path: Path
) -> None:
    processes.start_dispatcher()
    processes.start_worker(pools='[pools.default]\nkinds = ["image"]\ngpus = []\nslots = 4\n')
    wait_for_workers(database, 1)

    result = run("submit", "image", "a red circle on blue", "--seed", "1", "--out", str(tmp_path / "out"))

    assert result.exit_code == 0, result.output
    with Image.open(result.stdout.strip()) as picture:
        seen = judge(np.asarray(picture.convert("RGB")))
    assert seen.has_colours_of(Scene("circle", "red", "blue"))


def test_what_other_tasks_say_of_pictures_is_only_shown(run: Run, client: Client, database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    forged = {"images": [{"artifact": "../../etc/passwd"}]}
    assert finish(database, worker, doorbell, result=forged)

    shown = run("task", "show", str(doorbell.task_id))

    assert shown.exit_code == 0
    assert '"../../etc/passwd"' in shown.stdout
    with pytest.raises(InvalidRequestError, match="makes no pictures"):
        client.handle(doorbell.task_id).save_images("/nowhere")


@pytest.mark.usefixtures("artist")
def test_a_picture_whose_task_is_gone_is_named_by_its_option(run: Run) -> None:
    result = run(*CIRCLE, "--image", f"{uuid.uuid4()}/1-0-00000000.png")

    assert result.exit_code == 3
    assert result.stderr.startswith("error: --image: task ")
