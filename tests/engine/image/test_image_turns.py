"""Who is next: batches of different settings take turns, and text goes on beside them."""

import queue
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from image_driver import Clock, ImageDriver, count_drawing_threads
from PIL import Image
from tiny_models import make_tokenizer

from bitinglip.engine import wire
from bitinglip.engine.activity import ActivityBoard, open_board_file
from bitinglip.engine.base import Failed, Finished, Progress, Text
from bitinglip.engine.host import EngineHost

Drive = Callable[..., ImageDriver]


def test_a_short_request_does_not_wait_for_a_long_one(drive: Drive) -> None:
    driver = drive()
    driver.add("long", steps=60)
    driver.step_until("long", 10)
    driver.add("short", steps=2)
    while "short" not in driver.events or not isinstance(driver.events["short"][-1], Finished):
        driver.step()
    assert driver.progress("long")[-1].detail["step"] < 40
    driver.run()
    assert driver.result("long")["steps"] == 60


def test_turns_are_counted_in_time_and_not_in_steps(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    clock = Clock(monkeypatch)
    driver.add("slow", steps=30, width=48)
    driver.add("fast", steps=500)
    while len(driver.progress("slow")) < 6:
        chosen = driver.engine._choose()
        clock.step_seconds = 1.0 if chosen and chosen.settings.width == 48 else 0.1
        driver.step()
    assert 40 <= len(driver.progress("fast")) <= 70


def test_one_that_comes_later_does_not_catch_up_first(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    Clock(monkeypatch).step_seconds = 1.0
    driver.add("early", steps=500)
    driver.step(40)
    driver.add("late", steps=400)
    driver.step(20)
    assert len(driver.progress("late")) >= 8
    assert len(driver.progress("early")) >= 38 + 8


def test_a_batch_that_more_requests_wait_for_has_more_turns(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    Clock(monkeypatch).step_seconds = 1.0
    driver.add("one", steps=500)
    for name in ("a", "b", "c", "d"):
        driver.add(name, steps=400)
    driver.step(52)
    assert 8 <= len(driver.progress("one")) <= 12
    assert 38 <= len(driver.progress("a")) <= 42


def test_requests_of_equal_settings_that_come_later_share_the_next_batch(drive: Drive) -> None:
    driver = drive()
    driver.add("first", seed=1)
    driver.step(2)
    for seed in (2, 3, 4):
        driver.add(f"later{seed}", seed=seed)
    driver.run()
    assert driver.pipeline.batches == [[1], [2, 3, 4]]


def test_a_request_of_many_pictures_is_split_and_holds_nobody_up(drive: Drive) -> None:
    driver = drive(max_rows=4)
    driver.add("many", count=9, seed=0)
    driver.add("one", seed=100)
    driver.add("two", seed=200, count=2)
    driver.run()
    assert driver.pipeline.batches == [[0, 100, 200, 1], [2, 201, 3, 4], [5, 6, 7, 8]]
    assert [image["index"] for image in driver.result("many")["images"]] == list(range(9))
    fractions = [event.fraction for event in driver.progress("many")]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


@pytest.fixture
def host() -> Iterator[tuple[EngineHost, "queue.SimpleQueue[Any]"]]:
    """An engine process's loop in this thread, and what it sends."""
    sent: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(messages: list[Any]) -> None:
        for message in messages:
            sent.put(message)

    with open_board_file() as file:
        board = ActivityBoard(file.fileno())
        opened = EngineHost(send, board, devices=("cpu",), slots=4, memory_bytes=None)
        yield opened, sent
    for engine in opened._engines._engines.values():
        engine.close()


def test_text_and_pictures_advance_by_turns_in_one_process(
    host: tuple[EngineHost, "queue.SimpleQueue[Any]"], saved: Callable[[str], Path], llama: Any, tmp_path: Path
) -> None:
    opened, sent = host
    folder = tmp_path / "llama"
    llama.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    picture = {"prompt": "a tree", "steps": 12, "width": 32, "height": 32}
    text = {"prompt": "hello", "max_tokens": 12, "temperature": 0}
    image_folder = str(saved("stable_diffusion"))
    spool = str(tmp_path / "spool")
    opened.inbox.put(wire.Run("picture:1", "image", "tiny", image_folder, picture, spool=spool))
    opened.inbox.put(wire.Run("text:1", "text", "llama", str(folder), text))
    ended: dict[str, Finished] = {}
    order: list[str] = []
    while len(ended) < 2:
        opened.take_turn()
        while not sent.empty():
            message = sent.get()
            if isinstance(message, Progress | Text):
                order.append(message.request_id)
            elif isinstance(message, Finished):
                ended[message.request_id] = message
            else:
                assert isinstance(message, wire.Holding | wire.Loading), message
    turns = sum(one != other for one, other in pairwise(order))
    assert turns >= 6, order
    assert ended["picture:1"].result["images"][0]["file"] == "0.png"
    assert (tmp_path / "spool" / "0.png").exists()
    assert count_drawing_threads() == 0
    assert not torch.is_inference_mode_enabled()


def test_a_picture_to_start_from_reaches_the_engine(
    host: tuple[EngineHost, "queue.SimpleQueue[Any]"], saved: Callable[[str], Path], tmp_path: Path
) -> None:
    opened, sent = host
    file = tmp_path / "start.png"
    Image.new("RGB", (16, 16), "red").save(file)
    payload = {"prompt": "a tree", "steps": 2, "image": f"uploads/{'0' * 32}.png"}
    folder, spool = str(saved("stable_diffusion")), str(tmp_path / "spool")
    opened.inbox.put(wire.Run("a", "image", "tiny", folder, payload, inputs={"image": str(file)}, spool=spool))
    message = None
    while not isinstance(message, Finished | Failed):
        opened.take_turn()
        while not sent.empty():
            message = sent.get()
    assert isinstance(message, Finished), message
    assert message.result["images"][0]["width"] == 16
