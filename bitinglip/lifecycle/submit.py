"""Step 1 of 4: a request becomes a record, durable before the caller hears of it."""

from collections.abc import Sequence

from bitinglip.domain.task import TaskRequest
from bitinglip.settings import TaskSettings
from bitinglip.store.database import Database, retry_once
from bitinglip.store.tasks import insert_tasks

BATCH = 1_000


def submit_tasks(database: Database, requests: Sequence[TaskRequest], settings: TaskSettings) -> None:
    """Record tasks in the order given, in transactions of up to `BATCH`.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. Nothing of the current batch is recorded.
    """
    for start in range(0, len(requests), BATCH):
        _submit_batch(database, requests[start : start + BATCH], settings)


def _submit_batch(database: Database, batch: Sequence[TaskRequest], settings: TaskSettings) -> None:
    def insert() -> None:
        with database.statement() as connection:
            insert_tasks(connection, batch, max_attempts=settings.max_retry_count + 1, ttl_seconds=settings.default_ttl)

    retry_once(insert)
