"""Sharing by work against a real database: what is charged, settled, limited and displaced, round after round."""

import uuid
from collections import Counter
from typing import Any

import pytest

from bitinglip.domain.task import make_request
from bitinglip.lifecycle import lease
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.edit import retry
from bitinglip.lifecycle.rescue import free_tasks
from bitinglip.lifecycle.waiting import wake_due
from bitinglip.store.charges import settle_charges
from bitinglip.store.database import Database
from bitinglip.store.queues import lock_dispatch
from bitinglip.store.tasks import Doorbell
from tests.factories import dispatch, execute, finish, make_echo, make_worker, measure, read, submit

FAILED = {"code": "echo_error", "message": "no", "retryable": False}


def claim(database: Database, worker: uuid.UUID, *tasks: uuid.UUID) -> list[Doorbell]:
    """Take the leases, as the worker's doorbells would."""
    bells = [Doorbell(task, read(database, task).attempt) for task in tasks]
    assert all(claim_reserved(database, bells, worker))
    return bells


def run_to_end(database: Database, worker: uuid.UUID, task: uuid.UUID, seconds: float, tokens: int = 0) -> None:
    """Claim a reserved task and complete it, having used so much."""
    bell = claim(database, worker, task)[0]
    finish(database, worker, bell, result={}, usage={"engine_seconds": seconds, "total_tokens": tokens})


def read_share(database: Database, agent: str = "default", pool: str = "default") -> tuple[float, int]:
    """Virtual time and tasks in flight."""
    sql = "SELECT virtual_time, in_flight FROM agent_shares WHERE agent_id = :agent AND pool = :pool"
    return tuple(execute(database, sql, agent=agent, pool=pool)[0])  # type: ignore[return-value]


def read_closed(database: Database) -> dict[str, str]:
    """Why lanes are closed, by agent."""
    return dict(execute(database, "SELECT agent_id, closed FROM lanes WHERE closed IS NOT NULL"))


def settle(database: Database) -> None:
    """What a round does first."""
    with database.transaction() as connection:
        lock_dispatch(connection)
        settle_charges(connection)


def test_a_grant_is_charged_an_estimate_and_its_end_what_it_cost(database: Database) -> None:
    worker = make_worker(database, slots=1)
    first, second = submit(database, make_echo(), make_echo())
    dispatch(database)
    assert read_share(database) == (2.0, 2)

    run_to_end(database, worker, first, seconds=5)
    settle(database)
    assert read_share(database) == (6.0, 1)

    run_to_end(database, worker, second, seconds=3)
    settle(database)
    assert read_share(database) == (8.0, 0)


def test_the_next_grants_are_charged_the_recent_mean(database: Database) -> None:
    worker = make_worker(database, slots=1)
    for _ in range(30):
        (task,) = submit(database)
        dispatch(database)
        run_to_end(database, worker, task, seconds=4)
    submit(database)
    dispatch(database)

    (charged,) = execute(database, "SELECT charged FROM tasks WHERE queue_state = 'reserved'")[0]
    assert charged == pytest.approx(4)


def test_a_dear_model_of_one_agent_is_the_guess_for_another(database: Database) -> None:
    worker = make_worker(database, slots=1)
    (task,) = submit(database, make_echo(agent="first"))
    dispatch(database)
    run_to_end(database, worker, task, seconds=9)
    submit(database, make_echo(agent="second"))
    dispatch(database)

    assert execute(database, "SELECT charged FROM tasks WHERE queue_state = 'reserved'") == [(9.0,)]


@pytest.mark.parametrize("outcome", ["failed", "retried", "released"])
def test_a_failure_is_charged_to_nobody(database: Database, outcome: str) -> None:
    worker = make_worker(database, slots=1)
    (task,) = submit(database)
    dispatch(database)
    bell = claim(database, worker, task)[0]
    finish(database, worker, bell, outcome, error=FAILED, usage={"engine_seconds": 7}, retry_seconds=600)
    settle(database)

    assert read_share(database) == (0.0, 0)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [("cancelled", {"code": "cancelled", "message": "no"}), ("failed", {"code": "time_limit", "message": "too long"})],
)
def test_what_its_agent_ended_is_charged(database: Database, outcome: str, error: dict[str, Any]) -> None:
    worker = make_worker(database, slots=1)
    (task,) = submit(database)
    dispatch(database)
    finish(database, worker, claim(database, worker, task)[0], outcome, error=error, usage={"engine_seconds": 7})
    settle(database)

    assert read_share(database) == (7.0, 0)


def test_what_was_never_run_is_given_back(database: Database) -> None:
    worker = make_worker(database, slots=4)
    reserved, running, cancelled = submit(database, make_echo(), make_echo(), make_echo())
    dispatch(database)
    claim(database, worker, running)
    assert read_share(database) == (3.0, 3)

    cancel(database, [cancelled])
    settle(database)
    assert read_share(database) == (2.0, 2)

    lease.drain(database, worker)
    settle(database)
    assert read_share(database)[1] == 1

    execute(database, "UPDATE workers SET state = 'gone'")
    free_tasks(database)
    settle(database)
    assert read_share(database) == (0.0, 0)
    assert read(database, reserved).queue_state == "ready"


def test_a_task_is_settled_once_whatever_is_repeated(database: Database) -> None:
    worker = make_worker(database, slots=1)
    (task,) = submit(database)
    dispatch(database)
    bell = claim(database, worker, task)[0]
    for _ in range(3):
        finish(database, worker, bell, "failed", error=FAILED)
        cancel(database, [task])
    settle(database)
    assert read_share(database) == (0.0, 0)

    retry(database, [task])
    dispatch(database)
    assert read_share(database)[1] == 1


def test_agents_share_by_work_and_not_by_count(database: Database) -> None:
    worker = make_worker(database, slots=1)
    cost = {"dear": 4.0, "cheap": 1.0}
    submit(database, *(make_echo(agent=agent) for agent in cost for _ in range(200)))
    used: Counter[str] = Counter()
    for _ in range(100):
        for task in dispatch(database):
            agent = read(database, task).agent_id
            run_to_end(database, worker, task, cost[agent])
            used[agent] += cost[agent]

    assert used["dear"] == pytest.approx(used["cheap"], rel=0.1)


@pytest.mark.parametrize(("charge", "expected"), [("seconds", 6.0), ("tokens", 500.0), ("tasks", 1.0)])
def test_a_pool_is_charged_in_its_own_unit(database: Database, charge: str, expected: float) -> None:
    worker = make_worker(database, slots=1)
    execute(database, "UPDATE workers SET charge = :charge, speed = 2", charge=charge)
    (task,) = submit(database)
    dispatch(database)
    run_to_end(database, worker, task, seconds=3, tokens=500)
    settle(database)

    assert read_share(database)[0] == expected


def test_an_agent_that_returns_starts_with_the_least_active_one(database: Database) -> None:
    worker = make_worker(database, slots=1)
    submit(database, *(make_echo(agent="busy") for _ in range(12)))
    for _ in range(5):
        for task in dispatch(database):
            run_to_end(database, worker, task, seconds=10)
    settle(database)
    busy, _ = read_share(database, "busy")
    submit(database, make_echo(agent="back"))
    dispatch(database)

    assert busy > 50
    assert read_share(database, "back")[0] >= busy - 20


def test_a_credit_is_kept_while_an_agent_waits(database: Database) -> None:
    """A refund lowers its virtual time below where others stand; only a return from idle lifts it."""
    worker = make_worker(database, slots=1)
    submit(database, *(make_echo(agent=agent) for agent in ("first", "second") for _ in range(6)))
    execute(database, "INSERT INTO costs VALUES ('default', 'echo', '', '', 1, 50, 1, 50, 0)")
    granted = dispatch(database)
    for task in granted:
        run_to_end(database, worker, task, seconds=1)
    settle(database)

    charged = execute(database, "SELECT agent_id, sum(charged) FROM tasks WHERE queue_state = 'reserved' GROUP BY 1")
    waiting = {agent: read_share(database, agent)[0] - cost for agent, cost in charged}
    assert all(time <= 2 for time in waiting.values())


def test_an_urgent_task_has_the_first_slot_that_frees(database: Database) -> None:
    workers = {name: make_worker(database, name, slots=2) for name in ("left", "right")}
    submit(database, *(make_echo() for _ in range(12)))
    dispatch(database)
    held: dict[uuid.UUID, list[uuid.UUID]] = {worker: [] for worker in workers.values()}
    for task, worker in execute(database, "SELECT id, worker_id FROM tasks WHERE worker_id IS NOT NULL ORDER BY seq"):
        held[worker].append(task)
    bells = {worker: claim(database, worker, *tasks[:2]) for worker, tasks in held.items()}

    (urgent,) = submit(database, make_echo(priority="critical"))
    assert dispatch(database) == []
    assert execute(database, "SELECT DISTINCT yields FROM workers") == [(True,)]

    # A slot frees on the right; what was at hand there gives way.
    right = workers["right"]
    finish(database, right, bells[right][0], result={})
    at_hand = Doorbell(held[right][2], 1)
    assert claim_reserved(database, [at_hand], right) == [None]
    assert read(database, at_hand).queue_state == "ready"
    assert urgent in dispatch(database)
    assert read(database, urgent).worker_id == right
    # Until it has begun, nothing else does.
    assert claim_reserved(database, [Doorbell(held[right][3], 1)], right) == [None]
    claim(database, right, urgent)

    dispatch(database)
    assert execute(database, "SELECT DISTINCT yields FROM workers") == [(False,)]
    left = workers["left"]
    finish(database, left, bells[left][0], result={})
    claim(database, left, held[left][2])


def test_urgent_tasks_that_may_not_run_displace_nothing(database: Database) -> None:
    make_worker(database, slots=1)
    submit(database, *(make_echo() for _ in range(4)))
    dispatch(database)
    submit(database, make_echo(agent="paused", priority="critical"))
    execute(database, "UPDATE agents SET paused = true WHERE id = 'paused'")
    submit(database, make_echo(agent="elsewhere", priority="critical"))
    execute(database, "UPDATE workers SET allowed_agents = ARRAY['default', 'paused']")
    dispatch(database)

    assert execute(database, "SELECT yields FROM workers") == [(False,)]


def test_every_tenth_grant_goes_to_the_oldest_of_a_lower_band(database: Database) -> None:
    worker = make_worker(database, slots=1)
    (oldest, *_) = submit(database, *(make_echo(agent="patient", priority="low") for _ in range(9)))
    submit(database, *(make_echo(agent="pressing", priority="high") for _ in range(60)))
    measure(database, "patient", "pressing")
    served: list[str] = []
    first_low = None
    while len(served) < 40:
        for task in dispatch(database):
            record = read(database, task)
            if record.priority == "low":
                first_low = first_low or task
            served.append(str(record.priority))
            run_to_end(database, worker, task, seconds=1)

    assert Counter(served[:40]) == {"high": 36, "low": 4}
    assert first_low == oldest


def test_a_task_that_no_worker_may_take_is_looked_at_again_when_the_workers_change(database: Database) -> None:
    (task,) = submit(database)
    make_worker(database, "strict")
    execute(database, "UPDATE workers SET allowed_agents = ARRAY['other']")
    assert dispatch(database) == []
    assert read_closed(database) == {"default": "no_worker"}

    make_worker(database, "open")
    assert dispatch(database) == [task]


def test_a_pool_that_serves_a_type_later_finds_what_waits(database: Database) -> None:
    make_worker(database, "first", pool="first", slots=1)
    submit(database, *(make_echo() for _ in range(6)))
    assert len(dispatch(database)) == 2

    make_worker(database, "second", pool="second", slots=1)
    assert len(dispatch(database)) == 2


def test_what_older_releases_made_ready_is_passed_on(database: Database) -> None:
    (task,) = submit(database)
    execute(database, "DELETE FROM queues")
    execute(database, "INSERT INTO agent_queues (type, agent_id, priority) VALUES ('echo', 'default', 'medium')")
    make_worker(database)
    assert dispatch(database) == []

    wake_due(database)
    assert dispatch(database) == [task]


def test_a_cost_that_is_not_known_yet_buys_no_place_beside_the_slots(database: Database) -> None:
    worker = make_worker(database, slots=4)
    submit(database, *(make_echo(agent=agent) for agent in ("first", "second") for _ in range(10)))

    granted = dispatch(database)
    assert Counter(read(database, task).agent_id for task in granted) == {"first": 2, "second": 2}

    for task in granted:
        run_to_end(database, worker, task, seconds=1)
    assert len(dispatch(database)) == 8


def test_a_model_that_found_its_place_is_passed_over_no_more(database: Database) -> None:
    """Whoever waits for it begins to wait anew, or the next swap would come at once."""
    make_worker(database, slots=1, kinds=("text",), models=("held",), model_bytes={"held": 60}, memory_limit_bytes=100)
    execute(database, "INSERT INTO models (name, held_bytes) VALUES ('held', 60), ('away', 60)")
    agents = {"first": "held", "second": "away", "third": "away"}
    submit(
        database,
        *(
            make_request("text", {"prompt": "hello"}, model=model, agent_id=agent)
            for agent, model in agents.items()
            for _ in range(6)
        ),
    )
    passed = "SELECT agent_id FROM lanes WHERE passed_at IS NOT NULL ORDER BY 1"
    assert {read(database, task).model for task in dispatch(database)} == {"held"}
    assert execute(database, passed) == [("second",), ("third",)]
    execute(database, "UPDATE lanes SET passed_at = now() - interval '1 hour' WHERE passed_at IS NOT NULL")

    granted = dispatch(database)
    assert [read(database, task).agent_id for task in granted] == ["second"]
    assert execute(database, passed) == []
