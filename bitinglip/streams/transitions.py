"""Every task's transitions, as they happen, on one Redis channel: for dashboards, event feeds and `bitinglip events`.

Best effort: nobody waits for a message and none is kept. The record tells what became of a task; a listener that was
cut off has missed what was said meanwhile.
"""

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import redis
from redis.exceptions import RedisError

from bitinglip.domain.task import Status
from bitinglip.errors import RedisUnreachableError
from bitinglip.streams.channel import listen, subscribe
from bitinglip.streams.reader import describe_address
from bitinglip.telemetry import get_logger

CHANNEL = "bitinglip:transitions"

MAX_TASKS_A_MESSAGE = 1_000

log = get_logger()


class TransitionName(StrEnum):
    """What can become of a task."""

    QUEUED = "queued"
    STARTED = "started"
    RETRIED = "retried"
    RELEASED = "released"
    FINISHED = "finished"
    CANCELLING = "cancelling"
    UPDATED = "updated"
    DELETED = "deleted"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of one task.

    Attributes:
        status: Of the task, after it.
        attempt: The attempt that it concerns; the next one where none runs.
        error_code: Why, where something went wrong.
    """

    event: TransitionName
    task_id: uuid.UUID
    agent_id: str
    status: Status
    attempt: int
    error_code: str | None = None


def encode_transition(transition: Transition) -> str:
    """The message that says so."""
    return _dump(
        {
            "event": transition.event,
            "task_id": str(transition.task_id),
            "agent_id": transition.agent_id,
            "status": transition.status,
            "attempt": transition.attempt,
            "error_code": transition.error_code,
        }
    )


def encode_queued(agent_id: str, task_ids: Sequence[uuid.UUID]) -> Iterator[str]:
    """The messages that say that an agent's tasks are queued: few, however many tasks."""
    for start in range(0, len(task_ids), MAX_TASKS_A_MESSAGE):
        ids = [str(task_id) for task_id in task_ids[start : start + MAX_TASKS_A_MESSAGE]]
        fields = {"event": TransitionName.QUEUED, "task_ids": ids, "agent_id": agent_id}
        yield _dump({**fields, "status": Status.PENDING, "attempt": 1, "error_code": None})


def decode_transitions(message: bytes) -> list[Transition]:
    """The transitions in a message, one a task; none if it is not one of ours."""
    try:
        document = json.loads(message)
        ids = document["task_ids"] if "task_ids" in document else [document["task_id"]]
        return [
            Transition(
                TransitionName(document["event"]),
                uuid.UUID(task_id),
                document["agent_id"],
                Status(document["status"]),
                document["attempt"],
                document.get("error_code"),
            )
            for task_id in ids
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        log.info("transition_unreadable", reason=repr(exc))
        return []


def listen_transitions(
    client: "redis.Redis",
    *,
    agent: str | None = None,
    stop: threading.Event | None = None,
    on_connection: Callable[[bool], None] = lambda _: None,
) -> Iterator[Transition]:
    """The transitions from this call on, until told to stop; goes on when Redis is back after an absence.

    Args:
        client: From `connect`; it may be used for other things meanwhile.
        agent: This agent's only.
        stop: Ends it within half a second when it is set.
        on_connection: Told False when Redis is lost, True when it is back.

    Raises:
        RedisUnreachableError: If Redis cannot be reached now.
    """
    try:
        first = subscribe(client, CHANNEL)
    except (RedisError, OSError) as exc:
        raise RedisUnreachableError(describe_address(client), str(exc)) from exc
    messages = listen(client, lambda: CHANNEL, stop or threading.Event(), on_connection, first)
    return (
        transition
        for message in messages
        for transition in decode_transitions(message)
        if agent is None or transition.agent_id == agent
    )


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))
