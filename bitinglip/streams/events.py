"""One event of a task."""

import json
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

RUNNING_SECONDS = 86_400
"""How long a stream stays after an event that was not its task's last."""


class EventName(StrEnum):
    """What can happen to a task."""

    QUEUED = "queued"
    STARTED = "started"
    RESUMED = "resumed"
    """The text goes on after what earlier attempts have sent."""
    RESTART = "restart"
    """The text begins again: what was sent before is void."""
    PROGRESS = "progress"
    TEXT = "text"
    RETRIED = "retried"
    RELEASED = "released"
    """Its worker could not go on, at no cost to the task; another attempt follows."""
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        id: `attempt-sequence`; pass the last one seen to resume after it.
        name: What happened.
        data: `started`: attempt; `resumed`: attempt, chars of text before it; `restart`: attempt; `progress`: fraction,
            and what else its kind says of it; `text`: text, token_ids; `retried`, `released`: error, attempt;
            `finished`: status, error.
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


def next_id(event_id: str) -> str:
    """The id of the event after that one, in the same attempt."""
    attempt, _, sequence = event_id.partition("-")
    return f"{attempt}-{int(sequence) + 1}"


def order_of(event_id: str) -> tuple[int, int]:
    """Attempt and sequence, to compare."""
    attempt, _, sequence = event_id.partition("-")
    return int(attempt), int(sequence)


def follows(event_id: str, later_id: str) -> bool:
    """Whether no event was lost between the two, as far as their numbers tell.

    What an earlier attempt may have lost at its end they do not tell: `resumed` does.
    """
    return later_id == next_id(event_id) or (
        order_of(later_id)[1] == 1 and order_of(later_id)[0] > order_of(event_id)[0]
    )
