"""Work that an agent takes itself: the same lease, retries, expiry and events as for a worker's, without an engine.

The taker is registered as a worker that pulls: it is given nothing, and what it took is ready again when its lease runs
out. Whoever holds its id may renew, complete or fail: a program, or the next call of the command line.
"""

import os
import uuid
from importlib.metadata import version

from bitinglip.domain.catalogue import AGENT
from bitinglip.domain.retry import decide_retry
from bitinglip.errors import LeaseLostError
from bitinglip.lifecycle.lease import register_worker, renew
from bitinglip.lifecycle.outcome import Outcome
from bitinglip.settings import find_node_name
from bitinglip.store.database import Database
from bitinglip.store.pulling import is_recorded, take_task
from bitinglip.store.tasks import Doorbell, Ending, finish_tasks
from bitinglip.store.workers import WorkerRecord, list_held, retire_worker

POOL = "agents"


def register_taker(database: Database, agent_id: str, *, lease_seconds: float) -> uuid.UUID:
    """Register somebody who takes an agent's tasks; returns the id that every later call names.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    taker_id = uuid.uuid4()
    record = WorkerRecord(
        id=taker_id,
        name=f"{agent_id}-{taker_id}",
        node=find_node_name(),
        pool=POOL,
        kinds=[AGENT.name],
        slots=1,
        pid=os.getpid(),
        version=version("bitinglip"),
        state="pulling",
    )
    register_worker(database, record, lease_seconds=lease_seconds)
    return taker_id


def take(database: Database, taker_id: uuid.UUID, agent_id: str, channel_id: str | None = None) -> Doorbell | None:
    """Take the agent's next task, most urgent and then oldest first; None if none is ready.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction() as connection:
        return take_task(connection, taker_id, type_=AGENT.name, agent_id=agent_id, channel_id=channel_id)


def find_taken(database: Database, taker_id: uuid.UUID) -> Doorbell | None:
    """The task that a taker holds now.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction() as connection:
        held = list_held(connection, taker_id)
    return Doorbell(held[0].id, held[0].attempt) if held else None


def keep(database: Database, taker_id: uuid.UUID, taken: Doorbell, *, lease_seconds: float) -> bool:
    """Renew the lease; returns whether the task was cancelled, so that there is no point in going on.

    Raises:
        LeaseLostError: If the lease ran out and the task went to others.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    renewed = renew(database, taker_id, lease_seconds=lease_seconds)
    held = {task.doorbell: task for task in renewed.held} if renewed else {}
    if taken not in held:
        raise LeaseLostError(taken.task_id, taken.attempt)
    return held[taken].cancelled


def end(database: Database, taker_id: uuid.UUID, ending: Ending) -> Outcome:
    """Record how it ended, and end the registration.

    Raises:
        LeaseLostError: If another one took the task meanwhile. Nothing is recorded.
        DatabaseUnreachableError: If PostgreSQL is away. Whether it was recorded is not known: try again.
    """
    with database.transaction() as connection:
        recorded = finish_tasks(connection, [ending], taker_id).get(ending.task_id)
        if recorded is None and not is_recorded(connection, ending, taker_id):
            raise LeaseLostError(ending.task_id, ending.attempt)
        retire_worker(connection, taker_id)
    # Recorded by an earlier call, whose answer was lost.
    return Outcome(recorded or ending.outcome)


def decide_failure(
    taken: Doorbell, *, failures: int, max_attempts: int, code: str, message: str, retryable: bool, base_seconds: float
) -> Ending:
    """What to record when the agent gives up: another attempt, or the end."""
    error = {"code": code, "message": message, "retryable": retryable}
    decision = decide_retry(
        failures=failures,
        max_attempts=max_attempts,
        retryable=retryable,
        base_seconds=AGENT.base_retry_seconds or base_seconds,
    )
    if decision.delay is None:
        return Ending(taken.task_id, taken.attempt, Outcome.FAILED, error=error)
    return Ending(
        taken.task_id, taken.attempt, Outcome.RETRIED, error=error, retry_seconds=decision.delay.total_seconds()
    )
