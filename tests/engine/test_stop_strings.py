from collections.abc import Callable
from itertools import pairwise

import pytest
from engine_driver import Driver
from tiny_models import make_tokenizer

from bitinglip.engine.base import Text
from bitinglip.engine.text.detokenise import Detokeniser
from bitinglip.engine.text.stop import StopFilter

Drive = Callable[..., Driver]


def push_all(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """What is shown after each piece, and whether the text was stopped."""
    stop_filter = StopFilter(stops)
    shown = []
    for piece in pieces:
        text, stopped = stop_filter.push(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, stop_filter.flush()], False


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stopped"),
    [
        (["END"], ["one E", "N", "D two"], ["one ", "", ""], True),
        (["END"], ["one E", "N", "X two"], ["one ", "", "ENX two"], False),
        (["END"], ["one EN"], ["one ", "EN"], False),
        (["aab"], ["aa", "ab"], ["", "a"], True),
        (["xyz", "yq"], ["xy", "q"], ["", "x"], True),
        (["b", "ab"], ["a", "b"], ["", ""], True),
        (["\n"], ["no stop", " here"], ["no stop", " here", ""], False),
        ([], ["as", " it is"], ["as", " it is", ""], False),
    ],
)
def test_a_stop_string_ends_the_text_and_no_part_of_it_is_shown(
    stops: list[str], pieces: list[str], shown: list[str], stopped: bool
) -> None:
    result, was_stopped = push_all(stops, pieces)
    assert was_stopped is stopped
    assert [text for text in result if text] == [text for text in shown if text]
    assert "".join(result[: len(pieces)]) == "".join(shown[: len(pieces)])


def find_readable(driver: Driver) -> tuple[str, str]:
    """A prompt whose text has two plain letters in a row, and these."""
    for number in range(60):
        prompt = f"try {number}"
        text = driver.ask(prompt, max_tokens=24)["text"]
        for first, second in pairwise(text):
            if first.isascii() and first.isprintable() and second.isascii() and second.isprintable():
                return prompt, first + second
    raise AssertionError("no readable text")


def test_a_stop_string_across_two_tokens_ends_the_request(drive: Drive) -> None:
    driver = drive()
    prompt, stop = find_readable(driver)
    whole = driver.ask(prompt, max_tokens=24)["text"]
    driver.add("stopped", prompt, max_tokens=24, stop=[stop])
    driver.add("other", prompt, max_tokens=24)
    driver.run()
    assert driver.result("stopped") == {"text": whole[: whole.index(stop)], "finish_reason": "stop"}
    assert driver.text("stopped") == whole[: whole.index(stop)]
    assert driver.result("other")["text"] == whole


def test_text_that_only_looked_like_a_stop_string_is_shown_in_the_end(drive: Drive) -> None:
    driver = drive()
    whole = driver.ask("hello", max_tokens=12)["text"]
    driver.add("held", "hello", max_tokens=12, stop=[whole[-2:] + "never"])
    driver.run()
    assert driver.text("held") == driver.result("held")["text"] == whole


def test_tokens_are_sent_with_the_text_they_made(drive: Drive) -> None:
    driver = drive()
    driver.add("a", "hello", max_tokens=24, logprobs=0)
    driver.run()
    sent = [token for event in driver.events["a"] if isinstance(event, Text) for token in event.token_ids]
    assert sent == [token for token in driver.made("a") if token not in driver.engine._loaded.end_ids]


def test_a_character_of_several_tokens_is_shown_once_it_is_whole() -> None:
    tokenizer = make_tokenizer()
    detokeniser = Detokeniser(tokenizer.backend_tokenizer)
    ids = tokenizer("a€b").input_ids
    assert len(ids) == 5
    assert [detokeniser.push(token) for token in ids] == ["a", "", "", "€", "b"]


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    tokenizer = make_tokenizer()
    detokeniser = Detokeniser(tokenizer.backend_tokenizer)
    pushed = [detokeniser.push(token) for token in tokenizer("a€").input_ids[:2]]
    assert pushed == ["a", ""]
    assert detokeniser.flush() == "\N{REPLACEMENT CHARACTER}"


def test_nul_is_not_sent_because_it_cannot_be_stored() -> None:
    tokenizer = make_tokenizer()
    detokeniser = Detokeniser(tokenizer.backend_tokenizer)
    pushed = [detokeniser.push(token) for token in tokenizer("a\0b").input_ids]
    assert pushed == ["a", "\N{REPLACEMENT CHARACTER}", "b"]
