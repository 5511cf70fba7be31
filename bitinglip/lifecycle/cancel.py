"""Cancel tasks: pending ones at once, running ones by their worker. A result that was recorded first wins."""

import uuid
from collections.abc import Sequence

from bitinglip.store.database import Database, retry_once
from bitinglip.store.tasks import cancel_tasks


def cancel(database: Database, task_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, bool]:
    """Whether each task is cancelled already (True) or will be by its worker (False); the others had ended.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def flag() -> dict[uuid.UUID, bool]:
        with database.statement() as connection:
            return cancel_tasks(connection, task_ids)

    return retry_once(flag)
