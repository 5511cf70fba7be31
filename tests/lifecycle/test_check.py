"""Whatever is broken by hand is found, named and put right; a sound database is left alone."""

import json
import uuid

import pytest
from click.testing import CliRunner

from bitinglip.cli.root import cli
from bitinglip.domain.task import make_request
from bitinglip.lifecycle.agents import edit_agent
from bitinglip.lifecycle.check import find_all_drift, repair_all_drift
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.rescue import rescue
from bitinglip.lifecycle.waiting import settle
from bitinglip.store.consistency import RULES
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.conftest import forget_settings
from tests.factories import dispatch, execute, finish, make_echo, make_worker, read, submit

READY = "SELECT id FROM tasks WHERE queue_state = 'ready' LIMIT 1"
BREAKS = {
    "queue_forgotten": "UPDATE queues SET has_ready = false",
    "queue forgotten by name": "DELETE FROM queues",
    "queue_empty": "INSERT INTO queues (type, model, agent_id, priority) VALUES ('echo', '', 'nobody', 'low')",
    "lane_missing": "DELETE FROM lanes WHERE agent_id = 'ann'",
    "lane_left_over": "INSERT INTO lanes VALUES ('default', 'echo', '', 'nobody', 'low', 0)",
    "lane_left_over in another pool": "INSERT INTO lanes SELECT 'gone', type, model, agent_id, priority, 0 FROM lanes",
    "lane_time": "UPDATE lanes SET virtual_time = virtual_time + 0.5",
    "lane_time of nobody": "DELETE FROM agent_shares WHERE agent_id = 'ann'",
    "in_flight": "UPDATE agent_shares SET in_flight = in_flight - 1",
    "in_flight of a lost settlement": "DELETE FROM settlements",
    "in_flight of a settlement too many": "INSERT INTO settlements (pool, type, model, agent_id, released, charged)"
    " SELECT pool, type, model, agent_id, released, charged FROM settlements",
    "held_by_nobody": "UPDATE workers SET state = 'gone', lease_expires_at = now() - interval '2 min'",
    "held_by_nobody known": "DELETE FROM workers",
    "parent_unmarked": "UPDATE tasks SET has_children = false",
    "blocked_by_nothing": "DELETE FROM dependencies",
    "details_missing": f"DELETE FROM task_details WHERE task_id IN ({READY})",
    "details_missing of a reserved task": "DELETE FROM task_details WHERE task_id IN"
    " (SELECT id FROM tasks WHERE queue_state = 'reserved')",
    "budget_spent": "UPDATE agents SET spent_seconds = 1",
    "budget_spent another day": "UPDATE agents SET spent_on = spent_on - 1",
}
CAUSED = {"queue forgotten by name": "queue_forgotten"}


def name_code(name: str) -> str:
    return CAUSED.get(name, name.partition(" ")[0])


@pytest.fixture
def busy(database: Database) -> Database:
    """Every place has a task: ready, reserved, running, blocked, ended and not yet settled."""
    worker = make_worker(database, slots=2)
    edit_agent(database, "ann", daily_seconds=1_000)
    submit(database, *(make_echo(agent=agent) for agent in ("ann", "bob") for _ in range(6)))
    parent = submit(database, make_echo(agent="ann"))[0]
    submit(database, make_request("echo", {}, agent_id="ann", depends_on=[parent]))
    first, *others = [Doorbell(task, 1) for task in dispatch(database)]
    assert None not in claim_reserved(database, [first, *others[:2]], worker)
    assert finish(database, worker, first, result={}, usage={"engine_seconds": 3.0, "total_tokens": 5})
    # Settles the first.
    dispatch(database)
    assert finish(database, worker, others[0], result={}, usage={"engine_seconds": 2.0})
    return database


def check_all_ends(database: Database) -> None:
    """After the repair nothing is stuck, and nothing drifts any more."""
    worker = make_worker(database, "last", slots=20)
    execute(database, "UPDATE workers SET state = 'gone', lease_expires_at = now() WHERE name <> 'last'")
    for _ in range(3):
        rescue(database, lease_seconds=0.001)
        settle(database)
        dispatch(database)
        held = "SELECT id, attempt FROM tasks WHERE finished_at IS NULL AND worker_id = :w"
        bells = [Doorbell(task, attempt) for task, attempt in execute(database, held, w=worker)]
        assert None not in claim_reserved(database, bells, worker)
        assert all(finish(database, worker, bell, result={}) for bell in bells)
    assert execute(database, "SELECT count(*) FROM tasks WHERE finished_at IS NULL") == [(0,)]
    assert find_all_drift(database) == []


def test_a_busy_system_has_no_drift(busy: Database) -> None:
    assert find_all_drift(busy) == []
    assert repair_all_drift(busy) == []


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found_and_repaired(busy: Database, name: str) -> None:
    execute(busy, BREAKS[name])

    assert name_code(name) in {drift.code for drift in find_all_drift(busy)}
    assert name_code(name) in {drift.code for drift in repair_all_drift(busy)}

    assert find_all_drift(busy) == []
    check_all_ends(busy)


def test_every_rule_is_broken_here() -> None:
    assert {name_code(name) for name in BREAKS} == {rule.code for rule in RULES}


def test_a_lost_task_fails_and_says_so(busy: Database) -> None:
    task = execute(busy, READY)[0][0]
    execute(busy, "DELETE FROM task_details WHERE task_id = :id", id=task)

    repair_all_drift(busy)

    lost = read(busy, task)
    assert lost.error is not None
    assert (lost.status, lost.error.code) == ("failed", "details_lost")


def test_what_a_sweep_is_about_to_put_right_is_no_drift(busy: Database) -> None:
    execute(busy, "UPDATE queues SET has_ready = false, listed = false, emptied_at = now()")
    execute(busy, "DELETE FROM lanes")
    execute(busy, "UPDATE workers SET state = 'gone', lease_expires_at = now()")

    assert find_all_drift(busy) == []


def test_the_command_names_what_it_found_and_exits_with_1_until_it_is_repaired(busy: Database) -> None:
    assert check() == (0, [])
    execute(busy, "UPDATE agent_shares SET in_flight = 7 WHERE agent_id = 'bob'")

    status, drift = check()
    assert (status, [(found["code"], found["count"]) for found in drift]) == (1, [("in_flight", 1)])
    assert drift[0]["examples"][0].startswith("default bob 7 for ")
    assert check("--repair")[0] == 0
    assert check() == (0, [])


def test_a_report_shows_only_a_few_examples(busy: Database) -> None:
    for _ in range(9):
        execute(busy, "INSERT INTO agent_shares VALUES ('pool', :agent, 0, 1)", agent=uuid.uuid4().hex)

    assert [(drift.count, len(drift.examples)) for drift in find_all_drift(busy)] == [(9, 5)]


def check(*arguments: str) -> tuple[int, list[dict[str, object]]]:
    forget_settings()
    result = CliRunner().invoke(cli, ["db", "check", "--json", *arguments], prog_name="bitinglip")
    forget_settings()
    return result.exit_code, json.loads(result.stdout)["drift"]
