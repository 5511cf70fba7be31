"""One memory budget: models that fit stay together, the longest unused leave, and none that is in use."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitinglip.domain.catalogue import find_kinds
from bitinglip.engine import host as host_module
from bitinglip.engine import wire
from bitinglip.engine.activity import ActivityBoard, open_board_file
from bitinglip.engine.base import Begun, Failed, Finished, PutOff
from bitinglip.engine.host import EngineHost
from tests.engine_process.sized import SIZED, SizedEngine, make_folder

BUDGET = 100_000


class Hosted:
    """A host in this process, turned by hand, and what it has said."""

    def __init__(self, board: ActivityBoard, folder: Path, memory_bytes: int | None) -> None:
        self.said: list[Any] = []
        self.folder = folder
        self.host = EngineHost(self.said.extend, board, devices=("cpu",), slots=4, memory_bytes=memory_bytes)

    def make_model(self, name: str, size: int, **behaviour: object) -> None:
        make_folder(self.folder / name, size, **behaviour)

    def put(self, request_id: str, model: str, **payload: Any) -> None:
        self.host.inbox.put(wire.Run(request_id, "sized", model, str(self.folder / model), payload))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.host.inbox.put(wire.Cancel("nobody"))  # A turn does not wait where something has come in.
            self.host.take_turn()

    def run(self, request_id: str, model: str, **payload: Any) -> Finished | Failed:
        self.put(request_id, model, **payload)
        return self.finish(request_id)

    def finish(self, request_id: str) -> Finished | Failed:
        for _ in range(1000):
            self.turn()
            if (end := self.end(request_id)) is not None:
                return end
        raise AssertionError(f"{request_id} does not end: {self.said}")

    def end(self, request_id: str) -> Finished | Failed | None:
        ends = [event for event in self.said if isinstance(event, Finished | Failed) and event.request_id == request_id]
        assert len(ends) <= 1
        return ends[0] if ends else None

    def is_put_off(self, request_id: str) -> bool:
        events = [event for event in self.said if isinstance(event, PutOff | Begun) and event.request_id == request_id]
        return bool(events) and isinstance(events[-1], PutOff)

    @property
    def held(self) -> dict[str, int]:
        holdings = [message for message in self.said if isinstance(message, wire.Holding)]
        return holdings[-1].model_bytes if holdings else {}

    @property
    def loads(self) -> list[str | None]:
        return [message.model for message in self.said if isinstance(message, wire.Loading)]


Make = Callable[..., Hosted]


@pytest.fixture
def make_hosted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setitem(find_kinds(), "sized", SIZED)
    with open_board_file() as file:
        board = ActivityBoard(os.dup(file.fileno()))
        yield lambda memory_bytes=BUDGET: Hosted(board, tmp_path, memory_bytes)


@pytest.fixture
def hosted(make_hosted: Make) -> Hosted:
    made = make_hosted()
    for name in "abcd":
        made.make_model(name, 40_000)
    return made


def test_models_that_fit_together_stay_together(hosted: Hosted) -> None:
    for turn in range(3):
        for model in "ab":
            assert isinstance(hosted.run(f"{model}{turn}:1", model), Finished)

    assert hosted.loads == ["a", "b"]
    assert hosted.held == {"a": 40_000, "b": 40_000}


def test_the_model_that_was_not_used_for_longest_leaves(hosted: Hosted) -> None:
    for number, model in enumerate(["a", "b", "a", "c"]):
        hosted.run(f"{number}:1", model)

    assert sorted(hosted.held) == ["a", "c"]


def test_a_model_in_use_never_leaves_though_it_was_loaded_first(hosted: Hosted) -> None:
    hosted.put("long:1", "a", seconds=60)
    hosted.turn(2)
    hosted.run("b:1", "b")

    assert isinstance(hosted.run("c:1", "c"), Finished)

    assert sorted(hosted.held) == ["a", "c"]


def test_no_more_models_leave_than_have_to(make_hosted: Make) -> None:
    hosted = make_hosted()
    for name, size in {"a": 30_000, "b": 30_000, "c": 30_000, "d": 35_000}.items():
        hosted.make_model(name, size)
        hosted.run(f"{name}:1", name)

    assert sorted(hosted.held) == ["b", "c", "d"]


def test_requests_of_a_model_without_room_wait_until_those_in_use_have_ended(hosted: Hosted) -> None:
    for model in "ab":
        hosted.put(f"{model}:1", model, seconds=60)
    hosted.put("c:1", "c")
    hosted.put("c:2", "c")
    hosted.turn(5)
    assert hosted.is_put_off("c:1")
    assert hosted.is_put_off("c:2")
    assert sorted(hosted.held) == ["a", "b"], "nothing leaves in vain"

    hosted.host.inbox.put(wire.Cancel("b:1"))

    assert isinstance(hosted.finish("c:1"), Finished)
    assert isinstance(hosted.finish("c:2"), Finished)
    assert not hosted.is_put_off("c:1")
    assert sorted(hosted.held) == ["a", "c"]
    assert hosted.end("a:1") is None
    assert hosted.loads == ["a", "b", "c"]


def test_what_is_loaded_goes_on_while_another_model_waits(hosted: Hosted) -> None:
    for model in "ab":
        hosted.put(f"{model}:1", model, seconds=60)
    hosted.put("c:1", "c")
    hosted.turn(2)

    assert isinstance(hosted.run("a:2", "a"), Finished)
    assert hosted.is_put_off("c:1")


def test_a_model_does_not_wait_for_ever_behind_those_in_its_way(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "PATIENCE_SECONDS", 0.0)
    for model in "ab":
        hosted.put(f"{model}:1", model, seconds=0.2)
    hosted.put("c:1", "c", seconds=0.2)
    hosted.put("a:2", "a")
    hosted.turn(2)
    assert hosted.is_put_off("a:2")

    hosted.finish("a:2")

    assert [event.request_id for event in hosted.said if isinstance(event, Begun)] == ["c:1", "a:2"]


def test_a_request_that_waits_for_room_can_be_cancelled(hosted: Hosted) -> None:
    for model in "ab":
        hosted.put(f"{model}:1", model, seconds=60)
    hosted.put("c:1", "c")
    hosted.turn(2)

    hosted.host.inbox.put(wire.Cancel("c:1"))
    hosted.turn()

    end = hosted.end("c:1")
    assert isinstance(end, Failed)
    assert end.code == "cancelled"
    assert isinstance(hosted.run("a:2", "a"), Finished)


def test_a_model_larger_than_the_budget_fails_at_once_with_the_numbers(hosted: Hosted) -> None:
    hosted.make_model("giant", 150_000)
    hosted.run("a:1", "a")

    end = hosted.run("giant:1", "giant")

    assert isinstance(end, Failed)
    assert (end.code, end.retryable) == ("model_too_large", False)
    assert "100,000" in end.message
    assert "150," in end.message
    assert hosted.held == {"a": 40_000}, "nothing leaves in vain"


def test_a_model_that_needs_more_than_its_files_say_gets_it_from_models_that_are_not_in_use(hosted: Hosted) -> None:
    hosted.make_model("wide", 40_000, held=90_000)
    hosted.run("a:1", "a")

    assert isinstance(hosted.run("wide:1", "wide"), Finished)
    assert hosted.held == {"wide": 90_000}
    hosted.run("a:2", "a")
    hosted.run("wide:2", "wide")
    assert hosted.loads[2:] == ["wide", "a", "wide"], "known the second time"


def test_a_model_that_was_loaded_before_is_known_for_what_it_took(hosted: Hosted) -> None:
    hosted.make_model("wide", 40_000, held=55_000)
    hosted.make_model("small", 8_000)
    for number, model in enumerate(["a", "wide", "a", "b", "small"]):
        hosted.run(f"{number}:1", model)
    assert sorted(hosted.held) == ["a", "b", "small"]
    hosted.put("busy:1", "a", seconds=60)

    hosted.run("again:1", "wide")

    assert hosted.loads == ["a", "wide", "b", "small", "wide"], "no load in vain"


def test_a_model_that_turns_out_larger_than_the_budget_is_told_of(hosted: Hosted) -> None:
    hosted.make_model("wide", 40_000, held=120_000)
    hosted.run("a:1", "a")

    end = hosted.run("wide:1", "wide")

    assert isinstance(end, Failed)
    assert end.code == "model_too_large"
    assert "120,000" in end.message


def test_without_a_budget_nothing_leaves(make_hosted: Make) -> None:
    hosted = make_hosted(None)
    for name in "abcd":
        hosted.make_model(name, 90_000)
        hosted.run(f"{name}:1", name)

    assert len(hosted.held) == 4


def test_what_is_preloaded_does_not_make_what_was_preloaded_leave(hosted: Hosted) -> None:
    for model in "abc":
        hosted.host.inbox.put(wire.Preload("sized", model, str(hosted.folder / model)))
    hosted.turn()

    assert sorted(hosted.held) == ["a", "b"]


def test_a_model_that_has_grown_is_told_of(hosted: Hosted) -> None:
    hosted.run("a:1", "a")
    engine = hosted.host._engines.get(("sized", "a"))
    assert isinstance(engine, SizedEngine)

    engine.size = 60_000
    hosted.turn()

    assert hosted.held == {"a": 60_000}


def test_the_request_that_caused_a_load_is_charged_for_it_and_nobody_else(hosted: Hosted) -> None:
    hosted.make_model("slow", 10_000, seconds=0.3)
    hosted.put("first:1", "slow", seconds=0.1)
    hosted.put("second:1", "slow", seconds=0.1)

    first, second = hosted.finish("first:1"), hosted.finish("second:1")

    assert 0.3 <= first.usage.load_seconds < 1
    assert first.usage.engine_seconds == pytest.approx(0.1 + first.usage.load_seconds)
    assert (second.usage.engine_seconds, second.usage.load_seconds) == (0.1, 0.0)


def test_a_model_that_cannot_be_loaded_is_not_tried_by_each_request(hosted: Hosted) -> None:
    hosted.make_model("broken", 10_000, fail="no such kernel")

    ends = [hosted.run(f"{number}:1", "broken") for number in range(3)]

    assert hosted.loads == ["broken"]
    for end in ends:
        assert isinstance(end, Failed)
        assert (end.code, end.retryable) == ("model_load_failed", True)
        assert end.message == "model 'broken' could not be loaded: RuntimeError: no such kernel"


def test_a_model_that_could_not_be_loaded_is_tried_again_later(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "LOAD_RETRY_SECONDS", 0.0)
    hosted.make_model("broken", 10_000, fail="no such kernel")
    hosted.run("1:1", "broken")
    (hosted.folder / "broken" / "behaviour.json").write_text('{"size": 10000}')

    assert isinstance(hosted.run("2:1", "broken"), Finished)
