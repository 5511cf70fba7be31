"""Cancel tasks: pending ones at once, running ones by their worker. A result that was recorded first wins."""

import uuid
from collections.abc import Sequence

from bitinglip.store.database import Database, retry_once
from bitinglip.store.tasks import Change, cancel_tasks


def cancel(database: Database, task_ids: Sequence[uuid.UUID]) -> list[Change]:
    """What became of the tasks: `cancelled` already, or `in_progress` until their worker has stopped them.

    Those that had ended, or are not known, are not in the answer. Whoever calls may wake the workers of the running
    ones (`streams.wake`); their next heartbeat tells them in any case.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def flag() -> list[Change]:
        with database.statement() as connection:
            return cancel_tasks(connection, task_ids)

    return retry_once(flag)
