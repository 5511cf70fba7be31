"""An idempotency key is one task, whoever submits with it, how often, and at the same time as whom."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bitinglip.client import Client
from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.errors import InvalidRequestError
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.settings import ServerUrls, TaskSettings
from bitinglip.store.database import Database
from tests.factories import execute, finish, make_echo, make_running, make_worker, read

SETTINGS = TaskSettings(max_queue_size=10_000)


def make_keyed(key: str = "k", text: str = "hi", **fields: Any) -> TaskRequest:
    return make_request("echo", {"text": text}, idempotency_key=key, **fields)


def count_tasks(database: Database) -> int:
    return int(execute(database, "SELECT count(*) FROM tasks")[0][0])


@pytest.mark.parametrize("size", [1, 3], ids=["singles", "batches"])
def test_50_threads_with_one_key_get_one_task(urls: ServerUrls, database: Database, size: int) -> None:
    start = threading.Barrier(50)

    def submit_keyed(_: int) -> list[uuid.UUID]:
        own = Database(urls.database_url, connections=1)
        start.wait()
        ids = submit_tasks(own, [make_keyed(f"k{n}") for n in range(size)], SETTINGS)
        own.close()
        return ids

    with ThreadPoolExecutor(50) as threads:
        answers = {tuple(ids) for ids in threads.map(submit_keyed, range(50))}

    assert len(answers) == 1
    assert count_tasks(database) == size
    assert all(read(database, task).payload == {"text": "hi"} for task in answers.pop())


def test_a_key_names_its_task_also_after_its_end(database: Database) -> None:
    doorbell = make_running(database, make_worker(database, "w"), make_keyed())
    finish(database, execute(database, "SELECT id FROM workers")[0][0], doorbell, result={})

    assert submit_tasks(database, [make_keyed()], SETTINGS) == [doorbell.task_id]


def test_keys_belong_to_agents(database: Database) -> None:
    first = submit_tasks(database, [make_keyed(agent_id="a"), make_keyed(agent_id="b")], SETTINGS)

    assert len(set(first)) == 2
    assert submit_tasks(database, [make_keyed(agent_id="b")], SETTINGS) == first[1:]


@pytest.mark.parametrize("single", [True, False], ids=["single", "batch"])
def test_the_same_key_for_something_else_is_refused_and_nothing_recorded(database: Database, single: bool) -> None:
    (known,) = submit_tasks(database, [make_keyed(text="hi")], SETTINGS)
    others = [] if single else [make_echo(text="new"), make_keyed("other")]

    with pytest.raises(InvalidRequestError, match=f"idempotency_key: 'k': was used for task {known}, which asks for"):
        submit_tasks(database, [*others, make_keyed(text="ho")], SETTINGS)

    assert count_tasks(database) == 1
    assert read(database, known).payload == {"text": "hi"}


def test_one_batch_may_not_use_a_key_for_two_things(database: Database) -> None:
    with pytest.raises(InvalidRequestError, match="idempotency_key"):
        submit_tasks(database, [make_keyed(text="hi"), make_keyed(text="ho")], SETTINGS)

    assert count_tasks(database) == 0
    assert len(set(submit_tasks(database, [make_keyed(), make_keyed()], SETTINGS))) == 1


def test_a_repeated_batch_gives_the_tasks_of_the_first_and_new_children_wait_for_them(database: Database) -> None:
    def make_pair(*children: str) -> list[TaskRequest]:
        parent = make_keyed("parent")
        return [parent, *(make_keyed(child, depends_on=[parent.id]) for child in children)]

    first = submit_tasks(database, make_pair("child"), SETTINGS)
    again = submit_tasks(database, make_pair("child", "sister"), SETTINGS)

    assert again[:2] == first
    assert read(database, again[2]).depends_on == first[:1]
    assert execute(database, "SELECT count(*) FROM dependencies") == [(2,)]


def test_a_full_queue_still_gives_the_task_that_it_has(database: Database) -> None:
    small = TaskSettings(max_queue_size=100)
    (known,) = submit_tasks(database, [make_keyed()], small)
    submit_tasks(database, [make_echo() for _ in range(99)], small)

    assert submit_tasks(database, [make_keyed()], small) == [known]


def test_a_client_announces_a_task_only_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[uuid.UUID]] = []
    monkeypatch.setattr(client.events, "announce_queued", lambda _, ids: told.append(list(ids)))

    first = client.submit("echo", idempotency_key="k")
    again = client.submit("echo", idempotency_key="k")

    assert first.id == again.id
    assert told == [[first.id]]


def test_a_repeated_parent_and_its_child_from_many_threads_are_one_parent(urls: ServerUrls, database: Database) -> None:
    start = threading.Barrier(12)

    def submit_both(number: int) -> uuid.UUID:
        own = Database(urls.database_url, connections=1)
        parent = make_request("echo", {"text": "parent"}, idempotency_key="parent")
        child = make_request("echo", {"text": f"child {number}"}, depends_on=[parent.id])
        start.wait()
        recorded = submit_tasks(own, [parent, child], TaskSettings())
        own.close()
        return recorded[0]

    with ThreadPoolExecutor(12) as threads:
        parents = set(threads.map(submit_both, range(12)))

    assert len(parents) == 1
    assert execute(database, "SELECT count(*), count(DISTINCT parent_id) FROM dependencies") == [(12, 1)]


def test_a_key_that_stands_twice_in_a_batch_is_one_parent(database: Database) -> None:
    first, second = (make_request("echo", {"text": "p"}, idempotency_key="k") for _ in range(2))
    child = make_request("echo", {}, depends_on=[second.id])

    assert submit_tasks(database, [first, second, child], TaskSettings()) == [first.id, first.id, child.id]
    assert execute(database, "SELECT parent_id FROM dependencies") == [(first.id,)]
