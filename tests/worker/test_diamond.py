"""48 dependent tasks in a diamond, 20 of whose workers are killed: every one is done once, parents first."""

import random
import uuid

from bitinglip.client import Client
from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.store.database import Database
from tests.conftest import System, eventually, wait_for_workers
from tests.factories import execute

POOLS = '[pools.default]\nkinds = ["echo"]\ngpus = []\nslots = 2\n'
WIDTH = 23
KILLS = 20


def make_diamond() -> list[TaskRequest]:
    """One task, two rows of 23 that each depend on the one above, and one that depends on the last row."""

    def make(*parents: uuid.UUID) -> TaskRequest:
        return make_request("echo", {"text": "done", "seconds": 0.4}, depends_on=list(parents))

    top = make()
    first = [make(top.id) for _ in range(WIDTH)]
    second = [make(parent.id) for parent in first]
    return [top, *first, *second, make(*(parent.id for parent in second))]


def test_a_diamond_of_tasks_survives_the_death_of_twenty_workers(
    processes: System, client: Client, database: Database
) -> None:
    processes.start_dispatcher()
    names = ["first", "second", "third"]
    for name in names:
        processes.start_worker(name, pools=POOLS)
    wait_for_workers(database, len(names))
    tasks = client.submit_many(make_diamond())
    killed = 0
    chance = random.Random(48)

    def find_busy() -> list[str]:
        sql = "SELECT DISTINCT pid FROM workers AS w JOIN tasks AS t ON worker_id = w.id WHERE status = 'in_progress'"
        busy = {pid for (pid,) in execute(database, sql)}
        return [name for name in names if processes.processes[name].pid in busy]

    while killed < KILLS:
        victim = chance.choice(eventually(find_busy, within=30))
        processes.kill(victim)
        processes.start_worker(victim, pools=POOLS)
        killed += 1

    assert tasks[-1].result(timeout=60) == {"text": "done"}
    completed = "SELECT count(*), count(DISTINCT task_id) FROM attempts WHERE outcome = 'completed'"
    assert execute(database, completed) == [(48, 48)]
    early = """
        SELECT count(*) FROM dependencies AS d
        JOIN tasks AS p ON p.id = d.parent_id JOIN tasks AS c ON c.id = d.child_id
        WHERE c.started_at < p.finished_at
    """
    assert execute(database, early) == [(0,)]
    assert execute(database, "SELECT max(failures) FROM tasks") == [(0,)]
