"""Step 2 of 4: take the lease on attempts. The lease is (task_id, attempt, worker_id); every later write names all."""

import uuid
from collections.abc import Sequence

from bitinglip.store.database import Database, retry_once
from bitinglip.store.tasks import ClaimedTask, Doorbell, claim_tasks


def claim_reserved(database: Database, doorbells: Sequence[Doorbell], worker_id: uuid.UUID) -> list[ClaimedTask | None]:
    """What each doorbell stands for, or None where it is not (any more) reserved for this worker.

    Not durable at once: a claim that a crash of PostgreSQL forgets leaves a reservation, which is claimed again.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. The reservation stays.
    """

    def claim() -> list[ClaimedTask]:
        with database.statement() as connection:
            return claim_tasks(connection, doorbells, worker_id)

    claimed = {(task.task_id, task.attempt): task for task in retry_once(claim)}
    return [claimed.get((bell.task_id, bell.attempt)) for bell in doorbells]
