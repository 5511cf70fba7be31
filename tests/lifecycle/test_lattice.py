"""Tasks that wait for each other, on workers that die: each completes once, after all that it waits for."""

import random
import socket
import uuid

from bitinglip.domain.task import Status, make_request
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.rescue import report_death, rescue
from bitinglip.lifecycle.waiting import settle
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.factories import dispatch, execute, finish, make_worker, submit

LAYERS, WIDTH = 8, 6
DEATHS = 20
SHORT = 0.001
"""A lease that PostgreSQL has outlived."""


class Crew:
    """Three workers, each replaced when it dies."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pids = 0
        self.pid_of: dict[str, int] = {}
        self.id_of: dict[str, uuid.UUID] = {}
        for name in ("ann", "bob", "cat"):
            self.start(name)

    def start(self, name: str) -> None:
        self._pids += 1
        worker = make_worker(self._database, name, slots=2)
        values = {"id": worker, "pid": self._pids, "node": socket.gethostname()}
        execute(self._database, "UPDATE workers SET pid = :pid, node = :node WHERE id = :id", **values)
        self.pid_of[name], self.id_of[name] = self._pids, worker

    def kill(self, name: str, *, seen: bool) -> None:
        """`seen` by its parent, who reports it; else its lease runs out."""
        if seen:
            report_death(self._database, name, self.pid_of[name])
        else:
            past = "UPDATE workers SET lease_expires_at = now() - interval '1 s' WHERE id = :id"
            execute(self._database, past, id=self.id_of[name])
            rescue(self._database, lease_seconds=SHORT)
        self.start(name)

    def claim(self, name: str) -> list[Doorbell]:
        """All that is reserved for it or that it runs."""
        held = "SELECT id, attempt FROM tasks WHERE worker_id = :id AND finished_at IS NULL"
        bells = [Doorbell(*row) for row in execute(self._database, held, id=self.id_of[name])]
        assert None not in claim_reserved(self._database, bells, self.id_of[name])
        return bells


def submit_lattice(database: Database) -> dict[uuid.UUID, list[uuid.UUID]]:
    """Each task waits for two neighbours in the layer above; returns the parents of each."""
    parents: dict[uuid.UUID, list[uuid.UUID]] = {}
    above: list[uuid.UUID] = []
    for _ in range(LAYERS):
        layer = []
        for column in range(WIDTH):
            own = [above[column], above[(column + 1) % WIDTH]] if above else []
            layer += submit(database, make_request("echo", {}, depends_on=own))
            parents[layer[-1]] = own
        above = layer
    return parents


def test_a_lattice_completes_in_order_though_workers_die(database: Database) -> None:
    chance = random.Random(48)
    parents = submit_lattice(database)
    crew = Crew(database)
    completed: list[uuid.UUID] = []
    deaths = 0
    while len(completed) < len(parents):
        settle(database)
        dispatch(database)
        for name in crew.id_of:
            worker, running = crew.id_of[name], crew.claim(name)
            dies = bool(running) and deaths < DEATHS and chance.random() < 0.5
            if dies:
                deaths += 1
                crew.kill(name, seen=chance.random() < 0.5)
            for doorbell in running:
                # What a dead worker still sends is discarded.
                ended = finish(database, worker, doorbell, result={})
                assert ended == (not dies)
                completed += [doorbell.task_id] * ended

    assert deaths == DEATHS
    assert sorted(completed) == sorted(parents)
    place = {task: number for number, task in enumerate(completed)}
    assert all(place[parent] < place[task] for task, own in parents.items() for parent in own)
    early = """
        SELECT FROM dependencies AS d JOIN tasks AS c ON c.id = d.child_id JOIN tasks AS p ON p.id = d.parent_id
        JOIN attempts AS a ON a.task_id = c.id WHERE a.started_at < p.finished_at
    """
    assert execute(database, early) == []
    outcomes = "SELECT count(*), count(*) FILTER (WHERE outcome = 'completed') FROM attempts GROUP BY task_id"
    counts = execute(database, outcomes)
    assert len(counts) == len(parents)
    assert {done for _, done in counts} == {1}
    assert sum(tries for tries, _ in counts) > len(parents) + DEATHS / 2
    assert execute(database, "SELECT DISTINCT status, failures FROM tasks") == [(Status.COMPLETED, 0)]
