"""Each field's bounds are checked where a task is asked for, and the error names field, value and remedy."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.domain.task import MAX_METADATA_BYTES, Priority, TaskRequest, make_request, parse_task_id
from bitinglip.errors import InvalidRequestError, TaskNotFoundError

PROMPT = {"prompt": "Hello"}


def make_text(payload: dict[str, Any] | None = None, **fields: Any) -> Any:
    return make_request("text", {**PROMPT, **(payload or {})}, **{"model": "demo", **fields})


BAD_PAYLOADS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "prompt", "too short; at least 1"),
    ({"prompt": "  \n"}, "prompt", "empty"),
    ({"prompt": "a\x00b"}, "prompt", "NUL"),
    ({"prompt": "x" * 1_000_000}, "prompt", "too long; at most 200,000"),
    ({"prompt": "\ud800"}, "prompt", "Unicode"),
    ({"prompt": None}, "prompt", "either a prompt or messages"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "prompt", "either a prompt or messages"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"temperature": 3}, "temperature", "less than or equal to 2"),
    ({"temperature": float("nan")}, "temperature", ""),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 131_073}, "max_tokens", "less than or equal to 131072"),
    ({"max_tokens": "many"}, "max_tokens", "valid integer"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"top_k": -1}, "top_k", "greater than or equal to 0"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"stop": [""]}, "stop.0", "too short"),
    ({"stop": ["x" * 201]}, "stop.0", "too long"),
    ({"stop": ["x"] * 17}, "stop", "too long; at most 16"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
    ({"json_schema": "text"}, "json_schema", "valid dictionary"),
    ({"json_schema": {"const": "a\x00"}}, "json_schema", "NUL"),
    ({"json_schema": {"minimum": float("inf")}}, "json_schema", "JSON"),
    ({"temprature": 1}, "temprature", "no such field"),
]


@pytest.mark.parametrize(
    ("payload", "field", "remedy"), BAD_PAYLOADS, ids=[f"{field}-{n}" for n, (_, field, _) in enumerate(BAD_PAYLOADS)]
)
def test_a_bad_payload_is_named(payload: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_text(payload)

    assert caught.value.field == field
    assert remedy in str(caught.value)
    assert len(str(caught.value)) < 400


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"agent_id": "a" * 101}, "agent_id", "too long; at most 100"),
    ({"agent_id": ""}, "agent_id", "too short"),
    ({"agent_id": "a\x00"}, "agent_id", "NUL"),
    ({"user_id": "u" * 101}, "user_id", "too long; at most 100"),
    ({"channel_id": "1" * 16}, "channel_id", "does not match"),
    ({"channel_id": "1" * 20}, "channel_id", "does not match"),
    ({"channel_id": "1" * 16 + "x"}, "channel_id", "does not match"),
    ({"channel_id": "1" * 18 + "\n"}, "channel_id", "does not match"),
    ({"channel_id": "\uff11" * 18}, "channel_id", "does not match"),
    ({"priority": "urgent"}, "priority", "'critical', 'high', 'medium' or 'low'"),
    ({"title": "t" * 201}, "title", "too long; at most 200"),
    ({"title": ""}, "title", "too short"),
    ({"description": "d" * 2_001}, "description", "too long; at most 2,000"),
    ({"model": ""}, "model", "too short"),
    ({"model": "m" * 501}, "model", "too long; at most 500"),
    ({"metadata": []}, "metadata", "valid dictionary"),
    ({"metadata": "text"}, "metadata", "valid dictionary"),
    ({"metadata": {"a": ["b\x00"]}}, "metadata", "NUL"),
    ({"metadata": {"a\x00": 1}}, "metadata", "NUL"),
    ({"metadata": {"a": "\ud800"}}, "metadata", "Unicode"),
    ({"metadata": {"a": float("nan")}}, "metadata", "JSON"),
    ({"metadata": {"a": {1, 2}}}, "metadata", "JSON"),
    ({"metadata": {"a": "x" * MAX_METADATA_BYTES}}, "metadata", "at most 65,536"),
]


@pytest.mark.parametrize(
    ("fields", "field", "remedy"), BAD_FIELDS, ids=[f"{field}-{n}" for n, (_, field, _) in enumerate(BAD_FIELDS)]
)
def test_a_bad_field_is_named(fields: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_text(**fields)

    assert caught.value.field == field
    assert remedy in str(caught.value)


GOOD: list[dict[str, Any]] = [
    {"agent_id": "a" * 100, "user_id": "u" * 100, "description": "d" * 2_000, "title": "t" * 200},
    {"channel_id": "1" * 17},
    {"channel_id": "9" * 19},
    {"metadata": {"code": r"a literal \u0000", "emoji": "\N{SNOWMAN}", "list": [1, 2.5, None, {"x": True}]}},
    {"model": "m" * 500},
]


@pytest.mark.parametrize("fields", GOOD)
def test_what_is_just_within_bounds_is_taken(fields: dict[str, Any]) -> None:
    request = make_text(**fields)

    assert {name: getattr(request, name) for name in fields} == fields


def test_a_text_task_names_its_model() -> None:
    with pytest.raises(InvalidRequestError, match="model: None: a task of type text names a model"):
        make_request("text", PROMPT)


def test_an_unknown_kind_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match=r"type: 'telepathy': choose one of agent, download, echo, .*text"):
        make_request("telepathy", {})


def test_what_nobody_says_has_its_default() -> None:
    request = make_text()

    assert (request.agent_id, request.priority, request.metadata) == ("default", Priority.MEDIUM, {})
    assert (request.payload.max_tokens, request.payload.temperature) == (512, 0.7)


@pytest.mark.parametrize(
    ("payload", "title"),
    [
        ({"prompt": "What  is\nthis?"}, "What is this?"),
        ({"prompt": "x" * 300}, "x" * 200),
        ({"prompt": None, "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "b"),
        ({"prompt": None, "messages": [{"role": "user", "content": " "}]}, "text"),
    ],
)
def test_a_title_is_made_from_what_was_asked(payload: dict[str, Any], title: str) -> None:
    assert make_text(payload).title == title


def make_or_refuse(make: Callable[[], TaskRequest]) -> tuple[TaskRequest | None, str]:
    """The request, or the first part of the field that is wrong."""
    try:
        return make(), ""
    except InvalidRequestError as exc:
        return None, exc.field.partition(".")[0]


@given(st.text(max_size=300))
def test_any_text_is_taken_or_refused_by_name(text: str) -> None:
    request, field = make_or_refuse(lambda: make_request("echo", {"text": text}))

    assert field == ("" if request else "text")
    assert (request is None) == ("\x00" in text)
    assert request is None or 1 <= len(request.title) <= 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_metadata_that_is_taken_is_strict_json(metadata: dict[str, Any]) -> None:
    request, field = make_or_refuse(lambda: make_text(metadata=metadata))

    assert field == ("" if request else "metadata")
    if request is not None:
        assert json.loads(json.dumps(request.metadata, allow_nan=False)) == metadata


def test_ids_are_ordered_by_time() -> None:
    ids = [make_text().id for _ in range(100)]

    assert ids == sorted(ids)
    assert {task_id.version for task_id in ids} == {7}


def test_what_is_no_id_is_no_task() -> None:
    with pytest.raises(TaskNotFoundError, match="'x' is not known"):
        parse_task_id("x")
