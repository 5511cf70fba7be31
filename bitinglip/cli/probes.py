"""Is the system well? One probe for each part of it; a probe that cannot look says why."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from bitinglip.artifacts.store import open_artifacts
from bitinglip.errors import BitingLipError
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.queries import list_workers
from bitinglip.store.server import count_dispatcher_connections, get_version
from bitinglip.streams.reader import connect, describe_address

DISPATCHER_SECONDS = 5.0
"""A dispatcher looks at PostgreSQL each second; one that was silent for this long is stuck or gone."""


@dataclass(frozen=True)
class Finding:
    """What one probe found."""

    part: str
    ok: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        """As `health --json` gives it."""
        return asdict(self)


def probe_all(urls: ServerUrls) -> Iterator[Finding]:
    """Look at every part. What lives in PostgreSQL is not looked for when PostgreSQL is away."""
    database = Database(urls.database_url, connections=1, name="bitinglip-health")
    try:
        server = _probe("postgresql", lambda: _look_at_postgresql(database))
        yield server
        schema = _probe("schema", lambda: _look_at_schema(database)) if server.ok else _skip("schema", server)
        yield schema
        yield _probe("redis", lambda: _look_at_redis(urls.redis_url))
        for part, look in (("dispatcher", _look_at_dispatchers), ("workers", _look_at_workers)):
            yield _probe(part, partial(look, database)) if schema.ok else _skip(part, schema)
        yield _probe("artifacts", _look_at_artifacts)
    finally:
        database.close()


def _probe(part: str, look: Callable[[], tuple[bool, str]]) -> Finding:
    try:
        return Finding(part, *look())
    except BitingLipError as exc:
        return Finding(part, ok=False, detail=str(exc))


def _skip(part: str, because: Finding) -> Finding:
    return Finding(part, ok=False, detail=f"not looked at: {because.part} is not well")


def _look_at_postgresql(database: Database) -> tuple[bool, str]:
    with database.transaction() as connection:
        version = get_version(connection)
    return True, f"{version} at {database.address}"


def _look_at_schema(database: Database) -> tuple[bool, str]:
    database.check_schema()
    return True, "as this code needs it"


def _look_at_redis(redis_url: str) -> tuple[bool, str]:
    try:
        with connect(redis_url) as client:
            address = describe_address(client)
            client.ping()
    except (RedisError, OSError, ValueError) as exc:
        return False, f"{exc}; check BITINGLIP_REDIS_URL and that the server runs"
    return True, address


def _look_at_dispatchers(database: Database) -> tuple[bool, str]:
    with database.transaction() as connection:
        active = count_dispatcher_connections(connection, active_within_seconds=DISPATCHER_SECONDS)
    if not active:
        return False, "none is active; start one with 'python -m bitinglip.dispatcher', or all with 'bitinglip up'"
    return True, "active"


def _look_at_workers(database: Database) -> tuple[bool, str]:
    with database.transaction() as connection:
        alive = [worker for worker in list_workers(connection) if worker.alive]
    if not alive:
        return False, "none is alive; start one with 'bitinglip worker start', or all with 'bitinglip up'"
    return True, f"{len(alive)} alive with {sum(worker.slots for worker in alive)} slots"


def _look_at_artifacts() -> tuple[bool, str]:
    """As this machine sees them; a worker on another one whose store is a folder of its own may see others."""
    store = open_artifacts()
    store.check_reachable()
    store.check_room()
    return True, store.place
