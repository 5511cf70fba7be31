"""What a task waits for is told as it is, in each situation, with its numbers and what would release it."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.errors import TaskNotFoundError
from bitinglip.lifecycle.agents import edit_agent, pause_agent, resume_agent
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.explain import Explanation, explain_task
from bitinglip.lifecycle.loads import report_load_failure
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.factories import dispatch, execute, finish, make_echo, make_running, make_worker, submit

GB = 10**9


def explain(database: Database, task: uuid.UUID | Doorbell, *, swap_seconds: float = 10.0) -> Explanation:
    return explain_task(database, task.task_id if isinstance(task, Doorbell) else task, swap_seconds=swap_seconds)


def make_text(model: str, agent: str = "bot") -> TaskRequest:
    return make_request("text", {"prompt": "Hello"}, model=model, agent_id=agent)


def know(database: Database, **sizes: int) -> None:
    for name, size in sizes.items():
        execute(database, "INSERT INTO models (name, held_bytes) VALUES (:name, :size)", name=name, size=size)


def test_a_task_that_depends_on_others_names_those_that_are_open(database: Database) -> None:
    worker = make_worker(database)
    done, running = make_running(database, worker), make_running(database, worker)
    finish(database, worker, done, result={})
    child = make_request("echo", {}, depends_on=[done.task_id, running.task_id])
    submit(database, child)

    found = explain(database, child.id)

    assert (found.code, found.position) == ("blocked", None)
    assert found.message == f"it depends on {running.task_id} (in_progress)"
    assert found.release == "its completion"


def test_a_task_for_later_says_when(database: Database) -> None:
    task = make_request("echo", {}, not_before=datetime.now(UTC) + timedelta(minutes=10))
    submit(database, task)

    found = explain(database, task.id)

    assert found.code == "scheduled"
    assert 590 < found.details["seconds"] <= 600
    assert "not to start before" in found.message


def test_a_task_that_is_tried_again_says_when_and_why(database: Database) -> None:
    worker = make_worker(database)
    task = make_running(database, worker)
    finish(database, worker, task, "retried", error={"code": "e", "message": "m"}, retry_seconds=60)

    found = explain(database, task)

    assert found.code == "retry_later"
    assert found.message.startswith("1 of 4 attempts failed; it is tried again at ")


def test_a_paused_agent_is_named_until_it_is_resumed(database: Database) -> None:
    make_worker(database)
    submit(database, make_echo(agent="bot"))
    pause_agent(database, "bot")
    task = submit(database, make_echo(agent="bot"))[0]
    dispatch(database)

    found = explain(database, task)

    assert (found.code, found.release) == ("agent_paused", "'bitinglip agent resume bot'")
    resume_agent(database, "bot")
    assert explain(database, task).code == "no_dispatcher"
    assert dispatch(database)
    assert explain(database, task).code == "reserved"


def test_an_agent_with_enough_at_workers_is_told_the_numbers(database: Database) -> None:
    make_worker(database)
    edit_agent(database, "bot", max_running=3)
    tasks = submit(database, *(make_echo(agent="bot") for _ in range(5)))
    dispatch(database)

    found = explain(database, tasks[-1])

    assert found.code == "max_running"
    assert found.message == "agent 'bot' may have 3 tasks at workers, and 3 are there"
    assert explain(database, tasks[0]).code == "reserved"


def test_a_spent_budget_is_told_with_the_end_of_the_day(database: Database) -> None:
    worker = make_worker(database)
    edit_agent(database, "bot", daily_seconds=100)
    submit(database, make_echo(agent="bot"))
    first = dispatch(database)[0]
    execute(database, "UPDATE tasks SET status = 'in_progress', queue_state = NULL, started_at = now()")
    finish(database, worker, Doorbell(first, 1), result={}, usage={"engine_seconds": 120})
    task = submit(database, make_echo(agent="bot"))[0]
    assert dispatch(database) == []

    found = explain(database, task)

    assert found.code == "daily_budget"
    assert found.message == "agent 'bot' has used 120 of 100 engine seconds today"
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert found.release == f"the day's end at {tomorrow} 00:00 UTC, or a higher budget"


def test_a_budget_that_tasks_at_workers_may_use_up_is_told_so(database: Database) -> None:
    make_worker(database)
    edit_agent(database, "bot", daily_seconds=100)
    tasks = submit(database, *(make_echo(agent="bot") for _ in range(3)))
    # Nothing of it was measured: one at a time.
    assert len(dispatch(database)) == 1

    found = explain(database, tasks[-1])

    assert found.code == "daily_budget"
    assert found.message.endswith("0 of 100 engine seconds today, and its 1 tasks at workers may use the rest")


def test_an_agent_whose_turn_it_is_not_is_told_who_goes_before(database: Database) -> None:
    make_worker(database, slots=1)
    submit(database, *(make_echo(agent="greedy") for _ in range(2)))
    assert len(dispatch(database)) == 2
    mine = submit(database, *(make_echo(agent="greedy") for _ in range(3)))
    submit(database, *(make_echo(agent="other") for _ in range(9)), *(make_echo(agent="third") for _ in range(1)))
    dispatch(database)

    found = explain(database, mine[2])

    # `other` returned at 2, where `greedy` is; before the third of `greedy` it has had two turns, and `third` one.
    assert found.code == "agent_turn"
    assert (found.details["rivals"], found.details["agents"], found.details["own"]) == (3, 2, 2)
    assert found.position == 5
    assert found.message.startswith("it is not the turn of agent 'greedy': ")
    assert "its virtual time is 2.00, the least of the others 2.00" in found.message
    order = drain(database)
    assert order.index(mine[2]) == 5


def drain(database: Database) -> list[uuid.UUID]:
    """The order in which tasks are granted as workers end what they have, one at a time."""
    order: list[uuid.UUID] = []
    while True:
        held = execute(database, "SELECT id, worker_id FROM tasks WHERE worker_id IS NOT NULL AND finished_at IS NULL")
        if not held:
            return order
        task, worker = held[0]
        execute(
            database,
            "UPDATE tasks SET status = 'in_progress', queue_state = NULL, started_at = now() WHERE id = :id",
            id=task,
        )
        finish(database, worker, Doorbell(task, 1), result={}, usage={"engine_seconds": 1})
        order += dispatch(database)


def test_older_tasks_of_its_own_agent_go_before(database: Database) -> None:
    make_worker(database, slots=2)
    tasks = submit(database, *(make_echo() for _ in range(10)))
    dispatch(database)

    found = explain(database, tasks[-1])

    assert (found.code, found.position) == ("older_first", 5)
    assert found.message == "5 older tasks of agent 'default' go before it; all 2 slots of worker are taken"


def test_an_agent_whose_turn_it_is_hears_of_its_own_older_tasks(database: Database) -> None:
    make_worker(database, slots=1)
    submit(database, *(make_echo(agent="ahead") for _ in range(2)))
    dispatch(database)
    mine = submit(database, *(make_echo(agent="mine") for _ in range(4)))
    submit(database, *(make_echo(agent="ahead") for _ in range(2)))
    dispatch(database)
    execute(database, "UPDATE lanes SET virtual_time = 1 WHERE agent_id = 'mine'")
    execute(database, "UPDATE agent_shares SET virtual_time = 1 WHERE agent_id = 'mine'")

    found = explain(database, mine[3])

    assert found.code == "older_first"
    assert found.message.startswith(
        "3 older tasks of agent 'mine', and meanwhile 2 of 1 other agent, go before it; the only slot of worker"
    )


def test_a_more_urgent_band_is_told_first(database: Database) -> None:
    make_worker(database, slots=1)
    submit(database, *(make_echo(agent="other") for _ in range(2)))
    dispatch(database)
    task = submit(database, make_echo(agent="bot", priority="low"))[0]
    submit(database, *(make_echo(agent="other", priority="high") for _ in range(3)), make_echo(priority="medium"))
    dispatch(database)

    found = explain(database, task)

    assert (found.code, found.position) == ("more_urgent_first", 4)
    assert found.message.startswith("4 tasks of a more urgent priority than low go before it")


def test_full_workers_are_named_to_who_is_next(database: Database) -> None:
    for name in ("a", "b"):
        make_worker(database, name, slots=2)
    submit(database, *(make_echo(agent="other") for _ in range(8)))
    dispatch(database)
    task = submit(database, make_echo(agent="bot"))[0]
    dispatch(database)

    found = explain(database, task)

    assert (found.code, found.position) == ("workers_full", 0)
    assert found.message == "it is next, and all 4 slots of a, b are taken: 0 running and 8 at hand"
    assert found.details["workers"] == {"a": 4, "b": 4}


def test_without_a_worker_it_says_so(database: Database) -> None:
    task = submit(database)[0]
    dispatch(database)

    found = explain(database, task)

    assert (found.code, found.release) == ("no_worker", "'bitinglip worker start'")


def test_a_type_that_no_worker_does_is_told_with_what_they_do(database: Database) -> None:
    task = submit(database)[0]
    make_worker(database, kinds=("text", "image"))
    dispatch(database)

    found = explain(database, task)

    assert found.code == "no_worker_for_type"
    assert found.message == "none of 1 workers does 'echo'; they do image, text"


def test_a_model_that_no_worker_may_take_is_told_for_each(database: Database) -> None:
    know(database, big=20 * GB)
    task = submit(database, make_text("big"))[0]
    make_worker(database, "small", kinds=("text",), memory_limit_bytes=8 * GB)
    make_worker(database, "picky", kinds=("text",), allowed_models=["tiny"])
    make_worker(database, "private", kinds=("text",), allowed_agents=["boss"])
    make_worker(database, "broken", kinds=("text",))
    report_load_failure(database, type_="text", model="big", worker_name="broken", message="no such file")
    dispatch(database)
    assert execute(database, "SELECT closed FROM lanes") == [("no_worker",)]

    found = explain(database, task)

    assert found.code == "no_worker_for_model"
    assert {name: worker["code"] for name, worker in found.details["workers"].items()} == {
        "small": "does_not_fit",
        "picky": "model_not_allowed",
        "private": "agent_not_allowed",
        "broken": "load_failed",
    }
    assert "small: it needs 20,000,000,000 bytes, the worker holds 8,000,000,000" in found.message
    assert "picky: may load only tiny" in found.message
    assert "private: serves only agents boss" in found.message
    assert "broken: could not load it (1 times, last: no such file), not tried before " in found.message
    assert found.release is not None
    assert found.release.startswith("the next try, in ")


def test_a_model_that_must_wait_for_its_swap_says_how_long(database: Database) -> None:
    know(database, one=6 * GB, two=6 * GB)
    worker = make_worker(database, kinds=("text",), slots=4, models=["one"], memory_limit_bytes=8 * GB)
    make_running(database, worker, make_text("one"))
    task = submit(database, make_text("two"))[0]
    dispatch(database)
    assert execute(database, "SELECT passed_at IS NOT NULL FROM lanes") == [(True,)]
    execute(database, "UPDATE lanes SET passed_at = now() - interval '3 seconds'")

    found = explain(database, task)

    assert found.code == "passed_over"
    assert found.details["passed_seconds"] == pytest.approx(3, abs=1)
    assert found.details["swap_in_seconds"] == pytest.approx(7, abs=1)
    assert "no worker holds model 'two'" in found.message
    assert found.release is not None
    assert "swap in" in found.release


def test_a_task_whose_model_others_keep_busy_is_told_where_it_is(database: Database) -> None:
    know(database, one=6 * GB, two=6 * GB)
    busy = make_worker(database, "busy", kinds=("text",), slots=1, models=["one"], memory_limit_bytes=8 * GB)
    free = make_worker(database, "free", kinds=("text",), slots=2, models=["two"], memory_limit_bytes=8 * GB)
    for worker, model in ((busy, "one"), (busy, "one"), (free, "two"), (free, "two")):
        make_running(database, worker, make_text(model))
    submit(database, make_text("two", agent="other"))
    task = submit(database, make_text("one"))[0]
    assert len(dispatch(database)) == 1

    found = explain(database, task)

    assert (found.code, found.position) == ("model_busy", 0)
    assert found.message.startswith("it is next, and its model 'one' is held by busy only, whose 1 slots are taken: 2 ")
    assert found.details["slots"] == 1


def test_a_reserved_task_says_what_runs_before_it(database: Database) -> None:
    worker = make_worker(database, "w", slots=1)
    make_running(database, worker)
    submit(database)
    (task,) = dispatch(database)

    found = explain(database, task)

    assert (found.code, found.position) == ("reserved", 1)
    assert found.message == "worker w has it at hand; it runs 1 on 1 slots"


def test_a_task_whose_engine_starts_says_so(database: Database) -> None:
    make_worker(database, "w", engine_up=False)
    submit(database)
    (task,) = dispatch(database)

    found = explain(database, task)

    assert (found.code, found.message) == (
        "engine_starting",
        "the engine of worker w, which it was given to, is starting",
    )


def test_a_task_whose_worker_has_gone_silent_says_so(database: Database) -> None:
    make_worker(database, "w")
    submit(database)
    (task,) = dispatch(database)
    execute(database, "UPDATE workers SET lease_expires_at = now()")

    found = explain(database, task)

    assert (found.code, found.message) == ("worker_silent", "worker w, which it was given to, has gone silent")


def test_tasks_of_models_that_are_elsewhere_do_not_go_before(database: Database) -> None:
    for name in ("one", "two"):
        worker = make_worker(database, name, kinds=("text",), slots=1, models=[name])
        for _ in range(2):
            make_running(database, worker, make_text(name))
    submit(database, *(make_text("two", agent="other") for _ in range(5)), make_text("one", agent="other"))
    task = submit(database, *(make_text("one") for _ in range(3)))[2]
    assert dispatch(database) == []

    found = explain(database, task)

    assert (found.details["own"], found.details["rivals"], found.position) == (2, 1, 3)


def test_a_running_task_names_its_worker(database: Database) -> None:
    task = make_running(database, make_worker(database, "w"))

    found = explain(database, task)

    assert found.code == "in_progress"
    assert found.message.startswith("worker w has run it for 0.")
    cancel(database, [task.task_id])
    assert explain(database, task).code == "cancelling"


def test_an_ended_task_says_how(database: Database) -> None:
    worker = make_worker(database)
    failed, completed, waiting = make_running(database, worker), make_running(database, worker), submit(database)[0]
    finish(database, worker, failed, "failed", error={"code": "oops", "message": "it broke", "retryable": False})
    finish(database, worker, completed, result={})
    cancel(database, [waiting])

    assert explain(database, failed).message == "it has failed: oops: it broke"
    assert explain(database, failed).release == f"'bitinglip task retry {failed.task_id}'"
    assert explain(database, completed).message.startswith("it completed at 20")
    assert explain(database, completed).details["finished_at"] is not None
    assert explain(database, waiting).code == "cancelled"


def test_work_of_agents_waits_for_its_agent(database: Database) -> None:
    task = make_request("agent", {}, title="Write", agent_id="bot")
    submit(database, task)

    assert explain(database, task.id).release == "'bitinglip agent next --agent bot'"


def test_an_unknown_task_is_not_explained(database: Database) -> None:
    with pytest.raises(TaskNotFoundError, match=r"task '[0-9a-f-]{36}' is not known"):
        explain(database, uuid.uuid4())
