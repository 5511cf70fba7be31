"""A worker is woken from afar; a lost ring is harmless, and the listener outlives everything but its close."""

import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
import redis

from bitinglip.streams.reader import connect
from bitinglip.streams.wake import WakeListener, wake_worker
from tests.conftest import eventually
from tests.worker.test_servers_away import OwnRedis

Listen = Callable[..., WakeListener]


@pytest.fixture
def listen(connection: "redis.Redis") -> Iterator[Listen]:
    opened: list[WakeListener] = []

    def start(client: "redis.Redis", worker: uuid.UUID, on_wake: Callable[[], None]) -> WakeListener:
        opened.append(WakeListener(client, worker, on_wake))
        return opened[-1]

    yield start
    for listener in opened:
        listener.close()
        assert not listener._thread.is_alive()


def test_a_worker_hears_its_own_ring_only(listen: Listen, connection: "redis.Redis") -> None:
    worker, woken = uuid.uuid4(), threading.Semaphore(0)
    listen(connection, worker, woken.release)
    eventually(lambda: wake_worker(connection, worker))
    assert woken.acquire(timeout=5)

    assert not wake_worker(connection, uuid.uuid4())
    assert not woken.acquire(timeout=0.2)


def test_a_worker_that_has_registered_anew_hears_its_new_id(listen: Listen, connection: "redis.Redis") -> None:
    before, after, woken = uuid.uuid4(), uuid.uuid4(), threading.Event()
    listener = listen(connection, before, woken.set)
    eventually(lambda: wake_worker(connection, before))
    assert woken.wait(5)
    woken.clear()

    listener.watch(after)

    eventually(lambda: wake_worker(connection, after))
    assert woken.wait(5)
    assert not wake_worker(connection, before)


def test_a_callback_that_fails_is_called_again(listen: Listen, connection: "redis.Redis") -> None:
    worker, calls = uuid.uuid4(), threading.Semaphore(0)

    def fail() -> None:
        calls.release()
        message = "no"
        raise RuntimeError(message)

    listen(connection, worker, fail)
    for _ in range(2):
        eventually(lambda: wake_worker(connection, worker))
        assert calls.acquire(timeout=5)


def test_a_listener_starts_before_redis_and_outlives_it(listen: Listen, own_redis: OwnRedis) -> None:
    own_redis.kill()
    worker, woken = uuid.uuid4(), threading.Event()
    client = connect(own_redis.url)
    listener = listen(client, worker, woken.set)
    for _ in range(2):
        assert not wake_worker(client, worker)
        own_redis.start()
        eventually(lambda: wake_worker(client, worker))
        assert woken.wait(5)
        woken.clear()
        own_redis.kill()
    listener.close()
    client.close()
