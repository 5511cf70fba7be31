"""Read a task's events from Redis, from any of them on."""

import uuid
from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import RedisError

from bitinglip.errors import RedisUnreachableError
from bitinglip.streams.events import Event, decode_event, stream_key


def connect(redis_url: str, *, timeout_seconds: float = 5.0) -> "redis.Redis":
    """A client for streams. It connects at its first command.

    Args:
        redis_url: Where Redis is.
        timeout_seconds: For one answer, longer than any wait that `read_events` asks for.
    """
    return redis.Redis.from_url(
        redis_url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=min(2.0, timeout_seconds),
        socket_keepalive=True,
        health_check_interval=30,
    )


def read_events(
    client: "redis.Redis", task_id: uuid.UUID, *, after: str = "0-0", wait_seconds: float = 0.0
) -> Sequence[Event]:
    """The events after one of them, waiting for the first if there is none yet.

    Args:
        client: From `connect`.
        task_id: The task.
        after: The id of the last event seen.
        wait_seconds: How long to wait; 0 does not wait.

    Raises:
        RedisUnreachableError: If Redis does not answer. The record has what the stream would have shown.
    """
    key = stream_key(task_id)
    block = max(1, round(wait_seconds * 1000)) if wait_seconds else None
    try:
        reply: Any = client.xread({key: after}, count=500, block=block)
    except (RedisError, OSError) as exc:
        raise RedisUnreachableError(describe_address(client), str(exc)) from exc
    if not reply:
        return []
    entries = reply[0][1]
    return [decode_event(event_id, fields) for event_id, fields in entries]


def ping(client: "redis.Redis") -> None:
    """Return if Redis answers.

    Raises:
        RedisUnreachableError: If it does not.
    """
    try:
        client.ping()
    except (RedisError, OSError) as exc:
        raise RedisUnreachableError(describe_address(client), str(exc)) from exc


def describe_address(client: "redis.Redis") -> str:
    """`host:port/db`, safe to print."""
    options = client.connection_pool.connection_kwargs
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db', 0)}"
