"""What the tables say, read from outside, and what must hold of it whatever has happened.

`LEGAL` is the table of transitions: which action may move a task from where to where, and at what price. A pending
task's place is its queue state, any other's its status; None is before its submission and after its deletion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bitinglip.store.consistency import RULES
from bitinglip.store.database import Database
from bitinglip.store.queues import DEPTH

WAITING = ("ready", "reserved", "scheduled", "blocked")

Price = frozenset[tuple[int, int]]
"""Allowed growth of (attempt, failures)."""

FREE: Price = frozenset({(0, 0)})
ATTEMPT: Price = frozenset({(1, 0)})
FAILURE: Price = frozenset({(0, 1)})
BOTH: Price = frozenset({(1, 1)})

LOSS: Mapping[tuple[str | None, str | None], Price] = {
    ("reserved", "ready"): FREE,
    ("in_progress", "ready"): ATTEMPT,
    ("in_progress", "cancelled"): FREE,
    ("in_progress", "failed"): FREE,
}

LEGAL: Mapping[str, Mapping[tuple[str | None, str | None], Price]] = {
    "submit": {(None, place): FREE for place in ("ready", "scheduled", "blocked")},
    "dispatch": {("ready", "reserved"): FREE},
    "claim": {("reserved", "in_progress"): FREE},
    "give_way": {("reserved", "ready"): FREE},
    "take": {("ready", "in_progress"): FREE},
    "finish": {
        ("in_progress", "completed"): FREE,
        ("in_progress", "failed"): FAILURE,
        ("in_progress", "cancelled"): FREE | FAILURE,
        ("in_progress", "scheduled"): BOTH,
        ("in_progress", "ready"): ATTEMPT,
    },
    "cancel": {(place, "cancelled"): FREE for place in WAITING},
    "drain": {("reserved", "ready"): FREE},
    "rescue": LOSS,
    "wake": {("scheduled", "ready"): FREE},
    "expire": {("ready", "failed"): FREE, ("scheduled", "failed"): FREE},
    "settle": {("blocked", place): FREE for place in ("ready", "scheduled", "failed")},
    # What failed before counts no more.
    "retry": {("failed", "ready"): FREE | ATTEMPT, ("failed", "blocked"): FREE | ATTEMPT},
    "delete": {(place, None): FREE for place in (*WAITING, "completed", "failed", "cancelled")},
    "nothing": {},
}

_TASKS = """
SELECT t.id, coalesce(t.queue_state::text, t.status::text) AS place, t.attempt, t.failures, t.max_attempts, t.type,
       t.model, t.agent_id, t.priority, t.idempotency_key, t.worker_id, t.has_children, t.suspect,
       t.cancel_requested_at, t.started_at, t.finished_at, t.error_code, d.error ->> 'code' AS error, d.result
FROM tasks AS t LEFT JOIN task_details AS d ON d.task_id = t.id ORDER BY t.seq
"""
_ATTEMPTS = "SELECT task_id, attempt, worker_id, outcome FROM attempts ORDER BY task_id, attempt"
_WORKERS = (
    "SELECT id, name, state, slots, kinds, pid, yields, lease_expires_at > now() AS alive"
    " FROM workers ORDER BY started_at"
)
_LANES = "SELECT type, model, agent_id, priority FROM queues WHERE has_ready"
_CHARGES = ("in_flight", "lane_missing", "lane_left_over", "lane_time")
"""Rules that only hold if whatever takes a task from its worker settles its charge, exactly once."""
_DRIFT = " UNION ALL ".join(
    f"SELECT '{rule.code}' AS code, example FROM ({rule.find}) AS {rule.code}"
    for rule in RULES
    if rule.code in _CHARGES
)
_DEPENDENCIES = "SELECT child_id, parent_id FROM dependencies ORDER BY child_id, parent_id"


@dataclass(frozen=True)
class Observed:
    """One moment of the tables.

    Attributes:
        tasks: By id, oldest first.
        ended: The attempts that have ended, by task and number: worker and outcome.
        lanes: Where a round looks.
        drift: What is counted, and is not so.
    """

    tasks: dict[UUID, Any]
    ended: dict[UUID, dict[int, tuple[UUID, str]]]
    workers: dict[UUID, Any]
    lanes: set[tuple[str, str, str, str]]
    parents: dict[UUID, list[UUID]]
    drift: list[Any]

    def held(self, worker_id: UUID) -> list[Any]:
        """Tasks that are reserved for or run by a worker."""
        return [task for task in self.tasks.values() if task.worker_id == worker_id and task.finished_at is None]


def observe(database: Database) -> Observed:
    """Read everything, in one snapshot."""
    with database.transaction() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        parents: dict[UUID, list[UUID]] = {}
        ended: dict[UUID, dict[int, tuple[UUID, str]]] = {}
        for child, parent in connection.execute(text(_DEPENDENCIES)):
            parents.setdefault(child, []).append(parent)
        for task, attempt, worker, outcome in connection.execute(text(_ATTEMPTS)):
            ended.setdefault(task, {})[attempt] = (worker, outcome)
        return Observed(
            {row.id: row for row in connection.execute(text(_TASKS))},
            ended,
            {row.id: row for row in connection.execute(text(_WORKERS))},
            {tuple(row) for row in connection.execute(text(_LANES))},
            parents,
            connection.execute(text(_DRIFT)).all(),
        )


def check_step(before: Observed, after: Observed, action: str) -> None:
    """What changed is what this action may change."""
    for task_id in before.tasks.keys() | after.tasks.keys():
        old, new = before.tasks.get(task_id), after.tasks.get(task_id)
        step = (old and old.place, new and new.place)
        if old and new and old.place == new.place:
            same = (old.attempt, old.failures, old.worker_id, old.finished_at)
            assert same == (new.attempt, new.failures, new.worker_id, new.finished_at), f"{action} changed {new}"
            continue
        assert step in LEGAL[action], f"{action} moved {step}: {new or old}"
        if old and new:
            spent = 0 if action == "retry" else old.failures
            growth = (new.attempt - old.attempt, new.failures - spent)
            assert growth in LEGAL[action][step], f"{action} moved {step} at the price {growth}: {new}"
    for task_id in before.ended.keys() & after.tasks.keys():
        assert before.ended[task_id].items() <= after.ended[task_id].items(), f"{action} rewrote attempts of {task_id}"


def check_always(now: Observed) -> None:
    """What holds at every moment."""
    assert not now.drift
    for task in now.tasks.values():
        _check_attempts(now, task)
        _check_parents(now, task)
        if task.place == "ready":
            lane = (task.type, task.model or "", task.agent_id, task.priority)
            assert lane in now.lanes, f"no round would find {task}"
        if task.place == "failed":
            assert task.error == task.error_code, f"does not say why it failed: {task}"
        if task.place == "completed":
            assert (task.error, task.error_code) == (None, None), f"completed with an error: {task}"
            assert task.result is not None, f"completed without a result: {task}"
        if task.cancel_requested_at is not None:
            assert task.place in {"in_progress", "completed", "failed", "cancelled"}, f"nobody will cancel {task}"
    for worker in now.workers.values():
        assert len(now.held(worker.id)) <= DEPTH * worker.slots, f"over-filled: {worker}"


def _check_attempts(now: Observed, task: Any) -> None:
    ended = dict(now.ended.get(task.id, {}))
    completed = [attempt for attempt, (_, outcome) in ended.items() if outcome == "completed"]
    assert completed == [task.attempt] * (task.place == "completed"), f"{task} ended as {ended}"
    own = ended.pop(task.attempt, None)
    assert set(ended) == set(range(1, task.attempt)), f"{task} has attempts {sorted(ended)}"
    if own is not None:
        assert task.finished_at is not None, f"attempt {task.attempt} has ended as {own}: {task}"
    if task.finished_at is None:
        assert (task.place in {"reserved", "in_progress"}) == (task.worker_id is not None), f"whose? {task}"


def _check_parents(now: Observed, task: Any) -> None:
    parents = [now.tasks[parent] for parent in now.parents.get(task.id, [])]
    open_parents = [parent for parent in parents if parent.place != "completed"]
    if task.place == "blocked":
        telling = open_parents or [parent for parent in parents if parent.has_children][:1]
        assert telling, f"nothing will ever unblock {task}"
        assert all(parent.has_children for parent in telling), f"{telling} will not tell {task}"
    elif task.place not in {"failed", "cancelled"}:
        assert not open_parents, f"did not wait for {open_parents}: {task}"


def check_nobody_gone_holds(now: Observed) -> None:
    """After a rescue: whatever is held is held by somebody who is registered."""
    for task in now.tasks.values():
        if task.worker_id is not None and task.finished_at is None:
            assert now.workers[task.worker_id].state != "gone", f"left behind: {task}"
