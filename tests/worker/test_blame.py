"""An engine dies: nobody pays for it, the suspects run again one at a time, and only the culprit is quarantined."""

import time
import uuid
from itertools import pairwise
from typing import Any

import pytest

from bitinglip.client import Client, Handle
from bitinglip.domain.task import Status
from bitinglip.engine.base import EngineLost, Failed
from bitinglip.lifecycle.outcome import StopReason, decide_ending, find_load_failure
from bitinglip.store.database import Database
from bitinglip.store.tasks import ClaimedTask, Ending
from tests.conftest import System, eventually
from tests.factories import execute, read_outcomes
from tests.worker.test_deaths import engine_of


def make_claimed(**fields: Any) -> ClaimedTask:
    values = {"type": "echo", "model": None, "agent_id": "a", "failures": 0, "max_attempts": 4, "suspect": False}
    return ClaimedTask(task_id=uuid.uuid4(), attempt=1, payload={}, **{**values, **fields})


def decide(task: ClaimedTask, lost: EngineLost, stop: StopReason | None = None) -> Ending:
    return decide_ending(task, lost, stop=stop, attempt_seconds=300, base_retry_seconds=2)


@pytest.mark.parametrize("suspect", [False, True])
@pytest.mark.parametrize("companions", [0, 3])
@pytest.mark.parametrize("blameless", [False, True])
def test_only_a_suspect_that_was_alone_is_quarantined(suspect: bool, companions: int, blameless: bool) -> None:
    lost = EngineLost("id", "segmentation fault", companions, blameless)

    ending = decide(make_claimed(suspect=suspect), lost)

    if suspect and companions == 0 and not blameless:
        assert (ending.outcome, ending.error and ending.error["code"]) == ("failed", "poison")
        assert ending.error is not None
        assert "segmentation fault" in ending.error["message"]
    else:
        assert (ending.outcome, ending.suspect) == ("released", suspect or not blameless)


LOST_LOADING = EngineLost("id", "exit status 9", companions=2, blameless=True, loading="m")
NOT_LOADED = Failed("id", "model_load_failed", "no such kernel", retryable=True)


@pytest.mark.parametrize("suspect", [False, True])
@pytest.mark.parametrize("ended", [LOST_LOADING, NOT_LOADED])
def test_a_model_that_cannot_be_loaded_is_not_the_tasks_failure(ended: EngineLost | Failed, suspect: bool) -> None:
    task = make_claimed(model="m", suspect=suspect, failures=3)

    ending = decide_ending(task, ended, stop=None, attempt_seconds=300, base_retry_seconds=2)

    assert (ending.outcome, ending.suspect, ending.usage) == ("released", False, None)
    assert ending.error is not None
    assert ending.error["code"] == "model_load_failed"
    assert find_load_failure(task, ended) is not None


@pytest.mark.parametrize("ended", [LOST_LOADING, NOT_LOADED])
def test_a_model_that_is_given_up_fails_its_tasks(ended: EngineLost | Failed) -> None:
    ending = decide_ending(
        make_claimed(model="m"), ended, stop=None, attempt_seconds=300, base_retry_seconds=2, given_up="two workers"
    )

    error = {"code": "model_load_failed", "message": "two workers", "retryable": False}
    assert (ending.outcome, ending.error) == ("failed", error)


def test_the_neighbours_of_a_load_that_ended_the_engine_are_free_of_suspicion() -> None:
    task = make_claimed(model="other")

    assert find_load_failure(task, LOST_LOADING) is None
    ending = decide(task, LOST_LOADING)
    assert ending.error is not None
    assert (ending.outcome, ending.suspect, ending.error["code"]) == ("released", False, "engine_lost")


@pytest.mark.parametrize(
    ("stop", "outcome", "code"),
    [
        (StopReason.CANCELLED, "cancelled", "cancelled"),
        (StopReason.TIME_LIMIT, "failed", "time_limit"),
        (StopReason.HANDED_BACK, "released", "handed_back"),
    ],
)
def test_one_that_was_told_to_stop_is_not_blamed_for_its_engine(stop: StopReason, outcome: str, code: str) -> None:
    lost = EngineLost("id", "killed", companions=0, blameless=True)

    ending = decide(make_claimed(suspect=True), lost, stop)

    assert (ending.outcome, ending.error and ending.error["code"]) == (outcome, code)


def test_a_task_that_kills_every_engine_is_quarantined_and_its_neighbours_complete(
    system: System, client: Client, database: Database
) -> None:
    neighbours = [client.submit("echo", text=str(n), seconds=1) for n in range(4)]
    eventually(lambda: all(handle.status is Status.IN_PROGRESS for handle in neighbours))
    poison = client.submit("echo", text="poison", fail="crash", priority="critical")

    assert [handle.result(timeout=40) for handle in neighbours] == [{"text": str(n)} for n in range(4)]
    eventually(lambda: poison.status is Status.FAILED, within=30)
    error = poison.task().error
    assert error is not None
    assert error.code == "poison"
    assert "70" in error.message
    # Twice at most: once among the others, once alone.
    assert read_outcomes(database, poison.id) == [(1, "lost"), (2, "failed")]
    assert {tuple(read_outcomes(database, handle.id)) for handle in neighbours} <= {
        ((1, "completed"),),
        ((1, "lost"), (2, "completed")),
    }
    assert execute(database, "SELECT max(failures) FROM tasks WHERE id <> :id", id=poison.id) == [(0,)]


def test_the_tasks_of_a_dead_engine_go_to_a_worker_whose_engine_is_up(
    system: System, client: Client, database: Database
) -> None:
    running = [client.submit("echo", text=str(n), seconds=6) for n in range(3)]
    eventually(lambda: all(handle.status is Status.IN_PROGRESS for handle in running))
    system.start_worker("other")
    eventually(lambda: execute(database, "SELECT count(*) FROM workers WHERE engine_up") == [(2,)])
    engine_of(system).kill()

    assert all(handle.result(timeout=40) for handle in running)
    sql = "SELECT DISTINCT w.name FROM attempts AS a JOIN workers AS w ON w.id = a.worker_id WHERE attempt = 2"
    assert [name.partition("@")[0] for (name,) in execute(database, sql)] == ["other"]


def test_suspects_run_one_at_a_time(system: System, client: Client, database: Database) -> None:
    client.submit("echo", text="the engine is up").result(timeout=20)
    handles = [client.submit("echo", text=str(n), seconds=0.5) for n in range(4)]
    eventually(lambda: all(handle.status is Status.IN_PROGRESS for handle in handles))
    engine_of(system).kill()
    assert all(handle.result(timeout=40) for handle in handles)

    # Each needs its half second, and nobody shares it.
    sql = "SELECT finished_at FROM attempts WHERE attempt = 2 ORDER BY finished_at"
    ends = [row.finished_at for row in execute(database, sql)]
    assert len(ends) == 4
    assert min((later - earlier).total_seconds() for earlier, later in pairwise(ends)) > 0.4


def test_a_suspect_that_is_cancelled_while_it_waits_to_be_alone_ends_at_once(
    system: System, client: Client, database: Database
) -> None:
    long = client.submit("echo", seconds=600)
    eventually(lambda: long.status is Status.IN_PROGRESS)
    suspect = client.submit("echo", text="suspect", not_before=None)
    execute(database, "UPDATE tasks SET suspect = true WHERE id = :id AND status = 'pending'", id=suspect.id)
    if suspect.status is Status.COMPLETED:
        pytest.skip("it ran before it could be suspected")
    eventually(lambda: suspect.status is Status.IN_PROGRESS)

    began = time.monotonic()
    assert suspect.cancel()
    eventually(lambda: suspect.status is Status.CANCELLED)
    assert time.monotonic() - began < 2
    assert long.status is Status.IN_PROGRESS
    assert _cancel(long)


def _cancel(handle: Handle) -> bool:
    handle.cancel()
    return eventually(lambda: handle.status is Status.CANCELLED)
