"""A download that is asked for is one task, however many ask for its model."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitinglip.domain.models import ModelSource, ModelStatus
from bitinglip.domain.task import make_request
from bitinglip.errors import InvalidRequestError, LimitExceededError
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.submit import submit_within
from bitinglip.store.database import Database
from bitinglip.store.entries import list_entries, set_removing
from tests.factories import execute, finish, make_echo, read
from tests.lifecycle.fetched import (
    ERROR,
    MODEL,
    SETTINGS,
    begin,
    entry_of,
    list_downloads,
    make_download,
    make_fetcher,
    store,
    submit,
)


def test_a_download_is_registered_with_its_task(database: Database) -> None:
    (task,) = submit(database, make_download("org/name", agent_id="ann"))

    entry = entry_of(database)
    assert (entry.record.source, entry.record.repo, entry.record.revision) == (ModelSource.HUB, "org/name", None)
    assert (entry.status, entry.download_task_id) == (ModelStatus.QUEUED, task)
    found = read(database, task)
    assert (found.agent_id, found.model, found.payload, found.max_attempts) == ("ann", None, {"model": MODEL}, 5)


def test_fifty_agents_that_ask_for_one_model_at_once_are_given_one_task(database: Database) -> None:
    opened = [Database(database.url.render_as_string(hide_password=False), connections=1) for _ in range(10)]
    start = threading.Barrier(10)

    def ask(number: int) -> list[uuid.UUID]:
        start.wait()
        return [submit(opened[number], make_download(agent_id=f"agent-{number}-{turn}"))[0] for turn in range(5)]

    with ThreadPoolExecutor(10) as pool:
        ids = {task for answer in pool.map(ask, range(10)) for task in answer}
    for own in opened:
        own.close()

    assert [*ids] == list_downloads(database)
    assert len(ids) == 1
    assert entry_of(database).download_task_id in ids


def test_every_way_to_write_a_model_is_the_same_download(database: Database) -> None:
    first = submit(
        database,
        make_download("org/name"),
        make_download("org/name@main"),
        make_request("download", {"model": "org/name", "revision": "main"}),
        make_request("download", {}, model="org/name"),
    )
    other = submit(database, make_download("org/name@v2"))

    assert len(set(first)) == 1
    assert set(other).isdisjoint(first)
    assert entry_of(database, "org/name@v2").record.revision == "v2"


def test_a_running_download_is_joined_and_an_ended_one_is_not(database: Database) -> None:
    worker = make_fetcher(database)
    (first,) = submit(database, make_download())
    bell = begin(database, worker, first)
    assert submit(database, make_download(agent_id="bob")) == [first]

    finish(database, worker, bell, "failed", error=ERROR)
    (second,) = submit(database, make_download(agent_id="bob"))

    assert second != first
    assert entry_of(database).download_task_id == second
    cancel(database, [second])
    (third,) = submit(database, make_download())
    assert third not in {first, second}


def test_a_download_that_is_being_cancelled_is_not_joined(database: Database) -> None:
    worker = make_fetcher(database)
    (first,) = submit(database, make_download())
    begin(database, worker, first)
    cancel(database, [first])

    assert submit(database, make_download()) != [first]


def test_a_download_of_what_is_here_is_a_task_all_the_same(database: Database) -> None:
    store(database)

    (task,) = submit(database, make_download())

    assert read(database, task).queue_state == "ready"
    assert entry_of(database).status is ModelStatus.AVAILABLE


def test_a_model_that_is_removed_is_wanted_again_by_a_download(database: Database) -> None:
    store(database)
    with database.transaction() as connection:
        set_removing(connection, MODEL)
    assert entry_of(database).status is ModelStatus.REMOVING

    submit(database, make_download())

    assert entry_of(database).status is ModelStatus.AVAILABLE


def test_a_batch_is_recorded_in_its_order_whatever_it_joins(database: Database) -> None:
    (known,) = submit(database, make_download())
    download, echo = make_download(agent_id="bob"), make_echo(agent="bob")
    child = make_request("echo", {}, agent_id="bob", depends_on=[download.id, echo.id])

    ids = submit(database, download, echo, make_download("org/other", agent_id="bob"), child)

    assert ids[0] == known
    assert ids[1] == echo.id
    assert read(database, child.id).depends_on == [known, echo.id]
    assert len(list_downloads(database)) == 2


def test_a_refused_download_registers_nothing(database: Database) -> None:
    execute(database, "INSERT INTO agents (id, max_queued) VALUES ('bob', 1)")
    with pytest.raises(LimitExceededError):
        submit(database, make_echo(agent="bob"), make_download(agent_id="bob"))
    submit(database, make_echo(agent="bob"))
    with database.transaction() as connection, pytest.raises(LimitExceededError):
        submit_within(connection, make_download(agent_id="bob"), SETTINGS)

    with database.transaction() as connection:
        assert list_entries(connection) == []


def test_a_key_finds_its_download_again_and_is_not_spent_by_joining(database: Database) -> None:
    worker = make_fetcher(database)
    (first,) = submit(database, make_download(agent_id="ann", idempotency_key="k"))
    finish(database, worker, begin(database, worker, first), result={})
    (second,) = submit(database, make_download(agent_id="bob"))

    assert submit(database, make_download(agent_id="ann", idempotency_key="k")) == [first]
    assert submit(database, make_download(agent_id="ann", idempotency_key="new")) == [second]
    with pytest.raises(InvalidRequestError, match="was used for task"):
        submit(database, make_download("org/other", agent_id="ann", idempotency_key="k"))


def test_a_recurring_download_joins_too(database: Database) -> None:
    (known,) = submit(database, make_download())

    with database.transaction() as connection:
        assert submit_within(connection, make_download(agent_id="beat"), SETTINGS) == known
