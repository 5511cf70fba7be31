"""What a terminal and a program are shown of a task that took several attempts."""

import json
from collections.abc import Iterator
from typing import cast

import pytest

from bitinglip.cli.follow import follow_task
from bitinglip.client import Handle
from bitinglip.domain.task import Task
from bitinglip.streams.events import Event, EventName

ERROR = {"code": "engine_lost", "message": "the engine died", "retryable": True}


class FakeHandle:
    """A handle on a task whose events are known."""

    def __init__(self, *events: Event, text: str = "") -> None:
        self._events = events
        self._text = text

    def stream(self, after: str | None = None) -> Iterator[Event]:
        return iter(self._events)

    def find_download(self) -> None:
        """It waits for nothing."""

    def task(self) -> Task:
        return Task.model_construct(result={"text": self._text})


def follow(*events: Event, text: str = "", as_json: bool = False) -> None:
    finished = Event("9-9", EventName.FINISHED, {"status": "completed", "error": None})
    follow_task(cast("Handle", FakeHandle(*events, finished, text=text)), as_json=as_json)


def make_text(text: str) -> Event:
    return Event("1-1", EventName.TEXT, {"text": text})


STARTED = Event("2-1", EventName.STARTED, {"attempt": 2})
RESUMED = Event("2-2", EventName.RESUMED, {"attempt": 2, "chars": 4})
RESTART = Event("2-2", EventName.RESTART, {"attempt": 2})
RELEASED = Event("1-9", EventName.RELEASED, {"attempt": 1, "error": ERROR})


def test_a_text_that_goes_on_is_one_text_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    follow(make_text("one "), RELEASED, STARTED, RESUMED, make_text("two"))
    captured = capsys.readouterr()

    assert captured.out == "one two\n"
    assert captured.err == "attempt 1 was lost: the engine died; another one follows\n"


def test_a_text_that_begins_again_does_so_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    follow(make_text("one "), STARTED, RESTART, make_text("1 2"))
    captured = capsys.readouterr()

    assert captured.out == "one \n1 2\n"
    assert "begins again" in captured.err


def test_nothing_begins_again_where_nothing_was_shown(capsys: pytest.CaptureFixture[str]) -> None:
    follow(STARTED, RESTART, make_text("one"))
    captured = capsys.readouterr()

    assert captured == ("one\n", "")


def test_a_text_that_begins_again_and_is_not_streamed_is_read_from_the_record(
    capsys: pytest.CaptureFixture[str],
) -> None:
    follow(make_text("one "), RESTART, text="1 2")

    assert capsys.readouterr().out == "one \n1 2\n"


def test_programs_are_given_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    follow(make_text("one "), STARTED, RESTART, as_json=True)
    captured = capsys.readouterr()

    assert [json.loads(line)["event"] for line in captured.out.splitlines()] == [
        "text",
        "started",
        "restart",
        "finished",
    ]
    assert captured.err == ""
