"""Records are changed and deleted as asked, or not at all; what is old leaves by itself."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bitinglip.domain.task import Priority, Status, TaskRequest, make_request
from bitinglip.errors import ConflictError, InvalidRequestError, LimitExceededError, TaskNotFoundError
from bitinglip.lifecycle import edit
from bitinglip.lifecycle.agents import edit_agent
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.edit import delete, make_edit, purge, update
from bitinglip.lifecycle.submit import submit_within
from bitinglip.lifecycle.waiting import settle
from bitinglip.settings import TaskSettings
from bitinglip.store.database import Database
from bitinglip.store.submissions import mark_parents
from tests.conftest import eventually
from tests.factories import dispatch, execute, finish, make_echo, make_reserved, make_running, make_worker, read, submit


def make_child(*parents: uuid.UUID) -> TaskRequest:
    return make_request("echo", {}, depends_on=list(parents))


def change(database: Database, task: uuid.UUID, **fields: Any) -> None:
    update(database, task, make_edit(fields))


def count_tasks(database: Database) -> int:
    return int(execute(database, "SELECT count(*) FROM tasks")[0][0])


def test_what_is_given_is_changed_and_metadata_merged(database: Database) -> None:
    (task,) = submit(database, make_request("echo", {}, title="Old", metadata={"a": 1, "b": {"c": 2}}))

    change(database, task, description="Why", metadata={"b": 3, "d": 4})

    record = read(database, task)
    assert (record.title, record.description, record.metadata) == ("Old", "Why", {"a": 1, "b": 3, "d": 4})
    change(database, task, title="New")
    assert (read(database, task).title, read(database, task).description) == ("New", "Why")


def test_a_more_urgent_priority_is_served_earlier(database: Database) -> None:
    first, second = submit(database, make_echo(), make_echo())

    change(database, second, priority="high")

    make_worker(database)
    assert dispatch(database) == [second, first]


def test_the_title_of_an_ended_task_may_change(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    finish(database, worker, doorbell, result={"text": "x"})

    change(database, doorbell.task_id, title="For the records")

    assert read(database, doorbell).title == "For the records"
    assert read(database, doorbell).result == {"text": "x"}


@pytest.mark.parametrize("state", ["reserved", "running", "completed"])
def test_the_priority_of_what_waits_no_more_is_not_changed(database: Database, state: str) -> None:
    worker = make_worker(database)
    doorbell = make_reserved(database, worker) if state == "reserved" else make_running(database, worker)
    if state == "completed":
        finish(database, worker, doorbell, result={})
    before = read(database, doorbell)

    with pytest.raises(ConflictError, match="waits no more"):
        change(database, doorbell.task_id, title="New", priority="high")

    assert read(database, doorbell) == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "completed"}, "status: 'completed': is not set by hand; cancel the task, or retry it"),
        ({"attempt": 7}, "attempt: 7: no such field"),
        ({"title": ""}, "title: '': too short"),
        ({"title": "t" * 201}, "title: .*at most 200"),
        ({"description": "d" * 2_001}, "description: .*at most 2,000"),
        ({"priority": "urgent"}, "priority: 'urgent'"),
        ({"metadata": {"a": "b" * 70_000}}, "metadata: .*65,536"),
        ({"metadata": {"a": "\x00"}}, "metadata: .*NUL"),
    ],
)
def test_what_may_not_be_written_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        make_edit(fields)


def test_metadata_does_not_grow_beyond_its_bound_by_merging(database: Database) -> None:
    (task,) = submit(database, make_request("echo", {}, metadata={"a": "x" * 40_000}))
    before = read(database, task)

    with pytest.raises(InvalidRequestError, match=r"metadata: .*with what is there, it is 80,0.. bytes"):
        change(database, task, metadata={"b": "y" * 40_000})

    assert read(database, task) == before
    change(database, task, metadata={"a": "y" * 40_000})


def test_an_agents_bound_on_priority_holds_for_changes_too(database: Database) -> None:
    (task,) = submit(database, make_echo(agent="bot", priority="low"))
    edit_agent(database, "bot", max_priority="medium")

    with pytest.raises(LimitExceededError, match="up to priority medium, not high"):
        change(database, task, priority="high")

    assert read(database, task).priority is Priority.LOW
    change(database, task, priority="medium")


def test_a_task_that_nobody_knows_is_not_changed(database: Database) -> None:
    with pytest.raises(TaskNotFoundError):
        change(database, uuid.uuid4(), title="New")


def test_a_waiting_task_is_deleted_with_everything_of_it(database: Database) -> None:
    (task,) = submit(database)

    assert [deleted.task_id for deleted in delete(database, [task, uuid.uuid4()])] == [task]

    for table in ("tasks", "task_details", "attempts"):
        assert execute(database, f"SELECT count(*) FROM {table}") == [(0,)]
    make_worker(database)
    assert dispatch(database) == []


def test_an_ended_task_is_deleted_with_its_attempts(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    finish(database, worker, doorbell, result={})

    delete(database, [doorbell.task_id])

    assert execute(database, "SELECT count(*) FROM attempts") == [(0,)]
    assert not finish(database, worker, doorbell, result={})


def test_a_running_task_is_not_deleted(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    before = read(database, doorbell)

    assert delete(database, [doorbell.task_id]) == []

    assert read(database, doorbell) == before
    assert finish(database, worker, doorbell, result={})


def test_a_reserved_task_is_deleted_and_its_doorbell_rings_in_vain(database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_reserved(database, worker)

    assert len(delete(database, [doorbell.task_id])) == 1
    assert claim_reserved(database, [doorbell], worker) == [None]


def test_a_parent_that_others_wait_for_is_left_as_it_is(database: Database) -> None:
    (parent,) = submit(database)
    (child,) = submit(database, make_child(parent))
    before = read(database, parent), read(database, child)

    assert delete(database, [parent]) == []

    assert (read(database, parent), read(database, child)) == before


def test_a_parent_is_deleted_together_with_its_children(database: Database) -> None:
    (parent,) = submit(database)
    (child,) = submit(database, make_child(parent))
    (grandchild,) = submit(database, make_child(child, parent))

    assert len(delete(database, [parent, child, grandchild])) == 3
    assert count_tasks(database) == 0


def test_a_chain_with_a_child_outside_is_not_broken(database: Database) -> None:
    (parent,) = submit(database)
    (child,) = submit(database, make_child(parent))
    (grandchild,) = submit(database, make_child(child))

    delete(database, [parent, child])
    settle(database)

    assert [read(database, task).queue_state for task in (parent, child, grandchild)] == ["ready", "blocked", "blocked"]


def test_a_parent_whose_children_know_is_deleted_and_they_keep_their_ending(database: Database) -> None:
    (parent,) = submit(database)
    (child,) = submit(database, make_child(parent))
    cancel(database, [parent])
    settle(database)

    assert len(delete(database, [parent])) == 1
    assert read(database, child).status is Status.FAILED


def test_a_child_that_is_submitted_while_its_parent_is_deleted_never_waits_for_nothing(database: Database) -> None:
    worker = make_worker(database)
    parent = make_running(database, worker)
    finish(database, worker, parent, result={})
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            mark_parents(connection, [parent.task_id])
            deleting = threads.submit(delete, database, [parent.task_id])
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))"
            eventually(lambda: execute(database, blocked, pid=pid)[0][0])
            child = submit_within(connection, make_child(parent.task_id), TaskSettings())
        assert deleting.result() == []
    settle(database)

    assert dispatch(database) == [child]


def make_old(database: Database, count: int, *, days: int) -> list[uuid.UUID]:
    tasks = submit(database, *(make_echo() for _ in range(count)))
    execute(
        database,
        "UPDATE tasks SET status = 'completed', queue_state = NULL, created_at = now() - make_interval(days => :days), "
        "finished_at = now() - make_interval(days => :days) WHERE id = ANY(CAST(:ids AS uuid[]))",
        days=days,
        ids=[str(task) for task in tasks],
    )
    return tasks


def test_what_finished_long_ago_leaves_in_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "BATCH", 10)
    make_old(database, 25, days=31)
    young = make_old(database, 2, days=29)
    waiting = submit(database)
    execute(database, "UPDATE tasks SET created_at = now() - interval '99 days' WHERE id = :id", id=waiting[0])

    assert purge(database, TaskSettings(retention_days=30)) == 25

    assert {task for (task,) in execute(database, "SELECT id FROM tasks")} == {*young, *waiting}
    assert execute(database, "SELECT count(*) FROM task_details") == [(3,)]
    assert purge(database, TaskSettings(retention_days=30)) == 0


def test_a_parent_stays_until_its_children_know(database: Database) -> None:
    (parent,) = make_old(database, 1, days=31)
    (child,) = submit(database, make_child(parent))

    assert purge(database, TaskSettings(retention_days=30)) == 0
    settle(database)

    assert purge(database, TaskSettings(retention_days=30)) == 1
    make_worker(database)
    assert dispatch(database) == [child]


def test_two_purges_at_once_delete_each_task_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "BATCH", 10)
    make_old(database, 60, days=31)
    with ThreadPoolExecutor(3) as threads:
        purges = [threads.submit(purge, database, TaskSettings(retention_days=30)) for _ in range(3)]
        assert sum(one.result() for one in purges) <= 60

    purge(database, TaskSettings(retention_days=30))
    assert count_tasks(database) == 0


def test_a_purge_forgets_workers_that_left_long_ago_and_hold_nothing(database: Database) -> None:
    for name in ("alive", "left", "left lately", "left with a task"):
        worker = make_worker(database, name)
        if name == "left with a task":
            make_running(database, worker)
        if name != "alive":
            ago = 1 if name == "left lately" else 31
            sql = "UPDATE workers SET state = 'gone', last_seen_at = now() - make_interval(days => :ago) WHERE id = :id"
            execute(database, sql, ago=ago, id=worker)

    purge(database, TaskSettings(retention_days=30))

    names = {name for (name,) in execute(database, "SELECT name FROM workers")}
    assert names == {"alive", "left lately", "left with a task"}
