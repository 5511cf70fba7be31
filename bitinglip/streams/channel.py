"""Hear a Redis channel for as long as one likes, whatever becomes of Redis meanwhile."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from redis.client import PubSub

POLL_SECONDS = 0.5
"""Between two looks at whether to go on."""

RETRY_SECONDS = 0.5
"""Between two tries to reach Redis."""

_CONFIRM_SECONDS = 5.0


def subscribe(client: "redis.Redis", channel: str) -> "PubSub":
    """Subscribe, and return once Redis has said so: every later message is heard.

    Raises:
        RedisError: If it cannot be reached or does not answer.
        OSError: Likewise.
    """
    pubsub: PubSub = client.pubsub()  # type: ignore[no-untyped-call]
    try:
        pubsub.subscribe(channel)
        deadline = time.monotonic() + _CONFIRM_SECONDS
        while time.monotonic() < deadline:
            answer = pubsub.get_message(timeout=POLL_SECONDS)
            if answer is not None and answer["type"] == "subscribe":
                return pubsub
        message = f"no answer within {_CONFIRM_SECONDS:g} s"
        raise RedisTimeoutError(message)
    except BaseException:
        pubsub.close()
        raise


def listen(
    client: "redis.Redis",
    find_channel: Callable[[], str],
    stop: threading.Event,
    on_connection: Callable[[bool], None],
    first: "PubSub | None" = None,
) -> Iterator[bytes]:
    """The messages of a channel until `stop` is set.

    Args:
        client: From `connect`.
        find_channel: The channel's name now; when it changes, so does the subscription.
        stop: Looked at twice a second.
        on_connection: Told False when Redis is lost, True when it is back.
        first: A subscription to begin with.
    """
    lost = False
    pubsub = first
    while not stop.is_set():
        channel = find_channel()
        try:
            pubsub = pubsub or subscribe(client, channel)
            if lost:
                lost = False
                on_connection(True)
            while not stop.is_set() and channel == find_channel():
                message = pubsub.get_message(timeout=POLL_SECONDS)
                if message is not None and message["type"] == "message":
                    yield message["data"]
        except (RedisError, OSError):
            if not lost:
                lost = True
                on_connection(False)
            stop.wait(RETRY_SECONDS)
        finally:
            if pubsub is not None:
                pubsub.close()
            pubsub = None
