"""What a request may ask for, and what it gets."""

import hashlib
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from image_driver import ImageDriver
from PIL import Image

from bitinglip.domain.image_payload import ImagePayload
from bitinglip.domain.task import make_request
from bitinglip.engine.base import EngineRequest, Finished, Usage
from bitinglip.engine.image.files import EXIF_IFD, MAX_COMMENT_BYTES, TEXT_KEY, USER_COMMENT
from bitinglip.errors import InvalidRequestError
from bitinglip.lifecycle.outcome import decide_ending
from bitinglip.store.tasks import ClaimedTask
from tests.conftest import forget_settings

Drive = Callable[..., ImageDriver]

NAME = f"uploads/{'0' * 32}.png"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 7, "height": 9}, "width: 7: a side is a multiple of 8 from 16 to 4,096 pixels; 16 is nearest"),
        ({"height": 9}, "height: 9: .*; 16 is nearest"),
        ({"width": 20_000}, "4,096 is nearest"),
        ({"width": 100}, "multiple of 8.*; 96 is nearest"),
        ({"width": "wide"}, "width"),
        ({"steps": 0}, "steps"),
        ({"steps": 501}, "steps"),
        ({"guidance": 51}, "guidance"),
        ({"count": 65}, "count"),
        ({"seed": 2**63}, "seed"),
        ({"scheduler": "magic"}, "scheduler.*ddim"),
        ({"format": "gif"}, "format.*png"),
        ({"quality": 0}, "quality"),
        ({"prompt": "   "}, "prompt.*what the picture should show"),
        ({"prompt": "x" * 10_001}, "prompt.*at most 10,000"),
        ({"prompt": "a\x00b"}, "NUL"),
        ({"strength": 0.5}, "strength.*name an image"),
        ({"strength": 0, "image": NAME}, "strength"),
        ({"strength": 0.1, "image": NAME, "steps": 5}, "strength.*at least 0.2"),
        ({"size": 4}, "size.*no such field"),
    ],
)
def test_what_no_model_could_draw_is_refused_when_it_is_submitted(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        make_request("image", {"prompt": "a tree", **fields}, model="tiny", agent_id="a")


def test_a_task_of_pictures_needs_no_more_than_a_prompt() -> None:
    request = make_request("image", {"prompt": "  a tree\nin winter "}, model="tiny", agent_id="a")
    assert request.title == "a tree in winter"
    assert ImagePayload(prompt="x" * 300, count=12).make_title() == "x" * 194 + " (x12)"


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("flux", {"scheduler": "ddim"}, "scheduler: 'ddim': the model goes with euler"),
        ("flux", {"negative_prompt": "rain"}, "takes no negative prompt"),
        ("pixart", {"image": NAME}, "starts from noise only"),
        ("stable_diffusion_3", {"width": 64}, "width: 64: the model draws sides of at most 48 pixels"),
        ("stable_diffusion", {"image": NAME}, "no file of it"),
        ("stable_diffusion", {"steps": 0}, "steps"),
        ("stable_diffusion", {"width": 264}, "width: 264: the model draws sides of at most 256 pixels"),
    ],
)
def test_what_this_model_cannot_draw_fails_alone_before_any_step(
    drive: Drive, family: str, options: dict[str, Any], words: str
) -> None:
    driver = drive(family)
    driver.add("bad", **options)
    driver.add("good", steps=1)
    driver.step()
    failure = driver.failure("bad")
    assert failure.code == "invalid_request"
    assert not failure.retryable
    assert words in failure.message
    driver.run()
    assert driver.result("good")["images"]


def test_a_side_must_be_a_multiple_of_what_the_model_draws(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive("stable_diffusion")
    monkeypatch.setattr(type(driver.pipeline), "side_step", 32)
    driver.add("bad", width=40)
    driver.step()
    assert "multiples of 32; 32 is near" in driver.failure("bad").message


def test_the_default_size_is_the_models(drive: Drive) -> None:
    driver = drive("stable_diffusion_3")
    driver.add("a", width=None, height=16)
    driver.run()
    image = driver.result("a")["images"][0]
    assert (image["width"], image["height"]) == (32, 16)


def test_what_the_encoder_does_not_read_is_told(drive: Drive) -> None:
    driver = drive()
    driver.add("long", prompt="x" * 40, steps=1)
    driver.add("fits", prompt="x" * 32, steps=1)
    driver.run()
    assert driver.result("long")["notes"] == [
        "prompt: of its 40 tokens the model reads 32; the rest had no part in the picture"
    ]
    assert "notes" not in driver.result("fits")


@pytest.mark.parametrize(("name", "suffix"), [("png", "png"), ("webp", "webp"), ("jpeg", "jpg")])
def test_a_picture_is_written_as_it_was_asked_for(drive: Drive, name: str, suffix: str) -> None:
    driver = drive()
    driver.add("a", format=name, count=2, seed=5, width=48)
    driver.run()
    result = driver.result("a")
    assert result["steps"] == 4
    assert result["model"] == "tiny"
    for index, entry in enumerate(result["images"]):
        file = driver.spool / "a" / entry["file"]
        content = file.read_bytes()
        assert entry == {
            "index": index,
            "file": f"{index}.{suffix}",
            "media_type": f"image/{name}",
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "seed": 5 + index,
            "width": 48,
            "height": 32,
        }
        with Image.open(file) as picture:
            assert picture.size == (48, 32)
            assert picture.format == name.upper()
    usage = driver.end("a").usage
    assert (usage.steps, usage.pixels) == (8, 2 * 48 * 32)
    assert usage.engine_seconds > 0


def test_the_quality_counts(drive: Drive) -> None:
    driver = drive()
    for quality in (10, 95):
        driver.add(str(quality), format="jpeg", quality=quality)
    driver.run()
    small, large = (driver.result(str(quality))["images"][0]["size"] for quality in (10, 95))
    assert small < large


def read_parameters(driver: ImageDriver, name: str) -> dict[str, Any]:
    entry = driver.result(name)["images"][0]
    with Image.open(driver.spool / name / entry["file"]) as picture:
        if entry["media_type"] == "image/png":
            text = picture.info[TEXT_KEY]
        else:
            comment = picture.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
            text = comment.removeprefix(b"ASCII\0\0\0")
        found: dict[str, Any] = json.loads(text)
        return found


@pytest.mark.parametrize("name", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("asked", [False, True])
def test_a_file_says_how_it_was_made_and_its_prompt_only_if_that_is_wanted(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, name: str, asked: bool
) -> None:
    monkeypatch.setenv("BITINGLIP_PROMPT_IN_METADATA", str(asked))
    forget_settings()
    driver = drive()
    driver.add("a", format=name, prompt="ein Bär", negative_prompt="rain", guidance=3, scheduler="euler", seed=9)
    driver.run()
    monkeypatch.undo()
    forget_settings()
    known = {"model": "tiny", "seed": 9, "steps": 4, "width": 32, "height": 32, "guidance": 3.0, "scheduler": "euler"}
    prompts = {"prompt": "ein Bär", "negative_prompt": "rain"} if asked else {}
    assert read_parameters(driver, "a") == {**known, **prompts}


def test_a_prompt_that_exif_has_no_room_for_is_left_out(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITINGLIP_PROMPT_IN_METADATA", "true")
    forget_settings()
    driver = drive()
    long = "\N{GRINNING FACE}" * 10_000
    assert len(json.dumps(long)) > MAX_COMMENT_BYTES
    for name in ("jpeg", "png"):
        driver.add(name, format=name, prompt=long, steps=1)
    driver.run()
    monkeypatch.undo()
    forget_settings()
    assert "prompt" not in read_parameters(driver, "jpeg")
    assert read_parameters(driver, "png")["prompt"] == long


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_picture_that_the_models_own_checker_has_blackened_is_flagged(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive()

    def flag_second(_: Any, image: Any, *__: Any) -> Any:
        return image, [False, True]

    monkeypatch.setattr(type(driver.pipeline.base), "run_safety_checker", flag_second)
    driver.add("a", count=2)
    driver.run()
    assert [image.get("flagged") for image in driver.result("a")["images"]] == [None, True]


@pytest.mark.parametrize(
    ("usage", "recorded"),
    [(Usage(1.5, steps=8, pixels=2048), {"steps": 8, "pixels": 2048}), (Usage(1.5, prompt_tokens=3), {})],
)
def test_what_pictures_cost_is_recorded_with_pictures_only(usage: Usage, recorded: dict[str, int]) -> None:
    task = ClaimedTask(uuid.uuid4(), 1, "image", "tiny", "a", 0, 1, suspect=False, payload={})
    ended = Finished("a", {}, usage)
    ending = decide_ending(task, ended, stop=None, attempt_seconds=300, base_retry_seconds=2)
    assert ending.usage is not None
    assert {name: value for name, value in ending.usage.items() if name in {"steps", "pixels"}} == recorded


def test_without_a_folder_for_pictures_nothing_is_drawn(drive: Drive) -> None:
    driver = drive()
    driver.engine.add(EngineRequest("a", {"prompt": "a tree"}))
    driver.step()
    assert driver.failure("a").code == "internal_error"
    assert driver.pipeline.batches == []


def test_a_folder_that_cannot_be_written_fails_that_request_alone(drive: Drive) -> None:
    driver = drive()
    driver.spool.mkdir(parents=True)
    (driver.spool / "a").write_text("no folder")
    driver.add("a", seed=1)
    driver.add("b", seed=2)
    driver.run()
    assert driver.failure("a").code == "engine_error"
    assert driver.failure("a").retryable
    assert driver.result("b")["images"]


def test_progress_goes_to_the_end_and_shows_previews_as_often_as_asked(drive: Drive) -> None:
    driver = drive()
    driver.add("a", steps=5, preview_steps=2)
    driver.add("b", steps=5, count=2)
    driver.run()
    assert [event.fraction for event in driver.progress("a")] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [event.detail["step"] for event in driver.progress("a")] == [1, 2, 3, 4, 5]
    assert {event.detail["steps"] for event in driver.progress("a")} == {5}
    assert [event.detail["step"] for event in driver.progress("a") if "preview" in event.detail] == [2, 4]
    assert not any("preview" in event.detail for event in driver.progress("b"))
