"""What a task of kind `embedding` may ask for."""

from typing import Any

import pytest

from bitinglip.domain.task import make_request
from bitinglip.errors import InvalidRequestError

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "input", "field required"),
    ({"input": []}, "input", "too short; at least 1"),
    ({"input": ""}, "input.0", "too short; at least 1"),
    ({"input": ["fine", ""]}, "input.1", "too short; at least 1"),
    ({"input": 5}, "input", "valid list"),
    ({"input": ["fine", 5]}, "input.1", "valid string"),
    ({"input": "a\x00b"}, "input.0", "NUL"),
    ({"input": ["x"] * 2_049}, "input", "too long; at most 2,048"),
    ({"input": "x" * 200_001}, "input.0", "too long; at most 200,000"),
    ({"input": ["x" * 200_000] * 20 + ["x"]}, "input", "4,000,001 characters in all, at most 4,000,000"),
    ({"input": "hi", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
    ({"input": "hi", "prompt": "hi"}, "prompt", "no such field"),
]


@pytest.mark.parametrize(
    ("payload", "field", "remedy"), BAD, ids=[f"{field}-{n}" for n, (_, field, _) in enumerate(BAD)]
)
def test_a_bad_field_is_named(payload: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_request("embedding", payload, model="demo")

    assert caught.value.field == field
    assert remedy in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_just_within_bounds_is_taken() -> None:
    texts = ["x" * 200_000] * 20
    request = make_request("embedding", {"input": texts, "dimensions": 1, "normalize": False}, model="demo")

    assert request.payload.model_dump() == {"input": texts, "dimensions": 1, "normalize": False}


def test_one_text_is_a_list_of_one() -> None:
    assert make_request("embedding", {"input": "hello"}, model="demo").payload.model_dump()["input"] == ["hello"]


def test_it_names_its_model() -> None:
    with pytest.raises(InvalidRequestError, match="a task of type embedding names a model"):
        make_request("embedding", {"input": "hello"})


@pytest.mark.parametrize(
    ("texts", "title"),
    [
        ("What  is\nthis?", "What is this?"),
        (["a"] * 1_500, "a (and 1,499 more)"),
        ("  ", "embedding"),
        (["x" * 300, "y"], "x" * 187 + " (and 1 more)"),
    ],
)
def test_a_title_is_made_from_the_first_text(texts: Any, title: str) -> None:
    assert make_request("embedding", {"input": texts}, model="demo").title == title
