"""A worker is gone: what it held is ready again, at no cost to the task.

Weakness: time-based. A paused machine can be rescued while alive; the fence discards what it then sends.
"""

from bitinglip.store.database import Database
from bitinglip.store.queues import recheck_emptied, wake_scheduled
from bitinglip.store.workers import expire_workers, release_tasks
from bitinglip.telemetry import get_logger

log = get_logger()


def sweep(database: Database, *, lease_seconds: float) -> int:
    """End leases that ran out, free what nobody holds, wake what is due; returns how many tasks became ready.

    Any dispatcher may run it, any number of them at once.
    """
    with database.transaction() as connection:
        expired = expire_workers(connection, lease_seconds=lease_seconds)
        released = release_tasks(connection)
    for worker in expired:
        log.warning("worker_lost", worker=worker.name, worker_id=str(worker.id))
    if released:
        log.info("tasks_rescued", count=released)
    with database.transaction() as connection:
        return released + wake_scheduled(connection) + recheck_emptied(connection)
