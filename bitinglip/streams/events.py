"""One event of a task."""

import json
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class EventName(StrEnum):
    """What can happen to a task."""

    QUEUED = "queued"
    STARTED = "started"
    PROGRESS = "progress"
    TEXT = "text"
    RETRIED = "retried"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        id: `attempt-sequence`; pass the last one seen to resume after it.
        name: What happened.
        data: `started`: attempt; `progress`: fraction; `text`: text, token_ids; `retried`: error, attempt;
            `finished`: status.
    """

    id: str
    name: EventName
    data: dict[str, Any] = field(default_factory=dict)


def stream_key(task_id: uuid.UUID) -> str:
    """The Redis key of a task's stream."""
    return f"bitinglip:events:{task_id}"


def encode_event(name: str, data: dict[str, Any]) -> dict[Any, Any]:
    """The fields of a stream entry."""
    return {"event": name, "data": json.dumps(data, separators=(",", ":"))}


def decode_event(event_id: bytes, fields: dict[bytes, bytes]) -> Event:
    """The event in a stream entry."""
    return Event(event_id.decode(), EventName(fields[b"event"].decode()), json.loads(fields[b"data"]))
