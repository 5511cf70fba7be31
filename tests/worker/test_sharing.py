"""Agents share real workers: by work, with limits that change while they run, and urgent tasks first."""

import pytest

from bitinglip.client import Client
from bitinglip.domain.task import make_request
from bitinglip.lifecycle.agents import edit_agent, pause_agent, resume_agent
from bitinglip.store.database import Database
from tests.conftest import System, eventually, wait_for_workers
from tests.factories import execute

TWO_SLOTS = '[pools.default]\nkinds = ["echo"]\ngpus = []\nslots = 2\n'
DONE = "SELECT bool_and(status = 'completed') FROM tasks"


def start(processes: System, database: Database, *names: str) -> None:
    processes.start_dispatcher()
    for name in names:
        processes.start_worker(name, pools=TWO_SLOTS)
    wait_for_workers(database, len(names))


def submit_many(client: Client, agent: str, seconds: float, count: int) -> None:
    client.submit_many([make_request("echo", {"seconds": seconds}, agent_id=agent) for _ in range(count)])


def test_agents_get_equal_seconds_of_a_worker_whatever_their_tasks_take(
    processes: System, client: Client, database: Database
) -> None:
    for agent, seconds, count in (("long", 0.4, 40), ("short", 0.04, 400)):
        submit_many(client, agent, seconds, count)
    start(processes, database, "worker")
    used = "SELECT agent_id, sum(seconds) FROM agent_usage GROUP BY agent_id"
    eventually(lambda: sum(seconds for _, seconds in execute(database, used)) > 12, within=30)

    seconds = dict(execute(database, used))
    assert seconds["long"] == pytest.approx(seconds["short"], rel=0.2)


def test_an_urgent_task_begins_in_the_first_slot_that_frees_anywhere(
    processes: System, client: Client, database: Database
) -> None:
    start(processes, database, "left", "right")
    for seconds in (1.2, 1.8, 2.4, 3.0):
        submit_many(client, "patient", seconds, 1)
    submit_many(client, "patient", 0.5, 8)
    running = "SELECT count(*) FROM tasks WHERE status = 'in_progress'"
    held = "SELECT count(*) FROM tasks WHERE worker_id IS NOT NULL AND finished_at IS NULL"
    eventually(lambda: execute(database, running) == [(4,)] and execute(database, held) == [(8,)])

    urgent = client.submit("echo", agent="pressing", priority="critical")
    eventually(lambda: execute(database, "SELECT bool_and(yields) FROM workers") == [(True,)])
    urgent.result(timeout=20)

    before = "SELECT count(*) FROM tasks WHERE agent_id = 'patient' AND started_at < :moment"
    assert execute(database, before, moment=urgent.task().started_at) == [(4,)]
    eventually(lambda: execute(database, "SELECT bool_or(yields) FROM workers") == [(False,)])
    eventually(lambda: execute(database, DONE) == [(True,)], within=20)


def test_a_limit_is_obeyed_while_it_is_changed(processes: System, client: Client, database: Database) -> None:
    edit_agent(database, "limited", max_running=1)
    submit_many(client, "limited", 0.1, 60)
    start(processes, database, "worker")
    in_flight = "SELECT count(*) FROM tasks WHERE worker_id IS NOT NULL AND finished_at IS NULL"
    eventually(lambda: execute(database, in_flight) == [(1,)])

    edit_agent(database, "limited", max_running=2)
    eventually(lambda: execute(database, in_flight) == [(2,)])
    pause_agent(database, "limited")
    eventually(lambda: execute(database, in_flight) == [(0,)])
    assert execute(database, DONE) == [(False,)]

    edit_agent(database, "limited", max_running=None)
    resume_agent(database, "limited")
    eventually(lambda: execute(database, DONE) == [(True,)], within=20)
