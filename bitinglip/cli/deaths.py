"""What a parent does about a dead worker: it says so in PostgreSQL; the tasks need not wait for the end of the lease.

Whatever the report comes to, the worker is started again afterwards.
"""

from collections.abc import Callable, Sequence

from bitinglip.cli.programs import name_worker_node, name_worker_program
from bitinglip.embedded import ChildDeath
from bitinglip.embedded.children import log_death
from bitinglip.errors import BitingLipError
from bitinglip.lifecycle.rescue import report_death
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.tasks import Change
from bitinglip.streams.reader import connect
from bitinglip.streams.writer import EventWriter
from bitinglip.telemetry import get_logger
from bitinglip.worker.pools import WorkerSpec

ANNOUNCE_SECONDS = 1.0
"""For Redis to take the news; the worker's restart waits for it."""


def make_death_reporter(
    specs: Sequence[WorkerSpec], find_urls: Callable[[], ServerUrls]
) -> Callable[[ChildDeath], None]:
    """Make what a stack calls when a child has died: it logs every death and reports those of workers.

    Args:
        specs: The workers among the children.
        find_urls: Asked at each death, because the servers may be children too.
    """
    nodes = {name_worker_program(spec): name_worker_node(spec) for spec in specs}

    def report(death: ChildDeath) -> None:
        log_death(death)
        if death.name in nodes:
            _report(nodes[death.name], death.pid, find_urls)

    return report


def _report(node: str, pid: int, find_urls: Callable[[], ServerUrls]) -> None:
    log = get_logger(worker=node, pid=pid)
    try:
        urls = find_urls()
        # Connections of its own: deaths are rare, and pooled ones would be dead when a server had died too.
        database = Database(urls.database_url, connections=1, name="bitinglip-supervisor")
        try:
            changes = report_death(database, node, pid)
        finally:
            database.close()
        log.info("death_reported", released=len(changes))
        if changes:
            _announce(changes, urls.redis_url)
    except BitingLipError as exc:
        log.warning("death_not_reported", reason=str(exc))
    except Exception:
        log.exception("death_not_reported")


def _announce(changes: Sequence[Change], redis_url: str) -> None:
    writer = EventWriter(connect(redis_url))
    writer.announce_changes(changes)
    writer.close(within_seconds=ANNOUNCE_SECONDS)
