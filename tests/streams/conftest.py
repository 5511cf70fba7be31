"""Connections to the run's Redis, and a Redis that a test may kill."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from bitinglip.embedded.ports import is_free
from bitinglip.settings import ServerUrls
from bitinglip.streams.reader import connect
from bitinglip.streams.writer import EventWriter
from tests.worker.test_servers_away import OwnRedis


@pytest.fixture
def connection(urls: ServerUrls) -> Iterator["redis.Redis"]:
    opened = connect(urls.redis_url)
    yield opened
    opened.close()


@pytest.fixture
def writer(urls: ServerUrls) -> Iterator[EventWriter]:
    client = connect(urls.redis_url)
    opened = EventWriter(client, keep_seconds=77)
    yield opened
    opened.close()
    client.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    port = next(port for port in range(21_003, 31_000, 7) if is_free(port))
    server = OwnRedis(tmp_path, port)
    yield server
    server.kill()
