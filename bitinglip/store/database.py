"""Connections, transactions, and the check that the code and the schema agree.

Two connections a process by default: PostgreSQL's connections are few, and the batches that use them take turns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from bitinglip.errors import ConfigurationError, DatabaseUnreachableError, SchemaVersionError

SCHEMA_REVISION = "0005"
"""The newest revision in `migrations/versions`: the one this code was written for."""

T = TypeVar("T")


def parse_url(database_url: str) -> URL:
    """The URL with our driver.

    Raises:
        ConfigurationError: If it is no PostgreSQL URL.
    """
    try:
        return make_url(database_url).set(drivername="postgresql+psycopg2")
    except (ArgumentError, ValueError) as exc:
        message = "BITINGLIP_DATABASE_URL cannot be parsed; it must look like postgresql://user:password@host:5432/name"
        raise ConfigurationError(message) from exc


class Database:
    """One process's pool of connections to PostgreSQL.

    Args:
        database_url: Where it is; holds the password.
        connections: How many at most.
        name: What `pg_stat_activity` shows.
    """

    def __init__(self, database_url: str, *, connections: int = 2, name: str = "bitinglip") -> None:
        self.url = parse_url(database_url)
        self.engine: Engine = create_engine(
            self.url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=30,
            pool_use_lifo=True,
            # Every transaction is begun by hand: changing a connection from one mode to the other and back would cost
            # the lone statements of the hot path a round trip.
            isolation_level="AUTOCOMMIT",
            connect_args={
                "connect_timeout": 5,
                # A server that vanished without a word (its machine lost power) is noticed within ten seconds.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 10_000,
                "application_name": name,
                # Whoever is stopped in the middle of a transaction must not hold up everybody else, nor commit tasks
                # when nobody looks for them any more (`queues.RECHECK_SECONDS`).
                "options": "-c timezone=UTC -c idle_in_transaction_session_timeout=5s",
            },
        )

    @property
    def address(self) -> str:
        """`host:port/name`, safe to print."""
        return f"{self.url.host}:{self.url.port or 5432}/{self.url.database}"

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Connection]:
        """One transaction, committed at the end of the block.

        Args:
            durable: Whether the commit waits for the disk. Without it the last 0.6 s may be lost in a crash of
                PostgreSQL, never in a crash of ours.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is not there or went away.
        """
        with self._translate_errors(), self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN" if durable else "BEGIN; SET LOCAL synchronous_commit = off")
            try:
                yield connection
            except BaseException:
                if not connection.invalidated:
                    connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """A connection for one statement that is its own transaction: one round trip in place of three.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is not there or went away.
        """
        with self._translate_errors(), self.engine.connect() as connection:
            yield connection

    def check_schema(self) -> None:
        """Refuse a schema that this code was not written for.

        Raises:
            SchemaVersionError: Saying what to run.
        """
        with self.transaction() as connection:
            exists = connection.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL"))
            found = connection.scalar(text("SELECT version_num FROM alembic_version")) if exists else None
        if found == SCHEMA_REVISION:
            return
        newer = found is not None and found > SCHEMA_REVISION
        remedy = "upgrade this installation of bitinglip" if newer else "run 'bitinglip db upgrade'"
        raise SchemaVersionError(found, SCHEMA_REVISION, remedy)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeoutError as exc:
            raise DatabaseUnreachableError(self.address, "no connection came free; it answers too slowly") from exc
        except OperationalError as exc:
            raise DatabaseUnreachableError(self.address, _reason(exc)) from exc
        except DBAPIError as exc:
            if exc.connection_invalidated:
                raise DatabaseUnreachableError(self.address, _reason(exc)) from exc
            raise


def retry_once(action: Callable[[], T]) -> T:
    """Run an idempotent action again if its connection turned out to be dead.

    A connection that idled through a restart of PostgreSQL fails at its next use; the pool then replaces it.

    Raises:
        DatabaseUnreachableError: If the second try fails too.
    """
    try:
        return action()
    except DatabaseUnreachableError:
        return action()


def _reason(exc: DBAPIError) -> str:
    lines = str(exc.orig).strip().splitlines()
    # The first line says what; the others guess why.
    return lines[0].rpartition(" failed: ")[2].strip() if lines else type(exc.orig).__name__
