"""The time limit of an attempt, which begins when its engine does."""

import os
import queue
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from bitinglip.artifacts.spool import Spool
from bitinglip.artifacts.store import ArtifactStore
from bitinglip.domain.catalogue import find_kinds
from bitinglip.engine import wire
from bitinglip.engine.base import EngineEvent
from bitinglip.engine.link import EngineLink
from bitinglip.lifecycle.run import RunLimits, TaskRunner
from bitinglip.settings import ServerUrls
from bitinglip.store.tasks import ClaimedTask, Doorbell, Ending
from bitinglip.streams.reader import connect
from bitinglip.streams.writer import EventWriter
from tests.conftest import REPOSITORY, eventually
from tests.engine_process.sized import SIZED, install, make_folder

LIMIT_SECONDS = 0.5


@pytest.fixture
def link(tmp_path: Path) -> Iterator[EngineLink]:
    """An engine process with room for one of the models here."""
    path = f"{install(tmp_path / 'package')}{os.pathsep}{REPOSITORY}"
    opened = EngineLink(devices=("cpu",), slots=4, memory_bytes=90_000, environment={"PYTHONPATH": path})
    yield opened
    opened.close()


@pytest.fixture
def endings() -> list[Ending]:
    return []


@pytest.fixture
def runner(
    link: EngineLink, endings: list[Ending], urls: ServerUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TaskRunner]:
    """Claims `sized` tasks for the second model, of a fifth of a second each."""
    monkeypatch.setitem(find_kinds(), "sized", SIZED)
    model = make_folder(tmp_path / "second", 60_000)
    writer = EventWriter(connect(urls.redis_url))

    def claim(bell: Doorbell) -> ClaimedTask:
        payload = {"text": "done", "seconds": 0.2}
        return ClaimedTask(bell.task_id, bell.attempt, "sized", model, "a", 0, 1, suspect=False, payload=payload)

    def finish(ending: Ending) -> str:
        endings.append(ending)
        return ending.outcome

    yield TaskRunner(
        claim,
        finish,
        link,
        writer,
        spool=Spool(tmp_path / "spool", ArtifactStore(str(tmp_path / "artifacts"))),
        use_model=lambda name, *_: nullcontext(name),
        doubt_model=lambda _: False,
        report_load_failure=lambda *_: None,
        slots=4,
        limits=RunLimits(attempt_seconds=LIMIT_SECONDS),
    )
    writer.close()


def test_waiting_for_room_for_the_model_is_not_counted(
    link: EngineLink, runner: TaskRunner, endings: list[Ending], tmp_path: Path
) -> None:
    first = make_folder(tmp_path / "first", 60_000)
    events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
    link.start(wire.Run("first:1", "sized", first, first, {"seconds": 4 * LIMIT_SECONDS}), events.put)
    eventually(lambda: link.holding.models == [first], within=30)

    runner.run(Doorbell(uuid.uuid4(), 1))

    assert not events.empty(), "it waited"
    assert [(ending.outcome, ending.result) for ending in endings] == [("completed", {"text": "done"})]
