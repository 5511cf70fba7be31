"""A call and its engine take turns; neither runs while the other does."""

from collections.abc import Callable

import pytest
import torch
from image_driver import count_drawing_threads

from bitinglip.engine.image.handover import CallStoppedError, SteppedCall

Pause = Callable[[], None]


def test_a_call_stands_still_between_steps_and_gives_its_end() -> None:
    said: list[str] = []

    def call(pause: Pause) -> str:
        for word in ("one", "two"):
            said.append(word)
            pause()
        return "three"

    stepped = SteppedCall(call)
    assert said == []
    assert stepped.advance() is None
    assert said == ["one"]
    assert stepped.advance() is None
    assert said == ["one", "two"]
    assert stepped.advance() == ("three",)
    assert count_drawing_threads() == 0


def test_what_a_call_raises_is_raised_where_it_is_advanced_without_its_frames() -> None:
    def call(pause: Pause) -> None:
        pause()
        raise RuntimeError("no more")

    stepped = SteppedCall(call)
    stepped.advance()
    with pytest.raises(RuntimeError, match="no more") as caught:
        stepped.advance()
    assert "call" not in {entry.name for entry in caught.traceback}
    assert count_drawing_threads() == 0


@pytest.mark.parametrize("begun", [False, True])
def test_a_call_is_stopped_where_it_stands_even_if_it_would_not_hear(begun: bool) -> None:
    caught: list[str] = []

    def call(pause: Pause) -> None:
        for _ in range(3):
            try:
                pause()
            except Exception:
                caught.append("exception")
            except CallStoppedError:
                caught.append("stopped")

    stepped = SteppedCall(call)
    if begun:
        stepped.advance()
    stepped.stop()
    stepped.stop()
    assert caught == (["stopped"] * 3 if begun else [])
    assert count_drawing_threads() == 0


def test_a_call_computes_in_inference_mode_of_its_own() -> None:
    stepped = SteppedCall(lambda pause: torch.is_inference_mode_enabled())
    assert stepped.advance() == (True,)
    assert not torch.is_inference_mode_enabled()
