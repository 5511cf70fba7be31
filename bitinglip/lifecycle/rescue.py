"""A worker is gone: what it held is ready again, at no cost to the task.

Weakness: time-based. A paused machine can be rescued while alive; the fence discards what it then sends.
"""

from bitinglip.settings import find_node_name
from bitinglip.store.database import Database
from bitinglip.store.queues import notify_dispatchers
from bitinglip.store.tasks import Change
from bitinglip.store.workers import RELEASE_BATCH, expire_workers, release_tasks, retire_dead
from bitinglip.telemetry import get_logger

log = get_logger()


def rescue(database: Database, *, lease_seconds: float) -> list[Change]:
    """End leases that ran out and free what nobody holds.

    Any dispatcher may run it, any number of them at once.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction(durable=False) as connection:
        expired = expire_workers(connection, lease_seconds=lease_seconds)
    for worker in expired:
        log.warning("worker_lost", worker=worker.name, worker_id=str(worker.id))
    return free_tasks(database)


def report_death(database: Database, name: str, pid: int) -> list[Change]:
    """End the registration of a process of this machine that has died, and free what it held, whatever its lease.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. The lease will end.
    """
    with database.transaction() as connection:
        if not retire_dead(connection, name=name, node=find_node_name(), pid=pid):
            return []
    return free_tasks(database)


def free_tasks(database: Database) -> list[Change]:
    """Take back every task whose worker is gone, in transactions that others need not wait for long.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    freed: list[Change] = []
    while True:
        with database.transaction() as connection:
            batch = release_tasks(connection)
            if batch:
                notify_dispatchers(connection)
        freed += batch
        if len(batch) < RELEASE_BATCH:
            break
    if freed:
        log.info("tasks_rescued", count=len(freed))
    return freed
