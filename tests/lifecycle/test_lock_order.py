"""Whoever writes to many rows locks them in one order, or two of them would wait for each other.

The first row is held: a statement that waits for it must not hold any other.
"""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text

from bitinglip.domain.task import TaskRequest
from bitinglip.lifecycle import edit
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.finish import finish_attempts
from bitinglip.lifecycle.lease import drain
from bitinglip.lifecycle.rescue import free_tasks
from bitinglip.lifecycle.waiting import wake_due
from bitinglip.store.database import Database
from bitinglip.store.lanes import LaneKey, list_new_lanes, mark_emptied
from bitinglip.store.queues import recheck_emptied
from bitinglip.store.tasks import Doorbell, Ending
from tests.conftest import eventually
from tests.factories import execute, make_echo, make_worker, submit

COUNT = 24
"""Tasks, each of an agent of its own. By chance the first of so many is not the first to be locked."""

ERROR = {"code": "x", "message": "y"}

RESERVED = "UPDATE tasks SET queue_state = 'reserved', worker_id = :worker, reserved_at = now()"
RUNNING = "UPDATE tasks SET status = 'in_progress', queue_state = NULL, worker_id = :worker, started_at = now()"
SCHEDULED = "UPDATE tasks SET queue_state = 'scheduled', not_before = now()"
BLOCKED = "UPDATE tasks SET queue_state = 'blocked'"
FAILED = "UPDATE tasks SET status = 'failed', queue_state = NULL, error_code = 'x', finished_at = now()"

QUEUES = "queues", "type, model, agent_id, priority"
TASKS = "tasks", "id"


class Case:
    """Tasks that stand where one statement finds them; given to it in a confused order."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.worker = make_worker(database, slots=COUNT)
        requests = [make_echo(agent=f"agent-{number:02}") for number in range(COUNT)]
        self.requests = [requests[(number * 7 + 5) % COUNT] for number in range(COUNT)]
        submit(database, *self.requests)
        for request in self.requests:
            # The rows of a table stand in the order in which they were written.
            execute(database, "UPDATE queues SET type = type WHERE agent_id = :agent", agent=request.agent_id)
        self.tasks = [request.id for request in self.requests]
        self.bells = [Doorbell(task, 1) for task in self.tasks]
        self.queues = [LaneKey("echo", "", request.agent_id, "medium") for request in self.requests]

    def make_again(self) -> list[TaskRequest]:
        return [make_echo(agent=request.agent_id) for request in self.requests]

    def do(self, write: Callable[[Connection], object]) -> None:
        with self.database.transaction() as connection:
            write(connection)

    def end(self, outcome: str) -> None:
        ending: dict[str, Any] = {"error": ERROR} if outcome == "released" else {"result": {}}
        finish_attempts(self.database, [Ending(task, 1, outcome, **ending) for task in self.tasks], self.worker)

    def lose(self) -> list[Any]:
        execute(self.database, "UPDATE workers SET state = 'gone'")
        return free_tasks(self.database)


@pytest.mark.parametrize(
    ("rows", "place", "write"),
    [
        pytest.param(QUEUES, None, lambda case: submit(case.database, *case.make_again()), id="submit"),
        pytest.param(QUEUES, SCHEDULED, lambda case: wake_due(case.database), id="wake"),
        pytest.param(QUEUES, RESERVED, lambda case: drain(case.database, case.worker), id="drain"),
        pytest.param(QUEUES, RUNNING, Case.lose, id="rescue"),
        pytest.param(QUEUES, RUNNING, lambda case: case.end("released"), id="release"),
        pytest.param(QUEUES, FAILED, lambda case: edit.retry(case.database, case.tasks), id="retry"),
        pytest.param(QUEUES, None, lambda case: case.do(recheck_emptied), id="recheck"),
        pytest.param(TASKS, RESERVED, lambda case: claim_reserved(case.database, case.bells, case.worker), id="claim"),
        pytest.param(TASKS, RUNNING, lambda case: case.end("completed"), id="finish"),
        pytest.param(TASKS, None, lambda case: cancel(case.database, case.tasks), id="cancel"),
        pytest.param(TASKS, FAILED, lambda case: edit.retry(case.database, case.tasks), id="retry-task"),
        pytest.param(TASKS, FAILED, lambda case: edit.delete(case.database, case.tasks), id="delete"),
    ],
)
def test_rows_are_locked_in_one_order(
    database: Database, rows: tuple[str, str], place: str | None, write: Callable[[Case], object]
) -> None:
    table, order = rows
    case = Case(database)
    if place:
        values: dict[str, uuid.UUID] = {"worker": case.worker} if ":worker" in place else {}
        execute(database, place, **values)
    if rows is QUEUES:
        execute(database, "UPDATE queues SET has_ready = false, emptied_at = now()")

    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as first:
            first.execute(text(f"SELECT FROM {table} ORDER BY {order} LIMIT 1 FOR NO KEY UPDATE"))
            writing = threads.submit(write, case)
            eventually(lambda: execute(database, "SELECT FROM pg_locks WHERE NOT granted"))
            free = execute(database, f"SELECT FROM {table} FOR NO KEY UPDATE SKIP LOCKED")
            assert len(free) == COUNT - 1
        writing.result(timeout=10)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda case, one: mark_emptied(one, case.queues), id="empty"),
        pytest.param(lambda case, one: list_new_lanes(one, [], ["echo"]), id="list"),
    ],
)
def test_a_dispatcher_waits_for_no_queue(database: Database, write: Callable[[Case, Connection], object]) -> None:
    case = Case(database)
    execute(database, BLOCKED)
    with database.transaction() as first:
        first.execute(text("SELECT FROM queues WHERE agent_id = 'agent-03' FOR NO KEY UPDATE"))
        case.do(lambda connection: write(case, connection))

    changed = "SELECT count(*) FROM queues WHERE listed OR NOT has_ready"
    assert execute(database, changed) == [(COUNT - 1,)]
