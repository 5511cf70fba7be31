"""Whatever clients, workers, zombies and dispatchers do, in whatever order: each step is legal, and nothing is stuck.

The suite runs the same examples every time. To search further, with seeds of its own, and longer:

    BITINGLIP_TEST_EXAMPLES=2000 pytest tests/lifecycle/test_state_machine.py --timeout=0
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from bitinglip.dispatcher.round import run_round
from bitinglip.domain.task import Priority, make_request
from bitinglip.lifecycle import edit, lease, take
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.finish import finish_attempts
from bitinglip.lifecycle.rescue import report_death, rescue
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.lifecycle.waiting import expire_overdue, settle, wake_due
from bitinglip.settings import TaskSettings
from bitinglip.store import workers
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell, Ending
from tests.factories import execute
from tests.lifecycle.everybody import Everybody
from tests.lifecycle.observed import WAITING, check_nobody_gone_holds, observe

EXAMPLES = int(os.environ.get("BITINGLIP_TEST_EXAMPLES", "0"))
SHORT = 0.001
"""A lease that PostgreSQL has outlived."""

BOOLS = st.booleans()
AGENTS = st.sampled_from(["ann", "bob"])
PRIORITIES = st.sampled_from(list(Priority))
OUTCOMES = st.sampled_from(["completed", "failed", "retried", "released", "released", "retried", "cancelled"])


ANY = (*WAITING, "in_progress", "completed", "failed", "cancelled")

ACTIONS: dict[str, tuple[int, Callable[["Machine"], object]]] = {
    "submit": (8, lambda all_: len(all_.find(*WAITING)) < ENOUGH),
    "cancel": (2, lambda all_: all_.find(*ANY)),
    "retry": (5, lambda all_: all_.find("failed")),
    "change_priority": (1, lambda all_: all_.find("ready", "scheduled", "blocked")),
    "delete": (1, lambda all_: all_.find(*ANY)),
    "register": (1, lambda _: True),
    "replace": (20, lambda all_: not all_.find_open_workers()),
    "claim_own": (14, lambda all_: all_.find("reserved")),
    "claim_any": (2, lambda all_: all_.find(*ANY)),
    "finish_own": (14, lambda all_: all_.find("in_progress")),
    "finish_any": (2, lambda all_: all_.find(*ANY)),
    "renew": (1, lambda _: True),
    "drain": (1, lambda _: True),
    "leave": (1, lambda _: True),
    "die": (1, lambda _: True),
    "fall_silent": (2, lambda _: True),
    "take": (3, lambda all_: any(task.type == "agent" for task in all_.find("ready"))),
    "dispatch": (10, lambda all_: all_.find_open_workers() and all_.find("ready")),
    "rescue": (2, lambda _: True),
    "wake": (3, lambda all_: all_.find("scheduled")),
    "expire": (1, lambda all_: all_.find("ready", "scheduled", "reserved")),
    "settle": (5, lambda all_: any(task.has_children for task in all_.find("completed", "failed", "cancelled"))),
}
"""How often each, and when it may have an effect."""
NEEDED = {"submit", "dispatch", "claim_own", "finish_own", "replace"}
ENOUGH = 10
"""Tasks that wait; more would have less happen to each."""


class Machine(Everybody):
    """What they do, in whatever order."""

    @initialize(absent=st.sets(st.sampled_from(sorted({*ACTIONS} - NEEDED)), max_size=8))
    def choose_actions(self, absent: set[str]) -> None:
        """What never happens makes room for what seldom does."""
        self.absent = absent

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        present = [(action, weight) for action, (weight, is_due) in ACTIONS.items() if is_due(self)]
        present = [(action, weight) for action, weight in present if action not in self.absent]
        possible = [((number + 0.5) / weight, action) for action, weight in present for number in range(weight)]
        # What comes first is drawn more often than the rest: spread each over the whole, the frequent ones first.
        _, chosen = data.draw(st.sampled_from(sorted(possible)), "action")
        getattr(self, chosen)(data)

    # Clients

    def submit(self, data: st.DataObject) -> None:
        type_ = data.draw(st.sampled_from(["echo", "echo", "echo", "echo", "agent"]), "type")
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
        ids = self.draw_some(data, "cancelled", *WAITING, "in_progress")
        expected = {task.id: "in_progress" for task in self.find("in_progress") if task.id in ids}
        waiting = self.find(*WAITING)
        expected |= {task.id: "cancelled" for task in waiting if task.id in ids}

        assert {change.task_id: change.status for change in cancel(self.database, ids)} == expected

        self.done("cancel")
        assert all(self.seen.tasks[task].cancel_requested_at for task in expected)

    def retry(self, data: st.DataObject) -> None:
        all_ = data.draw(BOOLS, "all")
        failed = {task.id for task in self.find("failed")}
        ids = list(failed) if all_ else self.draw_some(data, "retried", "failed")

        assert {change.task_id for change in edit.retry(self.database, ids)} == failed & set(ids)

        self.done("retry")

    def change_priority(self, data: st.DataObject) -> None:
        priority = data.draw(PRIORITIES, "priority")
        task = self.draw(data, self.find("ready", "scheduled", "blocked"), "task")
        edit.update(self.database, task.id, edit.TaskEdit(priority=priority))
        self.done("nothing")
        assert self.seen.tasks[task.id].priority == priority

    def delete(self, data: st.DataObject) -> None:
        ids = self.draw_some(data, "deleted", *WAITING, "completed", "failed")
        wanted = {task.id for task in self.find(*WAITING, "completed", "failed", "cancelled")} & set(ids)
        waited_for = {parent for child in self.find("blocked") for parent in self.seen.parents.get(child.id, [])}

        gone = {change.task_id for change in edit.delete(self.database, ids)}

        assert wanted - waited_for <= gone <= wanted
        self.done("delete")
        assert not gone & set(self.seen.tasks)

    # Workers

    def register(self, data: st.DataObject) -> None:
        self.add_worker(data.draw(st.sampled_from(["left", "right"]), "name"), data.draw(st.integers(1, 3), "slots"))

    replace = register

    def claim_own(self, data: st.DataObject) -> None:
        task = self.draw(data, self.find("reserved") or self.find("in_progress"), "task")
        alike = [task, *(other for other in self.seen.held(task.worker_id) if other.id != task.id)]
        for own in alike if data.draw(BOOLS, "all") else [task]:
            self.claim(Doorbell(own.id, own.attempt), own.worker_id)

    def claim_any(self, data: st.DataObject) -> None:
        """Late, for the second time, or by the wrong worker."""
        bell = self.draw(data, self.doorbells, "doorbell")
        self.claim(bell, self.draw(data, self.workers, "worker"))

    def finish_own(self, data: st.DataObject) -> None:
        outcome, suspect = data.draw(OUTCOMES, "outcome"), data.draw(BOOLS, "suspect")
        task = self.draw(data, self.find("in_progress"), "task")
        self.end(Doorbell(task.id, task.attempt), task.worker_id, outcome, suspect=suspect)

    def finish_any(self, data: st.DataObject) -> None:
        """By a zombie, for the second time, or before it was claimed."""
        bell = self.draw(data, self.doorbells, "doorbell")
        worker = self.draw(data, self.workers + self.takers, "worker")
        self.end(bell, worker, data.draw(OUTCOMES, "outcome"), suspect=False)

    def renew(self, data: st.DataObject) -> None:
        worker = self.draw_worker(data)
        renewed = lease.renew(self.database, worker, lease_seconds=60)

        assert (renewed is None) == (self.seen.workers[worker].state == "gone")
        if renewed:
            held = {(task.id, task.attempt, task.place == "in_progress") for task in self.seen.held(worker)}
            assert {(task.doorbell.task_id, task.doorbell.attempt, task.running) for task in renewed.held} == held
            assert renewed.draining == (self.seen.workers[worker].state == "draining")
        self.done("nothing")

    def drain(self, data: st.DataObject) -> None:
        worker = self.draw_worker(data)
        lease.drain(self.database, worker)
        self.done("drain")
        assert all(task.place == "in_progress" for task in self.seen.held(worker))

    def leave(self, data: st.DataObject) -> None:
        lease.leave(self.database, self.draw_worker(data))
        self.done("rescue")
        check_nobody_gone_holds(self.seen)

    def die(self, data: st.DataObject) -> None:
        """Its parent reports it, though it may be registered no more."""
        worker = self.seen.workers[self.draw_worker(data)]
        report_death(self.database, worker.name, worker.pid)
        self.done("nothing" if worker.state == "gone" else "rescue")
        assert self.seen.workers[worker.id].state == "gone"
        assert not self.seen.held(worker.id) or worker.state == "gone"

    def fall_silent(self, data: st.DataObject) -> None:
        """Its lease runs out, which nobody has noticed yet."""
        silent = self.draw(data, [self.draw_worker(data), *self.takers], "silent")
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
        # Expiry would be an end, too, but hide a task that nobody finds.
        execute(self.database, "UPDATE tasks SET expires_at = NULL")
        self.seen = observe(self.database)
        self.rescue()
        last = self.add_worker("last", 100)
        while self.find(*WAITING):
            waiting = len(self.find(*WAITING))
            self.settle()
            self.wake_what_is_scheduled(all_=True)
            self.dispatch()
            reserved = [Doorbell(task.id, task.attempt) for task in self.find("reserved")]
            assert None not in claim_reserved(self.database, reserved, last)
            self.done("claim")
            for agent in ("ann", "bob"):
                self.take_for(agent)
            for worker in {task.worker_id for task in self.find("in_progress")}:
                held = [Doorbell(task.id, task.attempt) for task in self.seen.held(worker)]
                endings = [Ending(bell.task_id, bell.attempt, "completed", result={}) for bell in held]
                assert None not in finish_attempts(self.database, endings, worker)
                self.done("finish")
            assert len(self.find(*WAITING)) < waiting, f"stuck: {self.find(*WAITING)}"


def test_every_step_is_legal_and_nothing_is_stuck(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MAX_LOSSES", 1)
    run_state_machine_as_test(
        lambda: Machine(database),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES or 60,
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            database=None,
            # To find the smallest example takes longer than a test may.
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
