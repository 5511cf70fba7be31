"""What waits for a time or for another task: wake it, expire it, settle it. Any dispatcher may, any number at once."""

from bitinglip.store.database import Database
from bitinglip.store.lanes import pass_on_old_queues, reopen_new_day
from bitinglip.store.queues import lock_dispatch, recheck_emptied
from bitinglip.store.tasks import Change
from bitinglip.store.waiting import BATCH, expire_tasks, lock_ended_parents, settle_parents, wake_scheduled


def wake_due(database: Database) -> None:
    """Make tasks ready whose time has come, correct the hints of queues, and begin a new day of budgets.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction(durable=False) as connection:
        wake_scheduled(connection)
    # By itself, or queues would be locked in two orders.
    with database.transaction(durable=False) as connection:
        recheck_emptied(connection)
    with database.transaction(durable=False) as connection:
        pass_on_old_queues(connection)
    with database.transaction(durable=False) as connection:
        lock_dispatch(connection)
        reopen_new_day(connection)


def expire_overdue(database: Database) -> list[Change]:
    """Fail the tasks that have waited too long.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    expired: list[Change] = []
    while True:
        with database.transaction() as connection:
            batch = expire_tasks(connection)
        expired += batch
        if len(batch) < BATCH:
            return expired


def settle(database: Database) -> list[Change]:
    """Decide on the children of tasks that have ended, and on their children, until nothing follows.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    settled: list[Change] = []
    while True:
        with database.transaction() as connection:
            parents = lock_ended_parents(connection)
            settled += settle_parents(connection, parents) if parents else []
        if not parents:
            return settled
