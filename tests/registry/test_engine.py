"""The engine of the `download` kind: what becomes of each request, whatever its thread does."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from bitinglip.domain.models import Manifest, ModelFile, ModelSource, ModelStatus
from bitinglip.engine.base import EngineEvent, EngineRequest, Failed, Finished, Progress
from bitinglip.errors import DatabaseUnreachableError, DownloadStoppedError, GatedModelError, HubUnreachableError
from bitinglip.registry.downloader import ModelDownloader
from bitinglip.registry.engine import PROGRESS_SECONDS, STOP_SECONDS, DownloadEngine
from bitinglip.registry.transfer.progress import DownloadProgress
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry, ModelRecord
from tests.conftest import eventually

COMMIT = "ab" * 20
FILE = ModelFile("model.safetensors", 1_000, sha256="cd" * 32)

Bring = Callable[[str, threading.Event, Callable[[DownloadProgress], None], Callable[[], bool]], ModelEntry]


def make_entry(name: str) -> ModelEntry:
    record = ModelRecord(name, ModelSource.HUB, repo=name, manifest=Manifest(COMMIT, (FILE,)))
    return ModelEntry(record, ModelStatus.AVAILABLE)


class ScriptedDownloader:
    """Does for each model what the test says; it stands for a hub that does anything at all."""

    def __init__(self) -> None:
        self.scripts: dict[str, Bring] = {}

    def bring(
        self,
        name: str,
        *,
        stop: threading.Event,
        on_progress: Callable[[DownloadProgress], None],
        keep_parts: Callable[[], bool],
    ) -> ModelEntry:
        return self.scripts[name](name, stop, on_progress, keep_parts)


@pytest.fixture
def downloader() -> ScriptedDownloader:
    return ScriptedDownloader()


@pytest.fixture
def engine(downloader: ScriptedDownloader, database: Database) -> Iterator[DownloadEngine]:
    made = DownloadEngine(cast("ModelDownloader", downloader), database, node="node-1")
    yield made
    made.close()


def start(engine: DownloadEngine, model: str) -> str:
    request_id = f"{uuid.uuid4()}:1"
    engine.add(EngineRequest(request_id, {"model": model}))
    return request_id


def run(engine: DownloadEngine, *, seconds: float = 10.0) -> list[EngineEvent]:
    """The events of every step until nothing is to be done."""
    events: list[EngineEvent] = []
    deadline = time.monotonic() + seconds
    while engine.busy:
        assert time.monotonic() < deadline, f"still busy after {events}"
        events += engine.step()
    return events


def raise_(exc: Exception) -> Any:
    raise exc


def wait_for_stop(name: str, stop: threading.Event, *_: object) -> ModelEntry:
    assert stop.wait(10)
    raise DownloadStoppedError(name)


def test_a_model_that_has_come_is_the_result(engine: DownloadEngine, downloader: ScriptedDownloader) -> None:
    downloader.scripts["org/a"] = lambda name, *_: make_entry(name)

    (ended,) = run_one(engine, "org/a")

    assert isinstance(ended, Finished)
    assert ended.result == {"model": "org/a", "commit": COMMIT, "bytes": 1_000, "files": 1, "node": "node-1"}
    assert ended.usage.engine_seconds > 0


def run_one(engine: DownloadEngine, model: str) -> list[EngineEvent]:
    request_id = start(engine, model)
    return [event for event in run(engine) if event.request_id == request_id and not isinstance(event, Progress)]


def test_each_request_fails_alone_with_its_cause(engine: DownloadEngine, downloader: ScriptedDownloader) -> None:
    errors: dict[str, Exception] = {
        "org/gated": GatedModelError("org/gated", "https://hub/org/gated", has_token=False),
        "org/away": HubUnreachableError("https://hub", "timed out"),
        "org/database": DatabaseUnreachableError("host:5432/x", "refused"),
        "org/bug": ZeroDivisionError("division by zero"),
    }
    for name, exc in errors.items():
        downloader.scripts[name] = lambda *_, exc=exc: raise_(exc)
    downloader.scripts["org/good"] = lambda name, *_: make_entry(name)
    ids = {start(engine, name): name for name in [*errors, "org/good"]}

    ended = {ids[event.request_id]: event for event in run(engine)}

    found = {name: (event.code, event.retryable) for name, event in ended.items() if isinstance(event, Failed)}
    assert found == {
        "org/gated": ("gated_model", False),
        "org/away": ("hub_unreachable", True),
        "org/database": ("database_unreachable", True),
        "org/bug": ("internal_error", True),
    }
    assert "ask for access at https://hub/org/gated" in cast("Failed", ended["org/gated"]).message
    assert "ZeroDivisionError: division by zero" in cast("Failed", ended["org/bug"]).message
    assert isinstance(ended["org/good"], Finished)


def test_what_is_no_model_is_refused_and_starts_nothing(engine: DownloadEngine) -> None:
    (ended,) = run_one(engine, "no model/at all/")

    assert isinstance(ended, Failed)
    assert (ended.code, ended.retryable) == ("invalid_request", False)


def test_progress_comes_four_times_a_second_at_most(engine: DownloadEngine, downloader: ScriptedDownloader) -> None:
    def bring(name: str, stop: threading.Event, on_progress: Callable[[DownloadProgress], None], _: object) -> Any:
        until = time.monotonic() + 4 * PROGRESS_SECONDS
        done = 0
        while time.monotonic() < until and not stop.wait(0.001):
            done += 1
            on_progress(DownloadProgress("downloading", min(done, 4_000), 8_000, {FILE.path: (done, 8_000)}))
        return make_entry(name)

    downloader.scripts["org/a"] = bring
    start(engine, "org/a")

    told = [event for event in run(engine) if isinstance(event, Progress)]

    assert 2 <= len(told) <= 5
    last = told[-1]
    assert last.detail["stage"] == "downloading"
    assert last.fraction == last.detail["done_bytes"] / 8_000
    assert last.detail["files"].keys() == {FILE.path}


def test_a_download_that_is_cancelled_ends_at_once_and_others_go_on(
    engine: DownloadEngine, downloader: ScriptedDownloader
) -> None:
    downloader.scripts |= {"org/a": wait_for_stop, "org/b": wait_for_stop}
    first, second = start(engine, "org/a"), start(engine, "org/b")
    engine.cancel(first)
    engine.cancel("unknown:1")

    (ended,) = eventually(engine.step, within=STOP_SECONDS / 2)

    assert isinstance(ended, Failed)
    assert (ended.request_id, ended.code, ended.retryable) == (first, "cancelled", False)
    assert engine.busy
    engine.cancel(second)
    assert [event.request_id for event in run(engine)] == [second]


def test_a_cancel_does_not_wait_for_a_network_that_does_not_answer(
    engine: DownloadEngine, downloader: ScriptedDownloader
) -> None:
    answers = threading.Event()

    def hang(name: str, *_: object) -> ModelEntry:
        answers.wait(10)
        return make_entry(name)

    downloader.scripts["org/a"] = hang
    request_id = start(engine, "org/a")
    engine.step()
    engine.cancel(request_id)
    engine.cancel(request_id)
    began = time.monotonic()

    (ended,) = run(engine)

    assert isinstance(ended, Failed)
    assert ended.code == "cancelled"
    assert time.monotonic() - began < STOP_SECONDS + 0.3
    answers.set()
    assert engine.step() == []


def test_a_model_that_came_before_the_cancel_was_seen_is_kept(
    engine: DownloadEngine, downloader: ScriptedDownloader
) -> None:
    def finish(name: str, stop: threading.Event, *_: object) -> ModelEntry:
        assert stop.wait(10)
        return make_entry(name)

    downloader.scripts["org/a"] = finish
    engine.cancel(start(engine, "org/a"))

    assert [type(event) for event in run(engine)] == [Finished]


def test_parts_stay_when_the_engine_closes_and_go_when_a_request_is_cancelled(
    engine: DownloadEngine, downloader: ScriptedDownloader
) -> None:
    kept: dict[str, bool] = {}

    def bring(name: str, stop: threading.Event, _: object, keep_parts: Callable[[], bool]) -> ModelEntry:
        assert stop.wait(10)
        kept[name] = keep_parts()
        raise DownloadStoppedError(name)

    downloader.scripts |= {"org/cancelled": bring, "org/left": bring}
    engine.cancel(start(engine, "org/cancelled"))
    run(engine)
    start(engine, "org/left")

    engine.close()

    assert kept == {"org/cancelled": False, "org/left": True}
    assert not engine.busy


def test_a_step_without_news_is_short(engine: DownloadEngine, downloader: ScriptedDownloader) -> None:
    downloader.scripts["org/a"] = wait_for_stop
    start(engine, "org/a")
    began = time.monotonic()

    assert engine.step() == []

    assert time.monotonic() - began < 0.2
