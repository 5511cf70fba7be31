"""Everybody who writes to the tables, one at a time, and what each must be answered."""

import socket
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.factories import execute, finish, make_worker
from tests.lifecycle.observed import check_always, check_nobody_gone_holds, check_step, observe

ERROR = {"code": "echo_error", "message": "it failed"}
EMPTY = "TRUNCATE tasks, workers, agents, queues, lanes, agent_shares, pools, settlements, costs, agent_usage CASCADE"


class Everybody(RuleBasedStateMachine):
    """Clients, workers, zombies and dispatchers of one database.

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
        self.add_worker("left", 2)

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

    def find_open_workers(self) -> list[UUID]:
        """Workers that a round may give tasks to."""
        return [worker.id for worker in self.seen.workers.values() if worker.alive and worker.state == "ready"]

    def draw(self, data: st.DataObject, among: Sequence[Any], label: str) -> Any:
        """One of them."""
        return among[data.draw(st.integers(0, len(among) - 1), label)]

    def draw_some(self, data: st.DataObject, label: str, *places: str) -> list[UUID]:
        """A few tasks, most often in these places; the others may be known no more."""
        known = list(dict.fromkeys(bell.task_id for bell in self.doorbells))
        likely = [task.id for task in self.find(*places)]
        among = likely if likely and data.draw(st.sampled_from([True, True, False]), "likely") else known
        return [among[number] for number in data.draw(st.sets(st.integers(0, len(among) - 1), max_size=3), label)]

    def draw_worker(self, data: st.DataObject) -> UUID:
        """A worker, most often one that is registered and holds something."""
        alive = [worker for worker in self.workers if self.seen.workers[worker].state != "gone"]
        busy = [worker for worker in alive if self.seen.held(worker)]
        chosen: UUID = self.draw(data, busy * 4 + alive * 2 + self.workers, "worker")
        return chosen

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

    def claim(self, bell: Doorbell, worker: UUID) -> None:
        task = self.seen.tasks.get(bell.task_id)
        ours = (
            task is not None
            and (task.attempt, task.worker_id, task.cancel_requested_at) == (bell.attempt, worker, None)
            and task.place in {"reserved", "in_progress"}
        )
        yields = ours and self.seen.workers[worker].yields and task.place == "reserved" and task.priority != "critical"
        claimed = claim_reserved(self.database, [bell], worker)[0]

        assert (claimed is not None) == (ours and not yields)
        if claimed:
            assert (claimed.task_id, claimed.attempt) == (bell.task_id, bell.attempt)
            assert self.claimed_by.setdefault(bell, worker) == worker, "two workers run one attempt"
        self.done("claim" if claimed else "give_way" if yields else "nothing")

    def end(self, bell: Doorbell, worker: UUID, outcome: str, *, suspect: bool) -> None:
        task: Any = self.seen.tasks.get(bell.task_id)
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
