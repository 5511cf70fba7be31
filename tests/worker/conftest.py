"""One running system for the tests of a file that leave it as they found it."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from celery import Celery

from bitinglip.client import Client
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from tests.conftest import System, eventually, make_celery_app, own_processes, own_urls, wait_for_workers


@pytest.fixture(scope="module")
def running_urls(servers: ServerUrls) -> Iterator[ServerUrls]:
    """The file's own database."""
    with own_urls(servers) as own:
        yield own


@pytest.fixture(scope="module")
def running(running_urls: ServerUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A dispatcher and a worker that the whole file shares."""
    with own_processes(running_urls, tmp_path_factory.mktemp("running")) as started:
        started.start_dispatcher()
        started.start_worker()
        database = Database(running_urls.database_url)
        wait_for_workers(database, 1)
        database.close()
        yield started


@pytest.fixture
def running_client(running: System) -> Iterator[Client]:
    """A client of the shared system."""
    with Client(*running.urls) as opened:
        yield opened


@pytest.fixture
def running_database(running: System) -> Iterator[Database]:
    """The database of the shared system."""
    opened = Database(running.urls.database_url)
    yield opened
    opened.close()


@dataclass
class CeleryEvents:
    """What Flower would see."""

    seen: list[dict[str, Any]] = field(default_factory=list)

    def of(self, task_id: object) -> list[str]:
        """The types of a task's events, in their order."""
        return [event["type"] for event in self.seen if event.get("uuid") == str(task_id)]

    def get(self, task_id: object, type_: str) -> dict[str, Any]:
        """One event of a task; waits for it."""

        def find() -> dict[str, Any] | None:
            found = [e for e in self.seen if e.get("uuid") == str(task_id) and e["type"] == type_]
            return found[0] if found else None

        return eventually(find) or {}


def watch_celery(redis_url: str) -> Iterator[CeleryEvents]:
    """A real Celery event receiver in a thread."""
    app = Celery("monitor", broker=redis_url, set_as_current=False)
    app.conf.broker_transport_options = {"priority_steps": [0], "ack_emulation": False}
    events = CeleryEvents()
    ready = threading.Event()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.seen.append})
        receiver.on_consume_ready = lambda *_, **__: ready.set()
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        assert ready.wait(10)
        yield events
        receiver.should_stop = True
        thread.join(10)
    app.close()


@pytest.fixture(scope="module")
def celery_events(running: System) -> Iterator[CeleryEvents]:
    """The Celery events of the shared system."""
    yield from watch_celery(running.urls.redis_url)


@pytest.fixture(scope="module")
def celery_app(running: System) -> Iterator[Celery]:
    """The project's application as another process would use it."""
    made = make_celery_app()
    yield made
    made.close()
