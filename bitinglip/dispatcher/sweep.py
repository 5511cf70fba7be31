"""What a dispatcher does by the clock: rescue, wake, expire, and foretell a little to learn how good that is."""

from bitinglip.lifecycle.quote import sample_quotes
from bitinglip.lifecycle.rescue import free_tasks, rescue
from bitinglip.lifecycle.waiting import expire_overdue, wake_due
from bitinglip.store.database import Database
from bitinglip.store.tasks import Change


def sweep(database: Database, *, lease_seconds: float | None) -> list[Change]:
    """Do all of it once, and return what became of which tasks. Any number of dispatchers may, at once.

    Args:
        database: Where the tasks are.
        lease_seconds: How long a silent worker keeps its tasks; None: no lease is ended now.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    freed = free_tasks(database) if lease_seconds is None else rescue(database, lease_seconds=lease_seconds)
    wake_due(database)
    sample_quotes(database)
    return freed + expire_overdue(database)
