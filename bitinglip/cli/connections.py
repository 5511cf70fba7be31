"""How many database connections this machine's processes may open, against what PostgreSQL allows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitinglip.domain.catalogue import DOWNLOAD
from bitinglip.store.database import Database
from bitinglip.store.server import get_connection_limit
from bitinglip.worker.hardware import find_gpus
from bitinglip.worker.pools import Pool, plan_workers

CONNECTIONS_PER_PROCESS = 2
CONNECTIONS_PER_DOWNLOADER = 4
"""Of an engine process that downloads; other engines have none."""

DISPATCHERS = 1
SPARE = 6
"""For clients, the command line and people with psql."""


@dataclass(frozen=True)
class ConnectionBudget:
    """What is needed and what there is.

    Attributes:
        workers: On this machine, of every pool.
        needed: Connections, of these workers, one dispatcher and some clients.
        allowed: What PostgreSQL gives to everybody together.
    """

    workers: int
    needed: int
    allowed: int

    def to_json(self) -> dict[str, Any]:
        """As `config check --json` gives it."""
        return asdict(self)

    def find_problem(self) -> str | None:
        """What to do, if they do not fit."""
        if self.needed <= self.allowed:
            return None
        return (
            f"PostgreSQL allows {self.allowed} connections and {self.workers} worker(s) on this machine, a dispatcher "
            f"and clients may need {self.needed}; raise max_connections in postgresql.conf"
        )


def count_connections(database: Database, pools: Mapping[str, Pool]) -> ConnectionBudget:
    """Add up what every pool's workers on this machine need.

    Raises:
        ConfigurationError: If a pool names a GPU that is not there.
        DatabaseUnreachableError: If PostgreSQL cannot be asked.
    """
    gpus = find_gpus()
    specs = [spec for name in pools for spec in plan_workers(name, dict(pools), gpus)]
    downloaders = sum(DOWNLOAD.name in spec.pool.kinds for spec in specs)
    needed = CONNECTIONS_PER_PROCESS * (len(specs) + DISPATCHERS) + CONNECTIONS_PER_DOWNLOADER * downloaders + SPARE
    with database.transaction() as connection:
        allowed = get_connection_limit(connection)
    return ConnectionBudget(len(specs), needed, allowed)
