"""Workers and engines die and leave: nothing is lost, nothing is recorded twice."""

import os
import signal
from pathlib import Path

import psutil

from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.store.database import Database
from tests.conftest import System, eventually, wait_for_workers
from tests.factories import execute, read_outcomes

ONE_SLOT = '[pools.default]\nkinds = ["echo"]\ngpus = []\nslots = 1\n'


def engine_of(system: System, name: str = "worker") -> psutil.Process:
    """The engine process under a worker."""
    children = psutil.Process(system.processes[name].pid).children()
    return next(child for child in children if "bitinglip.engine.host" in child.cmdline())


def test_the_tasks_of_a_killed_worker_run_again_on_another(system: System, client: Client, database: Database) -> None:
    handles = [client.submit("echo", text=str(n), seconds=0.6) for n in range(12)]
    eventually(lambda: sum(handle.status is Status.IN_PROGRESS for handle in handles) == 8)
    engine = engine_of(system)
    system.start_worker("second")

    system.kill("worker")

    assert [handle.result(timeout=30) for handle in handles] == [{"text": str(n)} for n in range(12)]
    outcomes = [read_outcomes(database, handle.id) for handle in handles]
    assert [(1, "lost"), (2, "completed")] in outcomes
    assert all([outcome for _, outcome in attempts].count("completed") == 1 for attempts in outcomes)
    assert execute(database, "SELECT max(failures) FROM tasks") == [(0,)]
    eventually(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_a_worker_that_is_asked_to_stop_finishes_what_runs_and_gives_back_the_rest(
    processes: System, client: Client, database: Database
) -> None:
    processes.start_dispatcher()
    processes.start_worker(pools=ONE_SLOT)
    wait_for_workers(database, 1)
    client.submit("echo").result(timeout=20)
    running = client.submit("echo", text="running", seconds=2.5)
    eventually(lambda: running.status is Status.IN_PROGRESS)
    waiting = client.submit("echo", text="waiting", seconds=30)
    eventually(lambda: waiting.task().queue_state == "reserved")

    # To the whole group, as a service manager does: the engine too.
    os.killpg(processes.processes["worker"].pid, signal.SIGTERM)

    eventually(lambda: waiting.task().queue_state == "ready")
    # A dispatcher that planned meanwhile.
    promise = "UPDATE tasks SET queue_state = 'reserved', worker_id = w.id FROM workers AS w WHERE tasks.id = :id"
    execute(database, promise, id=waiting.id)
    eventually(lambda: waiting.task().queue_state == "ready")
    assert running.status is Status.IN_PROGRESS
    assert running.result(timeout=10) == {"text": "running"}
    assert processes.wait("worker", within=5) == 0
    assert read_outcomes(database, running.id) == [(1, "completed")]
    task = waiting.task()
    assert (task.status, task.attempt, task.started_at) == (Status.PENDING, 1, None)
    assert execute(database, "SELECT state FROM workers") == [("gone",)]


def test_the_tasks_of_a_killed_engine_are_tried_again_on_a_new_one(
    system: System, client: Client, database: Database
) -> None:
    handles = [client.submit("echo", text=str(n), seconds=0.8) for n in range(4)]
    eventually(lambda: all(handle.status is Status.IN_PROGRESS for handle in handles))
    first = engine_of(system)
    first.kill()

    assert [handle.result(timeout=30) for handle in handles] == [{"text": str(n)} for n in range(4)]
    assert {tuple(read_outcomes(database, handle.id)) for handle in handles} == {((1, "lost"), (2, "completed"))}
    assert engine_of(system).pid != first.pid
    assert execute(database, "SELECT count(*) FROM workers") == [(1,)]


def test_a_task_that_crashes_its_engine_once_completes(system: System, client: Client, database: Database) -> None:
    handle = client.submit("echo", text="phoenix", fail="crash", fail_attempts=1)

    assert handle.result(timeout=30) == {"text": "phoenix"}
    assert read_outcomes(database, handle.id) == [(1, "lost"), (2, "completed")]


def test_a_payload_that_no_engine_understands_fails_alone(system: System, client: Client, database: Database) -> None:
    neighbour = client.submit("echo", text="fine", seconds=2)
    eventually(lambda: neighbour.status is Status.IN_PROGRESS)
    execute(
        database,
        """
        WITH odd AS (
            INSERT INTO tasks (id, type, agent_id, max_attempts) VALUES (gen_random_uuid(), 'echo', 'default', 3)
            RETURNING id
        ) INSERT INTO task_details (task_id, title, payload) SELECT id, 'odd', '{"nonsense": 1}' FROM odd
        """,
    )
    execute(database, "UPDATE queues SET has_ready = true")
    task_id = execute(database, "SELECT task_id FROM task_details WHERE title = 'odd'")[0][0]

    eventually(lambda: client.get(task_id).status is Status.FAILED)

    error = client.get(task_id).error
    assert error is not None
    assert (error.code, "nonsense" in error.message) == ("invalid_request", True)
    assert neighbour.result(timeout=20) == {"text": "fine"}
    assert read_outcomes(database, neighbour.id) == [(1, "completed")]


def test_a_model_that_cannot_be_loaded_in_advance_stops_no_worker(
    processes: System, client: Client, database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "no-such-architecture"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Nonsense"], "model_type": "nonsense"}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    processes.start_dispatcher()
    processes.start_worker(
        pools=f'[pools.default]\nkinds = ["echo", "text"]\ngpus = []\nslots = 2\npreload = ["{folder}"]\n'
    )
    wait_for_workers(database, 1)

    assert client.submit("echo", text="unharmed").result(timeout=60) == {"text": "unharmed"}
    eventually(lambda: "model_load_failed" in processes.read_log("worker"), within=60)
    assert "engine_died" not in processes.read_log("worker")


def test_a_worker_that_was_frozen_past_its_lease_abandons_its_tasks_and_comes_back(
    processes: System, client: Client, database: Database
) -> None:
    processes.start_dispatcher()
    processes.start_worker(pools=ONE_SLOT)
    wait_for_workers(database, 1)
    handle = client.submit("echo", seconds=600)
    eventually(lambda: handle.status is Status.IN_PROGRESS)
    frozen = psutil.Process(processes.processes["worker"].pid)
    frozen.suspend()
    eventually(lambda: handle.task().attempt == 2)
    frozen.resume()

    # Its one slot is free for the second attempt only if it let go of the first.
    eventually(lambda: handle.status is Status.IN_PROGRESS)
    assert "lease_lost" in processes.read_log("worker")
    handle.cancel()
    eventually(lambda: handle.status is Status.CANCELLED)
    assert read_outcomes(database, handle.id) == [(1, "lost"), (2, "cancelled")]


def test_a_worker_whose_name_another_one_took_leaves(system: System, client: Client, database: Database) -> None:
    first = system.processes["worker"]

    system.start_worker("worker")

    assert first.wait(timeout=20) is not None
    assert "name_taken" in system.read_log("worker")
    assert client.submit("echo", text="still here").result(timeout=20) == {"text": "still here"}
    assert execute(database, "SELECT count(*) FROM workers WHERE state <> 'gone'") == [(1,)]
