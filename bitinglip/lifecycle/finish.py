"""Step 4 of 4: record how attempts ended. A worker that lost its lease records nothing and is told so."""

import uuid
from collections.abc import Sequence

from bitinglip.store.database import Database
from bitinglip.store.tasks import Ending, finish_tasks


def finish_attempts(database: Database, endings: Sequence[Ending], worker_id: uuid.UUID) -> list[str | None]:
    """The outcome recorded for each ending. None: the attempt was no longer this worker's, its result is discarded.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. Whether it was recorded is not known: try again, the fence
            makes that harmless.
    """
    with database.statement() as connection:
        recorded = finish_tasks(connection, endings, worker_id)
    return [recorded.get(ending.task_id) for ending in endings]
