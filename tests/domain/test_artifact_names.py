"""A file's name says who made it, climbs nowhere, and is nobody else's."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.domain.artifacts import Maker, find_maker, is_artifact_name, make_name, make_upload_name
from bitinglip.domain.task import make_request
from bitinglip.errors import InvalidRequestError

TASK_ID = "0190a5b0-0000-7000-8000-0123456789ab"
SHA256 = "0123456789abcdef" * 4
NO_NAMES = [
    "",
    "uploads",
    "uploads/",
    "/uploads/00000000000000000000000000000000.png",
    "uploads//00000000000000000000000000000000.png",
    "uploads/00000000000000000000000000000000",
    "uploads/00000000000000000000000000000000.",
    "uploads/00000000000000000000000000000000.PNG",
    "uploads/00000000000000000000000000000000.png\n",
    "uploads/00000000000000000000000000000000.png\0",
    "uploads/00000000000000000000000000000000.png.part",
    "uploads/0000000000000000000000000000000g.png",
    "uploads/\u0660000000000000000000000000000000.png",
    "uploads/../00000000000000000000000000000000.png",
    f"{TASK_ID}/0-0-00000000.png",
    f"{TASK_ID}/01-0-00000000.png",
    f"{TASK_ID}/1-00-00000000.png",
    f"{TASK_ID}/1-0-0000000.png",
    f"{TASK_ID}/1-\u0661-00000000.png",
    f"{TASK_ID}/../{TASK_ID}/1-0-00000000.png",
    f"{TASK_ID.upper()}/1-0-00000000.png",
    f"../{TASK_ID}/1-0-00000000.png",
    f" {TASK_ID}/1-0-00000000.png",
]


@given(st.uuids(), st.integers(1, 999_999_999), st.integers(0, 9_999), st.sampled_from(["png", "jpeg", "webp"]))
def test_a_name_tells_who_made_the_file(task_id: uuid.UUID, attempt: int, index: int, suffix: str) -> None:
    maker = Maker(task_id, attempt)
    name = make_name(maker, index, suffix)
    assert is_artifact_name(name)
    assert find_maker(name) == maker
    assert name.endswith(f".{suffix}")
    assert len(name) <= 100


def test_no_two_files_have_one_name() -> None:
    maker = Maker(uuid.UUID(TASK_ID), 1)
    assert len({make_name(maker, 0, "png") for _ in range(100)}) == 100


def test_nobody_made_what_was_brought() -> None:
    name = make_upload_name(SHA256, "webp")
    assert is_artifact_name(name)
    assert find_maker(name) is None


@pytest.mark.parametrize("text", NO_NAMES)
def test_what_is_no_name_is_none(text: str) -> None:
    assert not is_artifact_name(text)
    assert find_maker(text) is None


@given(st.text())
def test_no_text_by_chance_is_a_name(text: str) -> None:
    assert not is_artifact_name(text)


@pytest.mark.parametrize("text", [*NO_NAMES, "x" * 10_000])
def test_a_task_takes_no_file_of_another_name(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_request("image", {"prompt": "a fox", "image": text}, model="demo-image")
    assert caught.value.field == "image"


def test_a_task_takes_a_file_that_a_task_made_or_somebody_brought() -> None:
    for name in (make_name(Maker(uuid.UUID(TASK_ID), 1), 0, "png"), make_upload_name(SHA256, "png")):
        request = make_request("image", {"prompt": "a fox", "image": name}, model="demo-image")
        assert request.payload.model_dump()["image"] == name
