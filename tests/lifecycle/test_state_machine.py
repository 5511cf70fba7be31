"""Whatever clients, workers, zombies and dispatchers do, in whatever order: each step is legal, and nothing is stuck.

The suite runs the same examples every time. To search further, with seeds of its own, and longer:

    BITINGLIP_TEST_EXAMPLES=2000 pytest tests/lifecycle/test_state_machine.py --timeout=0
"""

import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from bitinglip.dispatcher.round import run_round
from bitinglip.domain.task import Priority, make_request
from bitinglip.lifecycle import edit, lease, take
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.rescue import report_death, rescue
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.lifecycle.waiting import expire_overdue, settle, wake_due
from bitinglip.settings import TaskSettings
from bitinglip.store import workers
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.factories import execute, finish, make_worker
from tests.lifecycle.observed import check_always, check_nobody_gone_holds, check_step, observe

EXAMPLES = int(os.environ.get("BITINGLIP_TEST_EXAMPLES", "0"))
SHORT = 0.001
"""A lease that PostgreSQL has outlived."""

ERROR = {"code": "echo_error", "message": "it failed"}
EMPTY = "TRUNCATE tasks, workers, agents, agent_queues, agent_shares, pools CASCADE"
BOOLS = st.booleans()
AGENTS = st.sampled_from(["ann", "bob"])
PRIORITIES = st.sampled_from(list(Priority))
OUTCOMES = st.sampled_from(["completed", "completed", "failed", "retried", "retried", "released", "cancelled"])


WAITING = ("ready", "reserved", "scheduled", "blocked")
ANY = (*WAITING, "in_progress", "completed", "failed", "cancelled")

ACTIONS: dict[str, tuple[int, tuple[str, ...]]] = {
    "submit": (6, ()),
    "cancel": (2, ANY),
    "retry": (4, ("failed",)),
    "change_priority": (1, ("ready", "scheduled", "blocked")),
    "delete": (1, ANY),
    "register": (3, ()),
    "claim_own": (8, ("reserved", "in_progress")),
    "claim_any": (2, ANY),
    "finish_own": (8, ("in_progress",)),
    "finish_any": (2, ANY),
    "renew": (1, ()),
    "drain": (1, ()),
    "leave": (1, ()),
    "die": (1, ()),
    "fall_silent": (2, ()),
    "take": (2, ()),
    "dispatch": (6, ("ready",)),
    "rescue": (2, ()),
    "wake": (2, ("scheduled",)),
    "expire": (1, ("ready", "scheduled", "reserved")),
    "settle": (4, ()),
}
"""How often each, and in which places a task must be for it to have any effect."""


class Machine(RuleBasedStateMachine):
    """Everybody who writes to the tables, one at a time.

    After each action `done` holds what the tables say against what the action may do.
    """

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        execute(database, EMPTY)
        self.seen = observe(database)
        self.workers: list[UUID] = []
        self.takers: list[UUID] = []
        self.doorbells: list[Doorbell] = []
        self.claimed_by: dict[Doorbell, UUID] = {}
        self.pids = 0
        self.is_sound = True
        self.add_worker("left", 1)

    def done(self, action: str) -> None:
        """Compare with before."""
        before, self.is_sound = self.seen, False
        self.seen = observe(self.database)
        check_step(before, self.seen, action)
        check_always(self.seen)
        known = set(self.doorbells)
        bells = [Doorbell(task.id, task.attempt) for task in self.seen.tasks.values()]
        self.doorbells += [bell for bell in bells if bell not in known]
        self.is_sound = True

    def find(self, *places: str) -> list[Any]:
        """Tasks in these places, oldest first."""
        return [task for task in self.seen.tasks.values() if task.place in places]

    def draw(self, data: st.DataObject, among: Sequence[Any], label: str) -> Any:
        """One of them."""
        return among[data.draw(st.integers(0, len(among) - 1), label)]

    def draw_some(self, data: st.DataObject, label: str) -> list[UUID]:
        """A few tasks, some of which may be known no more."""
        known = list(dict.fromkeys(bell.task_id for bell in self.doorbells))
        return [known[number] for number in data.draw(st.sets(st.integers(0, len(known) - 1), max_size=3), label)]

    @initialize(absent=st.sets(st.sampled_from(sorted({*ACTIONS} - {"submit", "dispatch", "claim_own"}))))
    def choose_actions(self, absent: set[str]) -> None:
        """What never happens makes room for what seldom does."""
        self.absent = absent

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        possible = [
            action
            for action, (weight, places) in ACTIONS.items()
            if action not in self.absent and (not places or self.find(*places))
            for _ in range(weight)
        ]
        getattr(self, data.draw(st.sampled_from(possible), "action"))(data)

    # Clients

    def submit(self, data: st.DataObject) -> None:
        type_ = data.draw(st.sampled_from(["echo", "echo", "echo", "agent"]), "type")
        agent = data.draw(AGENTS, "agent")
        key = data.draw(st.sampled_from([None, None, f"key-{type_}"]), "key")
        later = data.draw(st.sampled_from([False, False, True]), "later")
        own = [task.id for task in self.seen.tasks.values() if task.agent_id == agent]
        parents = data.draw(st.sampled_from([0, 0, 1, 2]) if own else st.just(0), "parents")
        after = {self.draw(data, own, "parent") for _ in range(parents)}
        request = make_request(
            type_,
            {},
            agent_id=agent,
            priority=data.draw(PRIORITIES, "priority"),
            depends_on=sorted(after),
            not_before=datetime.now(UTC) + timedelta(hours=1) if later else None,
            idempotency_key=key,
            max_attempts=data.draw(st.integers(1, 3), "max_attempts"),
        )
        known = [task for task in own if key and self.seen.tasks[task].idempotency_key == key]
        before = set(self.seen.tasks)

        assert submit_tasks(self.database, [request], TaskSettings()) == (known or [request.id])

        self.done("submit")
        assert set(self.seen.tasks) - before == (set() if known else {request.id})

    def cancel(self, data: st.DataObject) -> None:
        ids = self.draw_some(data, "cancelled")
        expected = {task.id: "in_progress" for task in self.find("in_progress") if task.id in ids}
        waiting = self.find("ready", "reserved", "scheduled", "blocked")
        expected |= {task.id: "cancelled" for task in waiting if task.id in ids}

        assert {change.task_id: change.status for change in cancel(self.database, ids)} == expected

        self.done("cancel")
        assert all(self.seen.tasks[task].cancel_requested_at for task in expected)

    def retry(self, data: st.DataObject) -> None:
        all_ = data.draw(BOOLS, "all")
        failed = {task.id for task in self.find("failed")}
        ids = list(failed) if all_ else self.draw_some(data, "retried")

        assert {change.task_id for change in edit.retry(self.database, ids)} == failed & set(ids)

        self.done("retry")

    def change_priority(self, data: st.DataObject) -> None:
        priority = data.draw(PRIORITIES, "priority")
        task = self.draw(data, self.find("ready", "scheduled", "blocked"), "task")
        edit.update(self.database, task.id, edit.TaskEdit(priority=priority))
        self.done("nothing")
        assert self.seen.tasks[task.id].priority == priority

    def delete(self, data: st.DataObject) -> None:
        ids = self.draw_some(data, "deleted")
        running = {task.id for task in self.find("in_progress")}
        untold = {task.id for task in self.seen.tasks.values() if task.has_children}

        gone = {change.task_id for change in edit.delete(self.database, ids)}

        assert gone == set(ids) & set(self.seen.tasks) - running - untold
        self.done("delete")
        assert not gone & set(self.seen.tasks)

    # Workers

    def register(self, data: st.DataObject) -> None:
        self.add_worker(data.draw(st.sampled_from(["left", "right"]), "name"), data.draw(st.integers(1, 2), "slots"))

    def add_worker(self, name: str, slots: int) -> UUID:
        """Start a worker, which takes its name from any other."""
        before = {worker.id for worker in self.seen.workers.values() if worker.name == name}
        worker = make_worker(self.database, name, slots=slots)
        self.pids += 1
        values = {"pid": self.pids, "node": socket.gethostname(), "id": worker}
        execute(self.database, "UPDATE workers SET pid = :pid, node = :node WHERE id = :id", **values)
        self.workers.append(worker)
        self.done("rescue")
        check_nobody_gone_holds(self.seen)
        assert {self.seen.workers[old].state for old in before} <= {"gone"}
        return worker

    def claim_own(self, data: st.DataObject) -> None:
        task = self.draw(data, self.find("reserved", "in_progress"), "task")
        self.claim(Doorbell(task.id, task.attempt), task.worker_id)

    def claim_any(self, data: st.DataObject) -> None:
        """Late, for the second time, or by the wrong worker."""
        bell = self.draw(data, self.doorbells, "doorbell")
        self.claim(bell, self.draw(data, self.workers, "worker"))

    def claim(self, bell: Doorbell, worker: UUID) -> None:
        task = self.seen.tasks.get(bell.task_id)
        due = (
            task is not None
            and (task.attempt, task.worker_id, task.cancel_requested_at) == (bell.attempt, worker, None)
            and task.place in {"reserved", "in_progress"}
        )
        claimed = claim_reserved(self.database, [bell], worker)[0]

        assert (claimed is not None) == due
        if claimed:
            assert (claimed.task_id, claimed.attempt) == (bell.task_id, bell.attempt)
            assert self.claimed_by.setdefault(bell, worker) == worker, "two workers run one attempt"
        self.done("claim" if claimed else "nothing")

    def finish_own(self, data: st.DataObject) -> None:
        outcome, suspect = data.draw(OUTCOMES, "outcome"), data.draw(BOOLS, "suspect")
        task = self.draw(data, self.find("in_progress"), "task")
        self.end(Doorbell(task.id, task.attempt), task.worker_id, outcome, suspect=suspect)

    def finish_any(self, data: st.DataObject) -> None:
        """By a zombie, for the second time, or before it was claimed."""
        bell = self.draw(data, self.doorbells, "doorbell")
        worker = self.draw(data, self.workers + self.takers, "worker")
        self.end(bell, worker, data.draw(OUTCOMES, "outcome"), suspect=False)

    def end(self, bell: Doorbell, worker: UUID, outcome: str, *, suspect: bool) -> None:
        task = self.seen.tasks.get(bell.task_id)
        runs = task is not None and (task.place, task.attempt, task.worker_id) == ("in_progress", bell.attempt, worker)
        if runs and outcome == "retried" and task.failures + 1 >= task.max_attempts:
            outcome = "failed"
        ending: dict[str, Any] = {"result": {"text": "done"}} if outcome == "completed" else {"error": ERROR}
        if outcome == "retried":
            ending["retry_seconds"] = 3_600
        suspect = suspect and outcome == "released"

        assert finish(self.database, worker, bell, outcome, suspect=suspect, **ending) == runs

        self.done("finish" if runs else "nothing")
        if runs:
            again = {"retried": "scheduled", "released": "ready"}
            expected = again.get(outcome, outcome)
            if outcome in again and task.cancel_requested_at:
                expected = "cancelled"
            now = self.seen.tasks[bell.task_id]
            assert now.place == expected
            assert now.failures == task.failures + (outcome in {"retried", "failed"})
            assert now.suspect == (suspect or (task.suspect and outcome == "released"))

    def renew(self, data: st.DataObject) -> None:
        worker = self.draw(data, self.workers, "worker")
        renewed = lease.renew(self.database, worker, lease_seconds=60, models=(), memory_bytes=0)

        assert (renewed is None) == (self.seen.workers[worker].state == "gone")
        if renewed:
            held = {(task.id, task.attempt, task.place == "in_progress") for task in self.seen.held(worker)}
            assert {(task.doorbell.task_id, task.doorbell.attempt, task.running) for task in renewed.held} == held
            assert renewed.draining == (self.seen.workers[worker].state == "draining")
        self.done("nothing")

    def drain(self, data: st.DataObject) -> None:
        worker = self.draw(data, self.workers, "worker")
        lease.drain(self.database, worker)
        self.done("drain")
        assert all(task.place == "in_progress" for task in self.seen.held(worker))

    def leave(self, data: st.DataObject) -> None:
        lease.leave(self.database, self.draw(data, self.workers, "worker"))
        self.done("rescue")
        check_nobody_gone_holds(self.seen)

    def die(self, data: st.DataObject) -> None:
        """Its parent reports it, though it may be registered no more."""
        worker = self.seen.workers[self.draw(data, self.workers, "worker")]
        report_death(self.database, worker.name, worker.pid)
        self.done("nothing" if worker.state == "gone" else "rescue")
        assert self.seen.workers[worker.id].state == "gone"
        assert not self.seen.held(worker.id) or worker.state == "gone"

    def fall_silent(self, data: st.DataObject) -> None:
        """Its lease runs out, which nobody has noticed yet."""
        silent = self.draw(data, self.workers + self.takers, "worker")
        past = "UPDATE workers SET lease_expires_at = now() - interval '1 s' WHERE id = :id"
        execute(self.database, past, id=silent)
        self.done("nothing")

    # Agents who take their tasks themselves

    def take(self, data: st.DataObject) -> None:
        self.take_for(data.draw(AGENTS, "agent"))

    def take_for(self, agent: str) -> None:
        taker = take.register_taker(self.database, agent, lease_seconds=60)
        self.takers.append(taker)
        self.done("rescue")
        waiting = [task for task in self.find("ready") if (task.type, task.agent_id) == ("agent", agent)]
        first = min(waiting, key=lambda task: Priority(task.priority).rank, default=None)

        taken = take.take(self.database, taker, agent)

        assert taken == (first and Doorbell(first.id, first.attempt))
        if taken:
            assert self.claimed_by.setdefault(taken, taker) == taker
        self.done("take" if taken else "nothing")

    # Dispatchers

    def dispatch(self, _: st.DataObject | None = None) -> None:
        before = self.seen
        granted = run_round(self.database).reserved
        self.done("dispatch")
        assert {item.head.task_id for item in granted} == {
            task.id for task in self.find("reserved") if before.tasks[task.id].place == "ready"
        }
        for item in granted:
            worker = before.workers[item.worker.id]
            assert (worker.state, worker.alive) == ("ready", True)
            assert self.seen.tasks[item.head.task_id].type in worker.kinds

    def rescue(self, _: st.DataObject | None = None) -> None:
        silent = {worker.id for worker in self.seen.workers.values() if not worker.alive}
        rescue(self.database, lease_seconds=SHORT)
        self.done("rescue")
        assert {self.seen.workers[worker].state for worker in silent} <= {"gone"}
        check_nobody_gone_holds(self.seen)

    def wake(self, data: st.DataObject) -> None:
        self.wake_what_is_scheduled(all_=data.draw(BOOLS, "all"))

    def wake_what_is_scheduled(self, *, all_: bool) -> None:
        if all_:
            execute(self.database, "UPDATE tasks SET not_before = now() WHERE queue_state = 'scheduled'")
        wake_due(self.database)
        self.done("wake")
        assert not (all_ and self.find("scheduled"))

    def expire(self, data: st.DataObject) -> None:
        task = self.draw(data, self.find("ready", "scheduled", "reserved"), "task")
        execute(self.database, "UPDATE tasks SET expires_at = now() - interval '1 s' WHERE id = :id", id=task.id)

        expire_overdue(self.database)

        self.done("expire")
        ended = task.started_at is None and task.place != "reserved"
        assert (self.seen.tasks[task.id].error_code == "expired") == ended

    def settle(self, _: st.DataObject | None = None) -> None:
        settle(self.database)
        self.done("settle")
        for child in self.find("blocked"):
            places = {self.seen.tasks[parent].place for parent in self.seen.parents[child.id]}
            assert places - {"completed"}
            assert not places & {"failed", "cancelled"}

    def teardown(self) -> None:
        """One good worker, and an agent that takes its own, end everything that waits."""
        if not self.is_sound:
            return
        execute(self.database, "UPDATE workers SET state = 'gone'")
        execute(self.database, "UPDATE tasks SET expires_at = NULL")
        self.seen = observe(self.database)
        self.rescue()
        last = self.add_worker("last", 100)
        for _ in range(len(self.seen.tasks) + 1):
            self.settle()
            self.wake_what_is_scheduled(all_=True)
            self.dispatch()
            for agent in ("ann", "bob"):
                self.take_for(agent)
            for task in self.find("reserved"):
                self.claim(Doorbell(task.id, task.attempt), last)
            for task in self.find("in_progress"):
                self.end(Doorbell(task.id, task.attempt), task.worker_id, "completed", suspect=False)
        stuck = self.find("ready", "reserved", "scheduled", "blocked", "in_progress")
        assert not stuck


def test_every_step_is_legal_and_nothing_is_stuck(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MAX_LOSSES", 3)
    make: Callable[[], Machine] = lambda: Machine(database)  # noqa: E731
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        make,
        settings=settings(
            max_examples=EXAMPLES or 40,
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),phases=[__import__("hypothesis").Phase.generate],report_multiple_bugs=False,
        ),
    )
