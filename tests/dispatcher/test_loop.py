"""A dispatcher goes on: through cut connections, a dead Redis, and beside others; at SIGTERM it ends at once."""

import json
import signal

import pytest

from bitinglip.celery_app import queue_name
from bitinglip.domain.task import QueueState
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.streams.reader import connect
from tests.conftest import System, eventually
from tests.factories import execute, finish, make_echo, make_running, make_worker, measure, read, submit


@pytest.fixture
def dispatcher(processes: System) -> System:
    """A dispatcher that has nothing to do yet."""
    processes.start_dispatcher()
    return processes


def check_dispatching(database: Database, *, within: float = 10) -> None:
    """A new task is reserved."""
    task = submit(database)[0]
    eventually(lambda: read(database, task).queue_state is QueueState.RESERVED, within=within)


def test_a_doorbell_carries_ids_and_no_prompt(dispatcher: System, database: Database, urls: ServerUrls) -> None:
    make_worker(database, "w@node")
    task = submit(database, make_echo(text="a secret"))[0]
    with connect(urls.redis_url) as connection:
        eventually(lambda: connection.llen(queue_name("w@node")) == 1)
        raw = connection.lpop(queue_name("w@node"))

    assert isinstance(raw, bytes)
    assert b"secret" not in raw
    message = json.loads(raw)
    assert message["headers"]["id"] == str(task)
    assert message["headers"]["task"] == "bitinglip.echo"


def test_a_task_is_reserved_as_soon_as_it_comes(dispatcher: System, database: Database) -> None:
    make_worker(database, slots=20)
    for _ in range(5):
        check_dispatching(database)


def test_a_finished_task_makes_room_at_once(dispatcher: System, database: Database) -> None:
    worker = make_worker(database, slots=1)
    running = [make_running(database, worker), make_running(database, worker)]
    waiting = submit(database)[0]
    finish(database, worker, running[0], result={})

    eventually(lambda: read(database, waiting).queue_state is QueueState.RESERVED, within=5)


def test_a_dispatcher_reconnects_when_its_connections_are_cut(dispatcher: System, database: Database) -> None:
    make_worker(database)
    check_dispatching(database)
    for _ in range(3):
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bitinglip-dispatcher'"
        assert execute(database, cut)
        check_dispatching(database)

    assert dispatcher.processes["dispatcher"].poll() is None


def test_a_dispatcher_reserves_at_once_without_redis(
    processes: System, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITINGLIP_REDIS_URL", "redis://127.0.0.1:1/0")
    processes.start_dispatcher()
    make_worker(database, slots=20)
    check_dispatching(database)

    for _ in range(4):
        check_dispatching(database, within=2)
    assert processes.processes["dispatcher"].poll() is None
    assert processes.read_log("dispatcher").count("broker_unreachable") == 1


def test_dispatchers_share_the_work(processes: System, database: Database, urls: ServerUrls) -> None:
    for name in ("first", "second", "third"):
        processes.start_dispatcher(name)
    make_worker(database, "shared", slots=100)
    measure(database, *(f"agent-{n}" for n in range(7)))
    tasks = [submit(database, make_echo(agent=f"agent-{n % 7}"))[0] for n in range(150)]
    eventually(lambda: len(read_queue(urls, "shared")) == 150)

    rung = [json.loads(raw)["headers"]["id"] for raw in read_queue(urls, "shared")]
    assert sorted(rung) == sorted(map(str, tasks))


def read_queue(urls: ServerUrls, worker: str) -> list[bytes]:
    with connect(urls.redis_url) as connection:
        messages = connection.lrange(queue_name(worker), 0, -1)
    assert isinstance(messages, list)
    return messages


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_dispatcher_process_ends_when_asked(processes: System, number: signal.Signals) -> None:
    processes.start_dispatcher()
    eventually(lambda: "dispatcher_started" in processes.read_log("dispatcher"))

    processes.processes["dispatcher"].send_signal(number)

    assert processes.wait("dispatcher", within=5) == 0
    assert "Traceback" not in processes.read_log("dispatcher")
