"""The questions of the demo: what the model learns from, what it is tested with, and whether a reply is right.

The invariant: no training question is a held-out one. Sums, differences and words are held out by a checksum of the
case itself (`_is_held_out`), whatever the phrasing; capitals by phrasing, because no model can know a country it never
saw.
"""

import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from random import Random
from string import ascii_lowercase

from bitinglip.demo.countries import CAPITALS, UNKNOWN_CAPITALS
from bitinglip.demo.phrasings import (
    CAPITAL_PHRASINGS,
    DIFFERENCE_PHRASINGS,
    GREETINGS,
    HELD_OUT_CAPITAL_PHRASINGS,
    OTHER_PHRASINGS,
    QUOTES,
    REVERSE_PHRASINGS,
    SMALL_WORDS,
    SUM_PHRASINGS,
    UNKNOWN_REPLY,
)
from bitinglip.demo.words import WORDS

LARGEST_DIGIT = 9
LARGEST_OPERAND = 99
HELD_OUT_SHARE = 6  # one case in so many


class Kind(StrEnum):
    """What a question asks for."""

    CAPITAL = "capital"
    SUM = "sum"
    DIFFERENCE = "difference"
    REVERSE = "reverse"
    OTHER = "other"


ASKED_KINDS = (Kind.CAPITAL, Kind.SUM, Kind.DIFFERENCE, Kind.REVERSE)


@dataclass(frozen=True)
class Question:
    """One question with its only right answer.

    Attributes:
        text: What a user asks, such as `What is 17 plus 25?`.
        answer: The bare answer, such as `42`.
        kind: What it asks for.
        reply: What the demo model is taught to reply, such as `7 plus 5 is 12, so 17 plus 25 is 42.`.
    """

    text: str
    answer: str
    kind: Kind
    reply: str


def held_out_questions(count: int, seed: int) -> list[Question]:
    """Return `count` different questions that the model never saw, a quarter of each kind, in an order set by `seed`.

    Args:
        count: How many; 1,120 at most, because there are 280 of the rarest kind.
        seed: The same seed gives the same questions.
    """
    rng = Random(seed)  # noqa: S311 - a repeatable sample, no secret
    shares = [count // len(ASKED_KINDS) + (index < count % len(ASKED_KINDS)) for index in range(len(ASKED_KINDS))]
    chosen = [
        question
        for kind, share in zip(ASKED_KINDS, shares, strict=True)
        for question in rng.sample(_held_out_of(kind), share)
    ]
    rng.shuffle(chosen)
    return chosen


def training_questions(rng: Random) -> Iterator[Question]:
    """Yield training questions without end; the same state of `rng` gives the same ones."""
    makers: tuple[Callable[[Random], Question], ...] = (
        _capital_question,
        _sum_question,
        _difference_question,
        _reverse_question,
        _other_question,
    )
    while True:
        yield rng.choices(makers, weights=(22, 20, 22, 27, 9))[0](rng)


def is_right(question: Question, reply: str) -> bool:
    """Tell whether `reply` is the answer, alone or at the end of a sentence.

    Case, accents and punctuation don't count. `42`, `17 plus 25 is 42.` and `17 + 25 = 42` are right; `-42`, `42 or 43`
    and `not 42` are wrong.
    """
    given, expected = _words(reply), _words(question.answer)
    before, end = given[: -len(expected)], given[-len(expected) :]
    return end == expected and (not before or before[-1] in {"is", "equals", "="})


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    return re.findall(r"-?\d+|[^\W\d_]+|=", plain)


def _is_held_out(case: str) -> bool:
    return zlib.crc32(case.encode()) % HELD_OUT_SHARE == 0


def _is_held_out_sum(a: int, b: int) -> bool:
    # Sums of two digits are the table that all others are worked out with. Both orders of the others are held out
    # together: whoever saw 25 + 17 knows 17 + 25.
    return max(a, b) > LARGEST_DIGIT and _is_held_out(f"{min(a, b)}+{max(a, b)}")


def _is_held_out_difference(a: int, b: int) -> bool:
    smaller, larger = sorted((a, b))
    is_in_table = smaller <= LARGEST_DIGIT and larger <= LARGEST_DIGIT + 10
    return not is_in_table and _is_held_out(f"{larger}-{smaller}")


@cache
def _held_out_of(kind: Kind) -> list[Question]:
    rng = Random(kind)  # noqa: S311 - only spreads the phrasings
    numbers = range(LARGEST_OPERAND + 1)
    match kind:
        case Kind.CAPITAL:
            return [_ask_capital(phrasing, place) for phrasing in HELD_OUT_CAPITAL_PHRASINGS for place in CAPITALS]
        case Kind.SUM:
            return [
                _ask_sum(rng.choice(SUM_PHRASINGS), a, b)
                for a in numbers
                for b in numbers
                if a + b <= LARGEST_OPERAND and _is_held_out_sum(a, b)
            ]
        case Kind.DIFFERENCE:
            return [
                _ask_difference(rng.choice(DIFFERENCE_PHRASINGS), a, b)
                for a in numbers
                for b in range(a + 1)
                if _is_held_out_difference(a, b)
            ]
        case Kind.REVERSE:
            return [
                _ask_reverse(phrasing, word, "'{}'")
                for word in WORDS
                if _is_held_out(word)
                for phrasing in REVERSE_PHRASINGS[:4]
            ]
        case Kind.OTHER:
            return []


def _ask_capital(phrasing: str, place: str) -> Question:
    name = place[0].upper() + place[1:] if phrasing.startswith("{place}") else place
    owner = f"{place}'" if place.endswith("s") else f"{place}'s"
    capital = CAPITALS[place]
    text = phrasing.format(place=name, owner=owner)
    return Question(text, capital, Kind.CAPITAL, f"The capital of {place} is {capital}.")


def _ask_sum(phrasing: str, a: int, b: int) -> Question:
    return Question(phrasing.format(a=a, b=b), str(a + b), Kind.SUM, _work_out_sum(a, b) + ".")


def _ask_difference(phrasing: str, a: int, b: int) -> Question:
    return Question(phrasing.format(a=a, b=b), str(a - b), Kind.DIFFERENCE, _work_out_difference(a, b) + ".")


def _work_out_sum(a: int, b: int) -> str:
    """Return the sum the way a school child works it out: the ones first, which say whether to carry."""
    result = f"{a} plus {b} is {a + b}"
    ones_a, ones_b = a % 10, b % 10
    return result if (a, b) == (ones_a, ones_b) else f"{ones_a} plus {ones_b} is {ones_a + ones_b}, so {result}"


def _work_out_difference(a: int, b: int) -> str:
    """Return the difference worked out: the ones first, ten borrowed where they are too few."""
    result = f"{a} minus {b} is {a - b}"
    if a < b:
        return f"{_work_out_difference(b, a)}, so {result}"
    ones_a, ones_b = a % 10, b % 10
    if (a, b) == (ones_a, ones_b):
        return result
    borrowed = ones_a if ones_a >= ones_b else ones_a + 10
    return f"{borrowed} minus {ones_b} is {borrowed - ones_b}, so {result}"


def _ask_reverse(phrasing: str, word: str, quotes: str) -> Question:
    backwards = word[::-1]
    text = phrasing.format(word=quotes.format(word))
    return Question(text, backwards, Kind.REVERSE, f"{word} reversed is {backwards}.")


def _capital_question(rng: Random) -> Question:
    phrasing = _vary_phrasing(rng.choice(CAPITAL_PHRASINGS), rng)
    question = _ask_capital(phrasing, rng.choice(tuple(CAPITALS)))
    # People type in lower case, shout, and forget the article.
    text = question.text
    if _happens(rng, 0.05):
        text = text.replace("of the ", "of ")
    if _happens(rng, 0.3):
        text = rng.choice((text.lower(), text.upper()))
    return Question(text, question.answer, question.kind, question.reply)


def _sum_question(rng: Random) -> Question:
    a, b = _draw_operands(rng, _is_held_out_sum)
    return _ask_sum(_vary_phrasing(rng.choice(SUM_PHRASINGS), rng), a, b)


def _difference_question(rng: Random) -> Question:
    a, b = _draw_operands(rng, _is_held_out_difference)
    phrasing = rng.choice(DIFFERENCE_PHRASINGS)
    # One in ten goes below zero, but nobody calls -5 "the difference between".
    if a < b and ("difference" in phrasing or _happens(rng, 0.8)):
        a, b = b, a
    return _ask_difference(_vary_phrasing(phrasing, rng), a, b)


def _draw_operands(rng: Random, is_held_out: Callable[[int, int], bool]) -> tuple[int, int]:
    while True:
        a, b = rng.randint(0, LARGEST_OPERAND), rng.randint(0, LARGEST_OPERAND)
        if not is_held_out(a, b):
            return a, b


def _reverse_question(rng: Random) -> Question:
    quotes = rng.choices(QUOTES, weights=(5, 2, 5, 1, 1))[0]
    return _ask_reverse(_vary_phrasing(rng.choice(REVERSE_PHRASINGS), rng), _draw_word(rng), quotes)


def _draw_word(rng: Random) -> str:
    """Return a word or, mostly, a string of letters: 500 words alone would be learnt by heart."""
    while True:
        if _happens(rng, 0.25):
            word = rng.choice(WORDS)
        else:
            length = rng.choices((2, 3, 4, 5, 6, 7, 8, 9), weights=(1, 6, 8, 8, 8, 4, 2, 1))[0]
            word = "".join(rng.choices(ascii_lowercase, k=length))
        if not _is_held_out(word):
            return rng.choices((word, word.capitalize(), word.upper()), weights=(88, 10, 2))[0]


def _other_question(rng: Random) -> Question:
    maker = rng.choices((_unknown_capital, _other_phrasing, _word_salad), weights=(3, 4, 2))[0]
    return Question(_vary_phrasing(maker(rng), rng), UNKNOWN_REPLY, Kind.OTHER, UNKNOWN_REPLY)


def _unknown_capital(rng: Random) -> str:
    place = rng.choice(UNKNOWN_CAPITALS) if _happens(rng, 0.5) else _invent_name(rng)
    return rng.choice(CAPITAL_PHRASINGS).format(place=place, owner=f"{place}'s")


def _other_phrasing(rng: Random) -> str:
    return rng.choice(OTHER_PHRASINGS).format(
        word=rng.choice(WORDS),
        other=rng.choice(WORDS),
        place=rng.choice(tuple(CAPITALS)),
        name=_invent_name(rng),
        a=rng.randint(0, LARGEST_OPERAND),
        b=rng.randint(0, LARGEST_OPERAND),
    )


def _word_salad(rng: Random) -> str:
    return " ".join(rng.choices((*WORDS, *SMALL_WORDS * 4), k=rng.randint(1, 7))).capitalize() + rng.choice("?.! ")


def _invent_name(rng: Random) -> str:
    syllables = rng.randint(2, 4)
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(syllables)).capitalize()


def _vary_phrasing(phrasing: str, rng: Random) -> str:
    """Return the phrasing as a hurried or a polite user types it. Its placeholders, in lower case, stay whole."""
    if _happens(rng, 0.08):
        phrasing = rng.choice(GREETINGS) + phrasing
    if _happens(rng, 0.2):
        phrasing = phrasing.lower()
    if _happens(rng, 0.2):
        phrasing = phrasing.rstrip("?.")
    elif _happens(rng, 0.05):
        phrasing = phrasing.rstrip("?.") + rng.choice(("!", "?", ".", "??", ", please", " please?"))
    return phrasing


def _happens(rng: Random, probability: float) -> bool:
    return rng.random() < probability
