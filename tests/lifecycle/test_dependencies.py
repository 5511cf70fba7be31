"""A task waits for those that it depends on: it begins when all have completed, and fails when one has not."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection

from bitinglip.domain.task import QueueState, Status, TaskRequest, make_request
from bitinglip.errors import InvalidRequestError, TaskNotFoundError
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.submit import submit_tasks, submit_within
from bitinglip.lifecycle.waiting import settle
from bitinglip.settings import TaskSettings
from bitinglip.store.database import Database
from bitinglip.store.submissions import mark_parents
from bitinglip.store.tasks import Ending, finish_tasks
from bitinglip.store.waiting import lock_ended_parents, settle_parents
from tests.conftest import eventually
from tests.factories import dispatch, execute, finish, make_echo, make_running, make_worker, read, submit

FAILURE = {"code": "boom", "message": "it broke", "retryable": False}
NOBODY = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def make_child(*parents: uuid.UUID, **fields: Any) -> TaskRequest:
    return make_request("echo", {}, depends_on=list(parents), **fields)


def states(database: Database, *tasks: uuid.UUID) -> list[str]:
    """The queue state of a task that waits, else its status."""
    found = [read(database, task) for task in tasks]
    return [str(task.queue_state or task.status) for task in found]


def end(database: Database, task: uuid.UUID, status: str = "completed") -> None:
    """End a waiting task as if it had run."""
    execute(
        database,
        "UPDATE tasks SET status = CAST(:status AS task_status), queue_state = NULL, finished_at = now(), "
        "error_code = CASE :status WHEN 'completed' THEN NULL ELSE 'boom' END WHERE id = :id",
        id=task,
        status=status,
    )


def test_a_child_is_ready_when_its_parent_has_completed(database: Database) -> None:
    worker = make_worker(database)
    parent = make_running(database, worker)
    (child,) = submit(database, make_child(parent.task_id))
    settle(database)
    assert states(database, child) == ["blocked"]
    assert dispatch(database) == []

    finish(database, worker, parent, result={})
    changes = settle(database)

    assert [(change.task_id, change.status) for change in changes] == [(child, "pending")]
    assert dispatch(database) == [child]
    assert settle(database) == []


def test_a_child_of_a_completed_parent_is_ready(database: Database) -> None:
    (parent,) = submit(database)
    end(database, parent)

    (child,) = submit(database, make_child(parent, parent))
    settle(database)

    assert states(database, child) == ["ready"]


def test_a_failed_parent_fails_its_child_with_the_reason(database: Database) -> None:
    worker = make_worker(database)
    parent = make_running(database, worker)
    (child,) = submit(database, make_child(parent.task_id))

    finish(database, worker, parent, "failed", error=FAILURE)
    settle(database)

    task = read(database, child)
    assert task.error is not None
    assert (task.status, task.error.code) == (Status.FAILED, "dependency_failed")
    reason = "failed: it broke; retry that one, then this"
    assert task.error.message == f"task {parent.task_id}, which it depends on, {reason}"
    assert not task.error.retryable


def test_a_cancelled_parent_fails_its_child_and_its_grandchild(database: Database) -> None:
    (parent,) = submit(database)
    (child,) = submit(database, make_child(parent))
    (grandchild,) = submit(database, make_child(child))

    cancel(database, [parent])
    assert {change.task_id for change in settle(database)} == {child, grandchild}

    assert states(database, child, grandchild) == ["failed", "failed"]
    first, second = read(database, child).error, read(database, grandchild).error
    assert first is not None
    assert second is not None
    assert first.message == f"task {parent}, which it depends on, was cancelled; submit both again"
    assert str(child) in second.message


def test_a_diamond_joins_when_its_last_side_has_completed(database: Database) -> None:
    top = make_echo()
    sides = [make_child(top.id) for _ in range(3)]
    bottom = make_child(*(side.id for side in sides))
    submit(database, top, *sides, bottom)

    end(database, top.id)
    settle(database)
    assert states(database, *(side.id for side in sides), bottom.id) == ["ready", "ready", "ready", "blocked"]
    for number, side in enumerate(sides, start=1):
        end(database, side.id)
        settle(database)
        assert states(database, bottom.id) == ["ready" if number == 3 else "blocked"]


def test_one_failed_side_fails_a_diamond_at_once(database: Database) -> None:
    top = make_echo()
    sides = [make_child(top.id) for _ in range(2)]
    bottom = make_child(*(side.id for side in sides))
    submit(database, top, *sides, bottom)
    end(database, sides[1].id, "failed")

    settle(database)

    assert states(database, bottom.id, sides[0].id) == ["failed", "blocked"]


def test_a_child_with_a_time_is_scheduled_when_nothing_blocks_it(database: Database) -> None:
    (parent,) = submit(database)
    at = execute(database, "SELECT now() + interval '1 hour'")[0][0]
    (child,) = submit(database, make_child(parent, not_before=at))
    end(database, parent)

    settle(database)

    task = read(database, child)
    assert (task.queue_state, task.not_before) == (QueueState.SCHEDULED, at)
    assert task.expires_at is not None
    assert (task.expires_at - at).total_seconds() == pytest.approx(3_600, abs=1)


def test_a_child_that_was_cancelled_stays_so(database: Database) -> None:
    parent, other = submit(database, make_echo(), make_echo())
    first, second = submit(database, make_child(parent), make_child(other))
    cancel(database, [first, second])
    end(database, parent)
    end(database, other, "failed")
    before = [read(database, child) for child in (first, second)]

    assert settle(database) == []

    assert [read(database, child) for child in (first, second)] == before


def check_refused(database: Database, error: type[Exception], words: str, *requests: TaskRequest) -> None:
    before = execute(database, "SELECT id, has_children FROM tasks ORDER BY seq")
    with pytest.raises(error, match=words):
        submit(database, *requests)
    assert execute(database, "SELECT id, has_children FROM tasks ORDER BY seq") == before
    assert execute(database, "SELECT count(*) FROM dependencies") == [(0,)]


def test_what_can_never_be_waited_for_is_refused(database: Database) -> None:
    (other,) = submit(database, make_echo(agent="other"))
    first, second = make_echo(), make_echo()
    circle = [first.model_copy(update={"depends_on": [second.id]}), make_child(first.id, id=second.id)]

    check_refused(database, InvalidRequestError, "comes after the task; submit parents first", *circle)
    check_refused(database, InvalidRequestError, "another agent than 'default'", make_child(other))
    check_refused(database, TaskNotFoundError, str(NOBODY), make_echo(), make_child(NOBODY))
    with pytest.raises(InvalidRequestError, match=r"depends_on: .*: a task cannot wait for itself"):
        make_child(NOBODY, id=NOBODY)
    with pytest.raises(InvalidRequestError, match=r"depends_on: .*at most 1,000"):
        make_child(*(uuid.uuid4() for _ in range(1_001)))


@pytest.mark.parametrize("known", [False, True], ids=["first child", "second child"])
def test_a_parent_that_ends_while_its_child_is_submitted_unblocks_it(database: Database, known: bool) -> None:
    worker = make_worker(database)
    parent = make_running(database, worker)
    if known:
        submit(database, make_child(parent.task_id))
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            mark_parents(connection, [parent.task_id])
            ending = threads.submit(finish, database, worker, parent, result={})
            await_lock(database, connection)
            settle(database)
            child = submit_within(connection, make_child(parent.task_id), TaskSettings())
        assert ending.result()

    settle(database)

    assert states(database, child) == ["ready"]


@pytest.mark.parametrize("known", [False, True], ids=["first child", "second child"])
def test_a_child_that_is_submitted_while_its_parent_ends_is_unblocked(database: Database, known: bool) -> None:
    worker = make_worker(database)
    parent = make_running(database, worker)
    if known:
        submit(database, make_child(parent.task_id))
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            finish_tasks(connection, [Ending(parent.task_id, 1, "completed", result={})], worker)
            submitting = threads.submit(submit, database, make_child(parent.task_id))
            await_lock(database, connection)
        (child,) = submitting.result()

    settle(database)

    assert states(database, child) == ["ready"]


def test_a_child_that_comes_while_its_sister_is_told_is_told_next(database: Database) -> None:
    (parent,) = submit(database)
    (elder,) = submit(database, make_child(parent))
    end(database, parent)
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            locked = lock_ended_parents(connection)
            submitting = threads.submit(submit, database, make_child(parent))
            await_lock(database, connection)
            settle_parents(connection, locked)
        (younger,) = submitting.result()
    assert states(database, elder, younger) == ["ready", "blocked"]

    settle(database)

    assert states(database, elder, younger) == ["ready", "ready"]


def test_parents_and_children_at_once_leave_nothing_blocked(database: Database) -> None:
    worker = make_worker(database, slots=100)
    parents = [make_running(database, worker) for _ in range(30)]
    children: list[uuid.UUID] = []
    start = threading.Barrier(3)
    done = threading.Event()

    def submit_children() -> None:
        start.wait()
        for parent in parents:
            children.extend(submit(database, make_child(parent.task_id)))
            children.extend(submit(database, make_child(parent.task_id)))
        done.set()

    def end_parents() -> None:
        start.wait()
        for parent in parents:
            assert finish(database, worker, parent, result={})

    def settle_all() -> None:
        start.wait()
        while not done.is_set():
            settle(database)

    with ThreadPoolExecutor(3) as threads:
        for running in [threads.submit(step) for step in (submit_children, end_parents, settle_all)]:
            running.result()
    settle(database)

    assert set(states(database, *children)) == {"ready"}


def test_two_dispatchers_that_settle_two_parents_free_their_child_once(database: Database) -> None:
    for _ in range(10):
        pair = submit(database, make_echo(), make_echo())
        (child,) = submit(database, make_child(*pair))
        for parent in pair:
            end(database, parent)
        with ThreadPoolExecutor(4) as threads:
            told = [threads.submit(settle, database) for _ in range(4)]
            assert [change.task_id for one in told for change in one.result()] == [child]
        assert states(database, child) == ["ready"]


def await_lock(database: Database, holder: Connection) -> None:
    """Return when another transaction waits for a row that this one holds."""
    pid = holder.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    sql = "SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))"
    eventually(lambda: execute(database, sql, pid=pid)[0][0])


def test_a_batch_is_refused_whole(database: Database) -> None:
    with pytest.raises(TaskNotFoundError):
        submit_tasks(database, [make_echo(), make_echo(), make_child(NOBODY)], TaskSettings())

    assert execute(database, "SELECT count(*) FROM tasks") == [(0,)]
