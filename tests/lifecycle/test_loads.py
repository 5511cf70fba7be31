"""A model that cannot be loaded: where it is not tried for a while, and when it is given up."""

import uuid

import pytest

from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.lifecycle.loads import LoadVerdict, note_models, report_load_failure
from bitinglip.store.database import Database
from bitinglip.store.models import ModelSize
from tests.factories import execute, make_running, make_worker, read, submit

BROKEN = "/models/broken"


def make_text(model: str = BROKEN) -> TaskRequest:
    return make_request("text", {"prompt": "hello"}, model=model)


def make_loader(database: Database, name: str, **fields: object) -> uuid.UUID:
    return make_worker(database, name, kinds=("text",), **fields)  # type: ignore[arg-type]


def report(database: Database, worker: str, message: str = "no such kernel", model: str = BROKEN) -> LoadVerdict:
    return report_load_failure(database, type_="text", model=model, worker_name=worker, message=message)


def pass_time(database: Database) -> None:
    """As if every failed load might be tried again by now."""
    execute(database, "UPDATE load_failures SET retry_at = now()")


def read_pair(database: Database, worker: str) -> tuple[int, float]:
    """Failures so far, and the seconds from the last one to the next try."""
    sql = "SELECT failures, extract(epoch FROM retry_at - failed_at)::float8 FROM load_failures WHERE worker_name = :w"
    failures, seconds = execute(database, sql, w=worker)[0]
    return failures, seconds


def test_each_failure_makes_the_next_try_wait_longer_up_to_a_bound(database: Database) -> None:
    for name in ("a", "b", "c"):
        make_loader(database, name)
    waits = []
    for number in range(1, 10):
        report(database, "a")
        failures, seconds = read_pair(database, "a")
        assert failures == number
        waits.append(seconds)
        pass_time(database)

    assert waits == [5, 10, 20, 40, 80, 160, 320, 600, 600]


def test_tasks_that_were_under_way_tell_of_the_same_failure(database: Database) -> None:
    make_loader(database, "a")
    for _ in range(8):
        verdict = report(database, "a")

    assert read_pair(database, "a") == (1, 5.0)
    assert verdict.given_up is None


def test_a_failure_of_long_ago_does_not_count(database: Database) -> None:
    for name in ("a", "b"):
        make_loader(database, name)
    for _ in range(3):
        report(database, "a")
        pass_time(database)
    execute(database, "UPDATE load_failures SET failed_at = now() - interval '2 hours'")

    assert report(database, "b").given_up is None
    report(database, "a")
    assert read_pair(database, "a") == (1, 5.0)


def test_what_waits_for_a_model_that_two_workers_could_not_load_fails_with_their_reasons(database: Database) -> None:
    for name in ("a", "b", "c"):
        make_loader(database, name)
    waiting = submit(database, *(make_text() for _ in range(3)))
    other, running = (
        submit(database, make_text("/models/other"))[0],
        make_running(database, make_loader(database, "busy"), make_text()),
    )
    assert report(database, "a", "no such kernel").failed == []

    verdict = report(database, "b", "out of \x00 memory \ud800")

    assert verdict.given_up is not None
    assert {change.task_id for change in verdict.failed} == set(waiting)
    for task in waiting:
        record = read(database, task)
        assert record.status == "failed"
        assert record.error is not None
        assert (record.error.code, record.error.retryable) == ("model_load_failed", False)
        assert "on worker a: no such kernel" in record.error.message
        assert "on worker b: out of \N{REPLACEMENT CHARACTER} memory" in record.error.message
    assert read(database, other).status == "pending"
    assert read(database, running).status == "in_progress"


def test_more_tasks_than_one_statement_fails_are_all_failed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.store.loads.BATCH", 2)
    monkeypatch.setattr("bitinglip.lifecycle.loads.BATCH", 2)
    waiting = submit(database, *(make_text() for _ in range(5)))
    report(database, "a")

    assert {change.task_id for change in report(database, "b").failed} == set(waiting)


def test_the_only_worker_that_could_load_a_model_has_three_tries(database: Database) -> None:
    make_loader(database, "a")
    make_worker(database, "no text")
    make_loader(database, "others only", allowed_models=["/models/other"])
    make_loader(database, "too small", memory_limit_bytes=1_000)
    note_models(database, [ModelSize(BROKEN, weight_bytes=2_000)], worker_name="a", loaded=[])
    task = submit(database, make_text())[0]
    for _ in range(2):
        assert report(database, "a").given_up is None
        pass_time(database)
    assert read(database, task).status == "pending"

    assert report(database, "a").given_up is not None
    assert read(database, task).status == "failed"


def test_while_another_worker_could_load_it_one_worker_alone_does_not_give_a_model_up(database: Database) -> None:
    make_loader(database, "a")
    make_loader(database, "b")
    for _ in range(5):
        assert report(database, "a").given_up is None
        pass_time(database)


def test_a_model_that_another_worker_holds_is_not_given_up(database: Database) -> None:
    make_loader(database, "holder", models=[BROKEN])
    report(database, "a")

    assert report(database, "b").given_up is None


def test_a_worker_that_has_loaded_the_model_is_forgiven(database: Database) -> None:
    for name in ("a", "b"):
        report(database, name)

    note_models(database, [ModelSize(BROKEN, held_bytes=10)], worker_name="a", loaded=[BROKEN])

    assert execute(database, "SELECT worker_name FROM load_failures") == [("b",)]


def test_the_most_that_a_model_took_counts_until_its_weights_are_others(database: Database) -> None:
    def note(weights: int | None, held: int | None) -> tuple[int, int]:
        note_models(database, [ModelSize("m", weights, held)], worker_name="a", loaded=[])
        row = execute(database, "SELECT weight_bytes, held_bytes FROM models")[0]
        return row[0], row[1]

    assert note(100, None) == (100, None)
    assert note(None, 120) == (100, 120)
    assert note(100, 110) == (100, 120)
    assert note(100, 130) == (100, 130)
    assert note(100, None) == (100, 130)
    assert note(90, 95) == (90, 95)


def test_what_is_known_already_is_not_written_again(database: Database) -> None:
    for _ in range(2):
        note_models(database, [ModelSize("m", 100, 120)], worker_name="a", loaded=[])
        written = execute(database, "SELECT xmin, updated_at FROM models")
    note_models(database, [ModelSize("m", 100, 110)], worker_name="a", loaded=[])

    assert execute(database, "SELECT xmin, updated_at FROM models") == written
