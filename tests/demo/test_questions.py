"""The questions are repeatable, kept apart, and judged strictly."""

from itertools import islice
from random import Random

import pytest

from bitinglip.demo.countries import CAPITALS, UNKNOWN_CAPITALS
from bitinglip.demo.questions import ASKED_KINDS, Kind, Question, held_out_questions, is_right, training_questions


def make_question(answer: str) -> Question:
    return Question("?", answer, Kind.OTHER, answer)


def test_training_questions_are_the_same_for_a_seed() -> None:
    first, again, other = (list(islice(training_questions(Random(seed)), 500)) for seed in (1, 1, 2))
    assert first == again != other


def test_held_out_questions_are_the_same_for_a_seed() -> None:
    assert held_out_questions(60, 1) == held_out_questions(60, 1) != held_out_questions(60, 2)


def test_held_out_questions_are_distinct_and_a_quarter_of_each_kind() -> None:
    questions = held_out_questions(200, 3)
    assert len({question.text for question in questions}) == 200
    assert [sum(question.kind is kind for question in questions) for kind in ASKED_KINDS] == [50] * 4


def test_no_held_out_question_is_trained_on() -> None:
    held_out = held_out_questions(1000, 0)
    texts = {question.text.casefold() for question in held_out}
    # A sum, difference or word is held out in every phrasing: its reply is never learnt.
    replies = {question.reply.casefold() for question in held_out if question.kind is not Kind.CAPITAL}
    for question in islice(training_questions(Random(0)), 50_000):
        assert question.text.casefold() not in texts
        assert question.reply.casefold() not in replies


def test_the_reply_taught_is_right() -> None:
    for question in islice(training_questions(Random(0)), 2_000):
        assert is_right(question, question.reply)
        assert is_right(question, question.answer)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("42", "42"),
        ("42", " 17 plus 25 is 42.\n"),
        ("42", "17+25=42"),
        ("42", "17 plus 25 equals **42**."),
        ("Lima", "The capital of Peru is LIMA"),
        ("Brasilia", "The capital of Brazil is Brasília."),
        ("N'Djamena", "The capital of Chad is N'Djamena."),
        ("pmal", 'The word "lamp" reversed is "pmal".'),
    ],
)
def test_the_answer_alone_or_ending_a_sentence_is_right(answer: str, reply: str) -> None:
    assert is_right(make_question(answer), reply)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("42", ""),
        ("42", "43"),
        ("42", "-42"),
        ("42", "142"),
        ("42", "1.42"),
        ("42", "17 plus 25 is 4"),
        ("42", "17 plus 25 is 42 or 43"),
        ("42", "17 plus 25 is not 42."),
        ("Lima", "The capital of Peru is Lim"),
        ("Lima", "The capital of Peru is Santiago."),
        ("Lima", "The capital of Peru is New Lima."),
        ("pmal", "lamp"),
    ],
)
def test_anything_else_is_wrong(answer: str, reply: str) -> None:
    assert not is_right(make_question(answer), reply)


def test_no_country_is_both_known_and_unknown() -> None:
    assert not set(CAPITALS) & set(UNKNOWN_CAPITALS)
    assert CAPITALS["Peru"] == "Lima"
