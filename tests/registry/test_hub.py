"""What is asked of a hub, and what becomes of each way in which it fails."""

import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from bitinglip.domain.models import ModelFile, ModelName
from bitinglip.errors import (
    BitingLipError,
    ConfigurationError,
    GatedModelError,
    HubNotFoundError,
    HubUnreachableError,
    InvalidModelError,
)
from bitinglip.registry.hub.client import Hub
from tests.hub import Fault, LocalHub
from tests.registry.asking import WEIGHTS, WEIGHTS_PATH, make_folder

READER, STRANGER, UNKNOWN = "hf_reader", "hf_stranger", "hf_unknown_secret"
NAME = ModelName("org/name")


@pytest.fixture(autouse=True)
def no_token_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def local() -> Iterator[LocalHub]:
    with LocalHub(tokens=[STRANGER]) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


@pytest.fixture
def commit(local: LocalHub, folder: Path) -> str:
    return local.add_repo("org/name", folder, licence="mit", tags=["tiny"], pipeline_tag="text-generation")


@pytest.fixture
def hub(local: LocalHub) -> Hub:
    return Hub(endpoint=local.url, stall_seconds=5)


def read(hub: Hub, commit: str, path: str = WEIGHTS_PATH, start: int = 0, stop: threading.Event | None = None) -> bytes:
    with hub.open_file("org/name", commit, path, start=start, stop=stop) as stream:
        return b"".join(stream.chunks())


def test_a_model_is_described_with_its_commit_and_every_files_hash(hub: Hub, commit: str, folder: Path) -> None:
    (folder / "sub folder" / "ä b.txt").unlink()
    model = hub.look_up(NAME)
    assert (model.name, model.commit) == (NAME, commit)
    assert (model.type, model.licence, model.tags) == ("text", "mit", ("tiny", "license:mit"))
    assert {file.path: file.size for file in model.files} == {
        "config.json": 6,
        "empty.txt": 0,
        WEIGHTS_PATH: len(WEIGHTS),
    }
    files = {file.path: file for file in model.files}
    assert files[WEIGHTS_PATH].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert files["config.json"].git_sha1 == hashlib.sha1(b"blob 6\0hello\n").hexdigest()


def test_a_name_that_no_models_file_has_is_left_out(hub: Hub, commit: str, folder: Path) -> None:
    assert (folder / "sub folder" / "ä b.txt").exists()
    assert {file.path for file in hub.look_up(NAME).files} == {"config.json", "empty.txt", WEIGHTS_PATH}


@pytest.mark.parametrize(
    ("properties", "path", "expected"),
    [
        ({}, "model_index.json", "image"),
        ({"pipeline_tag": "text-generation"}, "modules.json", "embedding"),
        ({"pipeline_tag": "feature-extraction"}, "a.json", "embedding"),
        ({"pipeline_tag": "automatic-speech-recognition"}, "a.json", None),
    ],
)
def test_the_kind_of_task_is_told_by_the_files_or_the_hubs_tag(
    local: LocalHub, hub: Hub, tmp_path: Path, properties: dict[str, Any], path: str, expected: str | None
) -> None:
    (tmp_path / path).write_text("{}")
    local.add_repo("org/name", tmp_path, **properties)
    assert hub.look_up(NAME).type == expected


def test_a_revision_is_looked_up_and_a_commit_stays_what_it_is(
    local: LocalHub, hub: Hub, commit: str, folder: Path
) -> None:
    (folder / "config.json").write_text("changed")
    moved = local.commit("org/name", folder)
    assert hub.look_up(NAME).commit == moved
    assert hub.look_up(NAME, commit).commit == commit
    assert hub.look_up(ModelName("org/name", commit)).commit == commit


def test_a_file_comes_from_any_byte_on(hub: Hub, commit: str) -> None:
    weights = ModelFile(WEIGHTS_PATH, len(WEIGHTS), sha256=hashlib.sha256(WEIGHTS).hexdigest())
    source = hub.make_source("org/name", commit)
    assert source.name == hub.address
    for start in (0, 1, 70_000, len(WEIGHTS) - 1):
        with source.open(weights, start) as stream:
            assert stream.start == start
            assert b"".join(stream.chunks()) == WEIGHTS[start:]


def test_a_file_of_many_pieces_comes_whole(local: LocalHub, hub: Hub, tmp_path: Path) -> None:
    large = os.urandom(5_000_000)
    commit = local.add_repo("org/name", make_folder(tmp_path / "large", large))
    assert read(hub, commit) == large
    assert read(hub, commit, start=1_234_567) == large[1_234_567:]


def test_a_range_beyond_the_file_brings_it_from_its_start(hub: Hub, commit: str) -> None:
    with hub.open_file("org/name", commit, WEIGHTS_PATH, start=len(WEIGHTS) + 5) as stream:
        assert stream.start == 0
        assert b"".join(stream.chunks()) == WEIGHTS


def test_an_empty_and_a_small_file_are_read(hub: Hub, commit: str) -> None:
    assert hub.read_file("org/name", commit, "empty.txt", max_bytes=0) == b""
    assert hub.read_file("org/name", commit, "config.json", max_bytes=6) == b"hello\n"
    with pytest.raises(InvalidModelError, match="more than 5 bytes"):
        hub.read_file("org/name", commit, "config.json", max_bytes=5)


def test_eight_threads_read_at_once(hub: Hub, commit: str) -> None:
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.extend(read(hub, commit) == WEIGHTS for _ in range(10))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


def test_the_token_is_sent_to_the_hub_and_to_nobody_else(local: LocalHub, folder: Path) -> None:
    commit = local.add_repo("org/name", folder, private=True, readers=[READER])
    hub = Hub(endpoint=local.url, token=READER)
    hub.look_up(NAME)
    assert read(hub, commit) == WEIGHTS
    assert [request.token for request in local.requests.matching("cdn")] == [None]
    asked = [*local.requests.matching("api"), *local.requests.matching("resolve")]
    assert len(asked) == 2
    assert {request.token for request in asked} == {READER}


def test_bytes_are_asked_for_as_they_are(local: LocalHub, hub: Hub, commit: str) -> None:
    read(hub, commit)
    assert [request.headers["Accept-Encoding"] for request in local.requests] == ["identity", "identity"]


def test_the_users_own_token_is_used(local: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = local.add_repo("org/name", folder, private=True, readers=[READER])
    monkeypatch.setenv("HF_TOKEN", READER)
    assert read(Hub(endpoint=local.url), commit) == WEIGHTS


@pytest.mark.parametrize(
    ("repository", "token", "error", "words"),
    [
        ({"name": "org/other"}, None, HubNotFoundError, "no such model; check the name.*set HF_TOKEN for the workers"),
        ({"private": True}, None, HubNotFoundError, "no such model; check the name.*set HF_TOKEN"),
        ({"private": True}, STRANGER, HubNotFoundError, "the one in HF_TOKEN may not"),
        ({}, UNKNOWN, ConfigurationError, "does not know this token; set one that it knows, or none"),
    ],
)
def test_a_model_that_is_not_shown_is_not_found_with_what_to_do(
    local: LocalHub,
    folder: Path,
    repository: dict[str, Any],
    token: str | None,
    error: type[BitingLipError],
    words: str,
) -> None:
    name = repository.pop("name", "org/name")
    local.add_repo(name, folder, readers=[READER], **repository)
    with pytest.raises(error, match=words) as caught:
        Hub(endpoint=local.url, token=token).look_up(NAME)
    assert not caught.value.retryable
    assert UNKNOWN not in str(caught.value)


@pytest.mark.parametrize(("token", "words"), [(None, "then set HF_TOKEN"), (STRANGER, "is not one of those")])
def test_a_gated_models_files_are_given_to_those_let_in_only(
    local: LocalHub, folder: Path, token: str | None, words: str
) -> None:
    commit = local.add_repo("org/name", folder, gated=True, readers=[READER])
    hub = Hub(endpoint=local.url, token=token)
    assert hub.look_up(NAME).commit == commit
    with pytest.raises(GatedModelError, match=f"ask for access at {local.url}/org/name.*") as caught:
        read(hub, commit)
    assert words in str(caught.value)
    assert not caught.value.retryable
    assert read(Hub(endpoint=local.url, token=READER), commit) == WEIGHTS


def test_a_revision_and_a_file_that_are_not_there_are_named(hub: Hub, commit: str) -> None:
    with pytest.raises(HubNotFoundError, match="no revision 'nightly'; write one of its branches"):
        hub.look_up(ModelName("org/name", "nightly"))
    with pytest.raises(HubNotFoundError, match=f"no file 'nothing.json' of it at commit {commit}"):
        read(hub, commit, "nothing.json")


@pytest.mark.parametrize(
    ("fault", "words", "seconds"),
    [
        (Fault(status=429, retry_after_seconds=7), "429 Too Many", 7),
        (Fault(status=429), "429 Too Many", None),
        (Fault(status=500), "500 Internal", None),
        (Fault(status=502), "502 Bad", None),
        (Fault(status=503, retry_after_seconds=2), "503 Service", 2),
        (Fault(status=504), "504 Gateway", None),
        (Fault(cut_after_bytes=0), "RemoteProtocolError", None),
        (Fault(cut_after_bytes=3), "RemoteProtocolError", None),
        (Fault(length_off_by=-3), "no description of a model", None),
    ],
)
def test_a_hub_that_fails_at_a_question_may_be_asked_again(
    local: LocalHub, hub: Hub, commit: str, fault: Fault, words: str, seconds: float | None
) -> None:
    local.faults.add(fault)
    with pytest.raises(HubUnreachableError, match=words) as caught:
        hub.look_up(NAME)
    assert caught.value.retryable
    assert caught.value.retry_after_seconds == seconds
    assert hub.look_up(NAME).commit == commit


@pytest.mark.parametrize("kind", ["resolve", "cdn"])
@pytest.mark.parametrize(
    ("status", "seconds"), [(429, 3), (500, None), (503, 1), (403, None), (404, None), (401, None)]
)
def test_a_files_server_that_refuses_is_asked_for_another_address_and_the_hub_is_believed(
    local: LocalHub, hub: Hub, commit: str, kind: Any, status: int, seconds: int | None
) -> None:
    local.faults.add(Fault(kind=kind, status=status, retry_after_seconds=seconds))
    passing = kind == "cdn" or status in {429, 500, 503}
    with pytest.raises(HubUnreachableError if passing else HubNotFoundError) as caught:
        read(hub, commit)
    assert getattr(caught.value, "retry_after_seconds", None) == seconds
    assert read(hub, commit) == WEIGHTS


def test_a_connection_that_ends_early_says_how_much_is_missing(local: LocalHub, hub: Hub, commit: str) -> None:
    local.faults.add(Fault(kind="cdn", cut_after_bytes=90_000))
    came = bytearray()

    def take() -> None:
        with hub.open_file("org/name", commit, WEIGHTS_PATH, start=0) as stream:
            for chunk in stream.chunks():
                came.extend(chunk)

    with pytest.raises(HubUnreachableError, match="ended 10,000 bytes early"):
        take()
    assert bytes(came) == WEIGHTS[:90_000]


def test_silence_counts_as_dead_once_it_lasts_too_long(local: LocalHub, commit: str) -> None:
    hub = Hub(endpoint=local.url, stall_seconds=0.6)
    local.faults.add(Fault(kind="cdn", stall_after_bytes=80_000))
    with pytest.raises(HubUnreachableError, match=r"no byte for 0\.6 s"):
        read(hub, commit)
    local.faults.add(Fault(kind="cdn", stall_after_bytes=0))
    began = time.monotonic()
    with pytest.raises(HubUnreachableError, match="no answer in time"):
        read(hub, commit)
    assert time.monotonic() - began < 3
    local.faults.add(Fault(kind="api", stall_after_bytes=0))
    with pytest.raises(HubUnreachableError, match="no answer in time"):
        hub.look_up(NAME)


def test_a_slow_hub_is_not_dead(local: LocalHub, commit: str) -> None:
    hub = Hub(endpoint=local.url, stall_seconds=0.5)
    local.faults.add(Fault(kind="resolve", bytes_per_second=3))
    assert read(hub, commit, "config.json") == b"hello\n"


def test_nobody_at_the_address_is_said_with_the_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(HubUnreachableError, match=f"{address} .*ConnectError.*check HF_ENDPOINT"):
        Hub(endpoint=address).look_up(NAME)
    with pytest.raises(HubUnreachableError, match="hub at nonsense cannot be used"):
        Hub(endpoint="nonsense").look_up(NAME)


def test_offline_mode_is_obeyed(local: LocalHub, hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE says to ask it nothing; unset it"):
        hub.look_up(NAME)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE"):
        read(hub, commit)
    assert not list(local.requests)


@pytest.mark.parametrize("token", [UNKNOWN, STRANGER])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(times=None, status=401),
        Fault(times=None, status=403),
        Fault(times=None, status=500),
        Fault(times=None, cut_after_bytes=0),
        Fault(times=None, kind="cdn", status=403),
    ],
)
def test_no_error_and_no_log_has_the_token_or_the_password(
    local: LocalHub, commit: str, fault: Fault, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The least severe level at which libraries are logged.
    caplog.set_level(logging.WARNING)
    hub = Hub(endpoint=local.url.replace("http://", "http://user:hidden_password@"), token=token)
    assert hub.address == local.url
    local.faults.add(fault)
    with pytest.raises(BitingLipError) as caught:
        read(hub, commit)
    written = f"{caught.value} {caplog.text}"
    assert local.url in written
    assert not any(secret in written for secret in (UNKNOWN, STRANGER, "hidden_password"))
