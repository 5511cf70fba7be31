"""Cancel, time limit and shutdown: each ends in bounded time, and whoever is not to blame loses nothing."""

import os
import signal
import time
from pathlib import Path

import pytest
from psutil import Process

from bitinglip.client import Client, Handle
from bitinglip.domain.task import Status
from bitinglip.lifecycle.lease import drain_by_name
from bitinglip.store.database import Database
from bitinglip.streams.events import stream_key
from tests.conftest import REPOSITORY, System, eventually, wait_for_workers
from tests.factories import execute, read_outcomes
from tests.worker.test_deaths import engine_of

EARLY_SIGNAL = f"""
exec(open({str(REPOSITORY / "celeryconfig.py")!r}).read())
import os, signal
from celery.signals import celeryd_after_setup

@celeryd_after_setup.connect(weak=False)
def stop(**_):
    os.kill(os.getpid(), signal.SIGTERM)
"""


def start(processes: System, database: Database, **environment: str) -> None:
    processes.start_dispatcher()
    processes.start_worker(environment=environment)
    wait_for_workers(database, 1)


def run_until_started(handle: Handle) -> Handle:
    eventually(lambda: handle.status is Status.IN_PROGRESS)
    return handle


def wait_until_silent(client: Client, handle: Handle) -> None:
    """Return when no event has come for a while: the engine hangs."""
    last = (-1, 0.0)

    def is_silent() -> bool:
        nonlocal last
        length = client.redis.xlen(stream_key(handle.id))
        if length != last[0]:
            last = (length, time.monotonic())
        return time.monotonic() - last[1] > 0.3

    eventually(is_silent)


def test_a_running_task_is_cancelled_without_waiting_for_a_heartbeat(
    processes: System, client: Client, database: Database
) -> None:
    start(processes, database, BITINGLIP_HEARTBEAT_SECONDS="20", BITINGLIP_LEASE_SECONDS="60")
    handle = run_until_started(client.submit("echo", seconds=60))

    began = time.monotonic()
    assert handle.cancel()
    eventually(lambda: handle.status is Status.CANCELLED, within=5)
    assert time.monotonic() - began < 2


def test_a_task_that_does_not_stop_costs_its_engine_and_its_neighbours_nothing(
    processes: System, client: Client, database: Database
) -> None:
    start(processes, database, BITINGLIP_CANCEL_SECONDS="0.5")
    neighbour = run_until_started(client.submit("echo", text="neighbour", seconds=3, chunks=300))
    engine = engine_of(processes)
    deaf = run_until_started(client.submit("echo", fail="hang"))
    wait_until_silent(client, neighbour)

    assert deaf.cancel()
    assert deaf.status is Status.IN_PROGRESS, "its slot is not free yet"
    eventually(lambda: deaf.status is Status.CANCELLED, within=5)

    assert not engine.is_running() or engine.status() == "zombie"
    assert neighbour.result(timeout=20) == {"text": "neighbour"}
    assert read_outcomes(database, neighbour.id) == [(1, "lost"), (2, "completed")]
    assert execute(database, "SELECT suspect, failures FROM tasks WHERE id = :id", id=neighbour.id) == [(False, 0)]


@pytest.mark.parametrize("fail", [None, "hang"])
def test_a_task_that_runs_too_long_fails_with_the_limit(
    processes: System, client: Client, database: Database, fail: str | None
) -> None:
    start(processes, database, BITINGLIP_TASK_TIMEOUT="1", BITINGLIP_CANCEL_SECONDS="0.5")
    handle = run_until_started(client.submit("echo", seconds=0 if fail else 60, fail=fail))

    eventually(lambda: handle.status is Status.FAILED)

    task = handle.task()
    assert task.error is not None
    assert (task.error.code, "longer than 1 s" in task.error.message) == ("time_limit", True)
    assert read_outcomes(database, handle.id) == [(1, "failed")]


def test_a_worker_hands_back_what_outlasts_its_drain(processes: System, client: Client, database: Database) -> None:
    start(processes, database, BITINGLIP_DRAIN_SECONDS="1")
    handle = run_until_started(client.submit("echo", seconds=600))

    processes.processes["worker"].terminate()

    assert processes.wait("worker", within=15) == 0
    task = handle.task()
    assert (task.status, task.queue_state, task.attempt, task.failures) == (Status.PENDING, "ready", 2, 0)
    assert read_outcomes(database, handle.id) == [(1, "lost")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_hands_running_work_back_at_once(
    processes: System, client: Client, database: Database, number: signal.Signals
) -> None:
    start(processes, database, BITINGLIP_DRAIN_SECONDS="600")
    handles = [run_until_started(client.submit("echo", seconds=600)) for _ in range(3)]
    worker = processes.processes["worker"]
    worker.send_signal(number)
    eventually(lambda: execute(database, "SELECT state FROM workers") == [("draining",)])
    assert all(handle.status is Status.IN_PROGRESS for handle in handles)

    def insist() -> bool:
        worker.send_signal(number)
        return all(handle.task().queue_state == "ready" for handle in handles)

    # Within a second it would count as the first one, told twice.
    eventually(insist, within=5)
    processes.wait("worker", within=10)
    assert execute(database, "SELECT state FROM workers") == [("gone",)]
    assert all(read_outcomes(database, handle.id) == [(1, "lost")] for handle in handles)


def test_a_worker_drains_from_afar(processes: System, client: Client, database: Database) -> None:
    start(processes, database)
    handle = run_until_started(client.submit("echo", text="to its end", seconds=2))
    name = execute(database, "SELECT name FROM workers")[0][0]

    drain_by_name(database, name)

    late = client.submit("echo", text="too late")
    assert processes.wait("worker", within=15) == 0
    assert handle.result(timeout=1) == {"text": "to its end"}
    assert read_outcomes(database, handle.id) == [(1, "completed")]
    assert late.task().queue_state == "ready"


def test_a_worker_whose_engine_got_stuck_gets_another(processes: System, client: Client, database: Database) -> None:
    start(processes, database, BITINGLIP_STEP_SECONDS="1")
    engine = engine_of(processes)
    handle = client.submit("echo", text="stuck once", fail="hang", fail_attempts=1)

    assert handle.result(timeout=20) == {"text": "stuck once"}

    assert read_outcomes(database, handle.id) == [(1, "lost"), (2, "completed")]
    error = execute(database, "SELECT error ->> 'message' FROM attempts WHERE attempt = 1")[0][0]
    assert "1 s" in error
    eventually(lambda: not engine.is_running() or engine.status() == "zombie")


def test_a_rolling_restart_loses_nothing(processes: System, client: Client, database: Database) -> None:
    processes.start_dispatcher()
    for name in ("first", "second"):
        processes.start_worker(name)
    wait_for_workers(database, 2)
    handles = [client.submit("echo", text=str(n), seconds=0.3) for n in range(80)]

    for name in ("first", "second"):
        processes.processes[name].terminate()
        assert processes.wait(name, within=20) == 0
        processes.start_worker(name)
        wait_for_workers(database, 2)

    assert [handle.result(timeout=60) for handle in handles] == [{"text": str(n)} for n in range(80)]
    assert {tuple(read_outcomes(database, handle.id)) for handle in handles} == {((1, "completed"),)}


def test_a_worker_told_to_stop_before_celery_listens_leaves_in_order(
    processes: System, database: Database, tmp_path: Path
) -> None:
    config = tmp_path / "early.py"
    config.write_text(EARLY_SIGNAL)
    processes.start_worker(environment={"BITINGLIP_CELERY_CONFIG": str(config)})

    assert processes.wait("worker", within=20) == 0
    assert execute(database, "SELECT state FROM workers") == [("gone",)]


def test_a_deaf_consumer_is_started_again(processes: System, client: Client, database: Database) -> None:
    from tests.conftest import make_celery_app

    start(processes, database)
    assert client.submit("echo", text="heard").result(timeout=20)
    name = execute(database, "SELECT name FROM workers")[0][0]
    app = make_celery_app()
    app.control.cancel_consumer(f"bitinglip.worker.{name}", reply=True, timeout=2)

    def is_restarted() -> bool:
        client.submit("echo", text="unheard").result(timeout=20)
        return "consumer_restarted" in processes.read_log("worker")

    eventually(is_restarted, within=40)

    def is_rung() -> bool:
        handle = client.submit("echo", text="heard again")
        handle.result(timeout=20)
        return str(handle.id) not in processes.read_log("worker")

    eventually(is_rung, within=20)
    app.close()


def test_a_paused_postgresql_makes_a_worker_let_go_before_its_lease_can_end(
    processes: System, client: Client, database: Database
) -> None:
    start(processes, database)
    handle = run_until_started(client.submit("echo", text="once", seconds=4))
    backends = execute(database, "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'bitinglip-worker%'")
    for (pid,) in backends:
        Process(pid).suspend()
    try:
        eventually(lambda: "lease_unsure" in processes.read_log("worker"), within=5)
    finally:
        for (pid,) in backends:
            os.kill(pid, signal.SIGCONT)

    assert handle.result(timeout=30) == {"text": "once"}
    outcomes = read_outcomes(database, handle.id)
    assert [outcome for _, outcome in outcomes].count("completed") == 1
    assert outcomes[0] == (1, "lost")


def test_a_task_that_the_heartbeat_delivered_keeps_its_lease_through_a_drain(
    processes: System, client: Client, database: Database
) -> None:
    processes.start_worker()
    wait_for_workers(database, 1)
    handle = client.submit("echo", text="unrung", seconds=4)
    promise = "UPDATE tasks SET queue_state = 'reserved', worker_id = w.id, reserved_at = now() FROM workers AS w"
    execute(database, promise)
    run_until_started(handle)

    processes.processes["worker"].terminate()
    processes.start_dispatcher()

    assert handle.result(timeout=20) == {"text": "unrung"}
    assert read_outcomes(database, handle.id) == [(1, "completed")]
    assert processes.wait("worker", within=10) == 0


def test_a_time_limit_does_not_count_the_start_of_an_engine(
    processes: System, client: Client, database: Database
) -> None:
    processes.start_dispatcher()
    processes.start_worker(environment={"BITINGLIP_TASK_TIMEOUT": "1"})
    wait_for_workers(database, 1, engine_up=False)
    engine = engine_of(processes)
    engine.suspend()
    handle = client.submit("echo", text="in time", seconds=0.5)
    run_until_started(handle)
    eventually(lambda: time.time() - handle.task().started_at.timestamp() > 1.5)
    engine.resume()

    assert handle.result(timeout=20) == {"text": "in time"}
