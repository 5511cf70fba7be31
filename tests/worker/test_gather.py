"""Many threads' questions become few calls, and each thread gets its own answer."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitinglip.worker.gather import Gatherer
from tests.conftest import eventually


class Gate:
    """Answers with the double, once it is open; remembers each call."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.calls: list[list[int]] = []

    def __call__(self, questions: list[int]) -> list[int]:
        self.calls.append(questions)
        assert self.open.wait(10)
        return [question * 2 for question in questions]


def ask_behind(gate: Gate, gatherer: Gatherer[int, int], questions: list[int]) -> list[Callable[[], int]]:
    """Have each question asked by a thread while the first call is under way."""
    threads = ThreadPoolExecutor(len(questions) + 1)
    first = threads.submit(gatherer.ask, 0)
    eventually(lambda: gate.calls)
    answers = []
    for count, question in enumerate(questions, start=1):
        answers.append(threads.submit(gatherer.ask, question))
        eventually(lambda count=count: len(gatherer._waiting) == count)
    gate.open.set()
    threads.shutdown()
    return [first.result, *(answer.result for answer in answers)]


def test_a_lone_question_is_answered_at_once() -> None:
    assert Gatherer(lambda questions: [question + 1 for question in questions]).ask(1) == 2


def test_what_was_asked_meanwhile_becomes_one_call_in_order() -> None:
    gate = Gate()

    answers = ask_behind(gate, Gatherer(gate), [5, 3, 9, 1])

    assert [answer() for answer in answers] == [0, 10, 6, 18, 2]
    assert gate.calls == [[0], [5, 3, 9, 1]]


def test_a_call_holds_no_more_than_it_may() -> None:
    gate = Gate()

    answers = ask_behind(gate, Gatherer(gate, max_questions=2), [1, 2, 3, 4, 5])

    assert [answer() for answer in answers] == [0, 2, 4, 6, 8, 10]
    assert gate.calls == [[0], [1, 2], [3, 4], [5]]


def test_an_error_reaches_everybody_of_its_call_and_nobody_else() -> None:
    gate = Gate()

    def answer(questions: list[int]) -> list[int]:
        if 13 in questions:
            gate(questions)
            raise LookupError("13")
        return gate(questions)

    gatherer = Gatherer(answer)
    first, *others = ask_behind(gate, gatherer, [13, 4])

    assert first() == 0
    for other in others:
        with pytest.raises(LookupError, match="13"):
            other()
    assert gatherer.ask(7) == 14


def test_too_few_answers_are_an_error_and_no_thread_waits_for_ever() -> None:
    with pytest.raises(ValueError, match="zip"):
        Gatherer(lambda _: []).ask(1)


def test_a_thousand_questions_of_many_threads_get_their_own_answers() -> None:
    gatherer = Gatherer(lambda questions: [question * 2 for question in questions])

    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(gatherer.ask, range(2_000))) == [question * 2 for question in range(2_000)]
