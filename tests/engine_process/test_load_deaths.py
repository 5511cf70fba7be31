"""An engine process that dies while it loads a model: the model is to blame, and no request."""

import os
import queue
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitinglip.engine import wire
from bitinglip.engine.activity import Activity
from bitinglip.engine.base import EngineEvent, EngineLost, Finished
from bitinglip.engine.link import EngineLimits, EngineLink
from tests.conftest import REPOSITORY, eventually
from tests.engine_process.echoes import Requests
from tests.engine_process.sized import install, make_folder

Open = Callable[..., EngineLink]


@pytest.fixture
def open_link(tmp_path: Path) -> Iterator[Open]:
    opened: list[EngineLink] = []
    path = f"{install(tmp_path / 'package')}{os.pathsep}{REPOSITORY}"

    def open_one(**options: object) -> EngineLink:
        opened.append(EngineLink(devices=("cpu",), slots=4, environment={"PYTHONPATH": path}, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for link in opened:
        link.close()


def start(link: EngineLink, request_id: str, model: str, **payload: object) -> "queue.SimpleQueue[EngineEvent]":
    events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
    link.start(wire.Run(request_id, "sized", model, model, payload), events.put)
    return events


def lose(link: EngineLink, request_id: str, model: str) -> EngineLost:
    ending = start(link, request_id, model).get(timeout=30)
    assert isinstance(ending, EngineLost), ending
    return ending


def test_nobody_is_to_blame_for_a_load_that_crashes(open_link: Open, tmp_path: Path) -> None:
    link = open_link()
    requests = Requests(link)
    requests.warm_up()
    requests.start("neighbour:1", seconds=60)
    model = make_folder(tmp_path / "crasher", 1000, crash=True)

    loss = lose(link, "load:1", model)
    requests.wait()

    assert (loss.loading, loss.blameless) == (model, True)
    assert "exit status 9" in loss.message
    neighbour = requests.loss("neighbour:1")
    assert (neighbour.loading, neighbour.blameless) == (model, True)


def test_nobody_is_to_blame_for_a_load_that_never_ends(open_link: Open, tmp_path: Path) -> None:
    link = open_link(limits=EngineLimits(load_seconds=3))
    Requests(link).warm_up()
    model = make_folder(tmp_path / "sleeper", 1000, seconds=3600)

    loss = lose(link, "load:1", model)

    assert (loss.loading, loss.blameless) == (model, True)
    assert "did not finish loading a model" in loss.message


def test_a_load_that_was_killed_on_purpose_is_no_failed_load(open_link: Open, tmp_path: Path) -> None:
    link = open_link()
    Requests(link).warm_up()
    model = make_folder(tmp_path / "sleeper", 1000, seconds=3600)
    events = start(link, "load:1", model)
    eventually(lambda: link._process.board.read()[0] is Activity.LOAD)

    link.kill("its worker was stopped")

    loss = events.get(timeout=30)
    assert isinstance(loss, EngineLost)
    assert (loss.loading, loss.blameless) == (None, True)


def test_a_crash_after_a_load_is_no_failed_load(open_link: Open, tmp_path: Path) -> None:
    link = open_link()
    model = make_folder(tmp_path / "model", 1000)
    assert isinstance(start(link, "load:1", model).get(timeout=30), Finished)

    loss = start(link, "crash:1", model, fail="crash").get(timeout=30)

    assert isinstance(loss, EngineLost)
    assert (loss.loading, loss.blameless) == (None, False)


def test_a_preload_that_ends_the_engine_twice_is_left_out(open_link: Open, tmp_path: Path) -> None:
    model = make_folder(tmp_path / "crasher", 1000, crash=True)
    link = open_link(preload=(wire.Preload("sized", model, model),))

    eventually(lambda: link.is_up, within=30)

    requests = Requests(link)
    requests.warm_up()


def test_a_preload_is_tried_again_after_its_engine_was_killed(open_link: Open, tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model", 1000, seconds=0.5)
    link = open_link(preload=(wire.Preload("sized", model, model),))
    eventually(lambda: link._process.board.read()[0] is Activity.PRELOAD)

    os.kill(link.pid, signal.SIGKILL)

    eventually(lambda: link.holding.models == [model], within=30)
