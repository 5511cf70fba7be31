"""A due time becomes a task, or a chore's message: once, however many beats there are.

The claim and what it is for are one transaction: a beat that is killed in between has done neither.
"""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime

from bitinglip.domain.task import TaskRequest
from bitinglip.errors import InvalidRequestError, LimitExceededError
from bitinglip.lifecycle.submit import submit_within
from bitinglip.settings import TaskSettings
from bitinglip.store import recurring
from bitinglip.store.database import Database, retry_once


def read_marks(database: Database, names: Sequence[str]) -> tuple[datetime, dict[str, datetime]]:
    """PostgreSQL's time and the last due time of each entry; an entry that is new begins now.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def read() -> tuple[datetime, dict[str, datetime]]:
        with database.statement() as connection:
            now, marks = recurring.read_marks(connection, names)
            if new := [name for name in names if name not in marks]:
                recurring.mark_new(connection, new)
            return now, {name: marks.get(name, now) for name in names}

    return retry_once(read)


def submit_due(
    database: Database, name: str, due: datetime, request: TaskRequest, settings: TaskSettings
) -> uuid.UUID | None:
    """Claim a due time and record its task; returns the task's id, or None if another beat was first.

    Raises:
        LimitExceededError: If too many would wait. The due time is spent all the same.
        InvalidRequestError: If its key was used for something else. The due time is spent all the same.
        DatabaseUnreachableError: If PostgreSQL is away. Neither was done, or both.
    """
    with database.transaction() as connection:
        if not recurring.claim_due(connection, name, due):
            return None
        try:
            task_id = submit_within(connection, request, settings)
        except (LimitExceededError, InvalidRequestError) as exc:
            refusal: Exception = exc
        else:
            recurring.note_task(connection, name, task_id)
            return task_id
    raise refusal


def send_due(database: Database, name: str, due: datetime, send: Callable[[], uuid.UUID]) -> uuid.UUID | None:
    """Claim a due time and send its message; returns the message's id, or None if another beat was first.

    A message that was sent when the commit fails is sent again: a chore may be done twice.

    Args:
        database: Where.
        name: The entry's.
        due: The due time.
        send: Publishes the message; what it raises leaves the due time unspent.

    Raises:
        RedisUnreachableError: If the broker is away.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction() as connection:
        if not recurring.claim_due(connection, name, due):
            return None
        sent = send()
        recurring.note_task(connection, name, sent)
        return sent
