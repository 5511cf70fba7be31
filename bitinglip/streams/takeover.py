"""How a later attempt takes a stream over: shut the earlier ones out, then read what they have sent.

Invariant: `started` is in the stream before it is read, and Redis refuses every event of an earlier attempt after it.
What this attempt continues from is therefore all that any reader of this stream has seen of the earlier ones.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import RedisError, ResponseError

from bitinglip.streams.events import (
    RUNNING_SECONDS,
    Event,
    EventName,
    decode_event,
    encode_event,
    follows,
    stream_key,
)
from bitinglip.telemetry import get_logger

_BEFORE_ALL = "0-1"

log = get_logger()


@dataclass(frozen=True, slots=True)
class MadeText:
    """The text that earlier attempts have sent.

    Attributes:
        token_ids: Its tokens; the text continues after them.
        chars: How long it is.
    """

    token_ids: list[int]
    chars: int


def take_over(client: "redis.Redis", task_id: uuid.UUID, attempt: int, *, started: dict[str, Any]) -> MadeText | None:
    """Begin an attempt in a task's stream, as event `attempt-1`, and return the text so far.

    Args:
        client: One that gives up soon: the task waits for it.
        task_id: The task.
        attempt: Its number, from 2 on.
        started: The data of the attempt's `started`.

    Returns:
        None if the text must begin again: events are missing, some of its text has no tokens, Redis is away, or a later
        attempt has begun already (this one's events reach no reader, and its worker's next heartbeat says why).
    """
    key = stream_key(task_id)
    pipeline = client.pipeline(transaction=False)
    pipeline.xadd(key, encode_event(EventName.STARTED, started), id=f"{attempt}-1")
    pipeline.expire(key, RUNNING_SECONDS)
    pipeline.xrange(key)
    try:
        begun, _, entries = pipeline.execute(raise_on_error=False)
    except (RedisError, OSError) as exc:
        log.info("takeover_failed", task_id=str(task_id), attempt=attempt, reason=type(exc).__name__)
        return None
    if isinstance(begun, ResponseError) or isinstance(entries, ResponseError):
        log.info("takeover_refused", task_id=str(task_id), attempt=attempt)
        return None
    return read_made_text(decode_event(event_id, fields) for event_id, fields in entries)


def read_made_text(events: Iterable[Event]) -> MadeText | None:
    """The text since the last `restart`; None if it cannot be continued.

    Args:
        events: All that is in a stream. One that begins with a later attempt was wiped or trimmed, or the first attempt
            never reached Redis.
    """
    token_ids: list[int] = []
    chars = 0
    whole = False
    position = _BEFORE_ALL
    for event in events:
        match event.name:
            case EventName.RESTART:
                token_ids, chars, whole = [], 0, True
            case EventName.STARTED if event.id == "1-1":
                whole = True
            case EventName.RESUMED:
                whole = whole and event.data["chars"] == chars
            case EventName.TEXT:
                whole = whole and bool(event.data.get("token_ids"))
                token_ids += event.data.get("token_ids") or []
                chars += len(event.data["text"])
            case EventName.FINISHED:
                # Ended, and brought back by a person, who wants another answer.
                whole = False
        whole = whole and (event.name is EventName.RESTART or follows(position, event.id))
        position = event.id
    return MadeText(token_ids, chars) if whole else None
