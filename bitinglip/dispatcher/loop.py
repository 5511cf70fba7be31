"""The dispatcher's loop: a round whenever something happened, a sweep twice a second."""

import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from bitinglip.dispatcher.doorbells import DoorbellRinger
from bitinglip.dispatcher.round import RoundResult, run_round
from bitinglip.dispatcher.sweep import sweep
from bitinglip.errors import DatabaseUnreachableError, RedisUnreachableError
from bitinglip.lifecycle.waiting import settle
from bitinglip.store.database import Database
from bitinglip.store.tasks import READY_CHANNEL, Change
from bitinglip.store.workers import find_next_expiry
from bitinglip.telemetry import get_logger

SWEEP_SECONDS = 0.5

EXPIRED_SECONDS = 0.005
"""So long after a lease has run out it is ended."""

FULL_SECONDS = 0.02
"""After a round that left no worker room: each has a task at hand for every slot, so the next can gather what ends."""

log = get_logger()


class Listener:
    """Waits for NOTIFY on a connection of its own, or to be woken."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: PoolProxiedConnection | None = None
        self._ear, self._mouth = socket.socketpair()

    def wake(self) -> None:
        """End the wait now and every later one: the dispatcher stops. Safe in a signal handler."""
        self._mouth.close()

    def wait(self, seconds: float) -> None:
        """Return when something was notified, when woken, or after `seconds`.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        try:
            driver = self._open()
            if driver in select.select([driver, self._ear], [], [], seconds)[0]:
                driver.poll()
                driver.notifies.clear()
        except (psycopg2.Error, DBAPIError) as exc:
            self.close()
            raise DatabaseUnreachableError(self._database.address, str(exc).strip()) from exc

    def _open(self) -> Any:
        """The driver's connection, listening."""
        if self._connection is None:
            self._connection = self._database.engine.raw_connection()
            driver: Any = self._connection.driver_connection
            driver.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
            with driver.cursor() as cursor:
                cursor.execute(f"LISTEN {READY_CHANNEL}")
        return self._connection.driver_connection

    def close(self) -> None:
        """Give the connection up; the next wait opens another."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection = None


class Dispatcher:
    """Plans, reserves and rings until it is stopped.

    Args:
        database: With two connections: one to plan, one to listen.
        ringer: Where doorbells go.
        announce: Told what sweeps made of tasks.
        lease_seconds: How long a silent worker keeps its tasks.
        swap_seconds: How long a task waits for its model before one that others use is unloaded.
    """

    def __init__(
        self,
        database: Database,
        ringer: DoorbellRinger,
        announce: Callable[[list[Change]], None],
        *,
        lease_seconds: float,
        swap_seconds: float,
    ) -> None:
        self._database = database
        self._ringer = ringer
        self._announce = announce
        self._lease_seconds = lease_seconds
        self._swap_seconds = swap_seconds
        self._rescues_from = 0.0
        self._listener = Listener(database)
        self._stop = threading.Event()
        self._broker_reachable = True

    def stop(self) -> None:
        """End `run` after the current round."""
        self._stop.set()
        self._listener.wake()

    def run(self) -> None:
        """Dispatch until `stop`. PostgreSQL or Redis going away ends nothing: it is tried again."""
        next_sweep = 0.0
        while not self._stop.is_set():
            try:
                if time.monotonic() >= next_sweep:
                    next_sweep = time.monotonic() + self._sweep()
                self._announce(settle(self._database))
                result = self.dispatch_once()
                if result.more:
                    continue
                if result.reserved:
                    self._stop.wait(FULL_SECONDS)
                self._listener.wait(max(0.0, next_sweep - time.monotonic()))
            except DatabaseUnreachableError as exc:
                log.warning("database_unreachable", reason=str(exc))
                # PostgreSQL may have been away for everybody: workers get a whole lease to renew theirs.
                self._rescues_from = time.monotonic() + self._lease_seconds
                self._stop.wait(SWEEP_SECONDS)
        self._listener.close()

    def _sweep(self) -> float:
        """Sweep, and return the seconds to the next one: sooner where a lease is about to run out."""
        may_rescue = time.monotonic() >= self._rescues_from
        self._announce(sweep(self._database, lease_seconds=self._lease_seconds if may_rescue else None))
        with self._database.statement() as connection:
            next_expiry = find_next_expiry(connection)
        if next_expiry is None or next_expiry <= 0:
            return SWEEP_SECONDS
        return min(SWEEP_SECONDS, next_expiry + EXPIRED_SECONDS)

    def dispatch_once(self) -> RoundResult:
        """Plan, reserve, ring."""
        result = run_round(self._database, swap_seconds=self._swap_seconds)
        if result.reserved:
            try:
                self._ringer.ring(result.reserved)
            except RedisUnreachableError as exc:
                self._report_broker(reachable=False, reason=str(exc))
            else:
                self._report_broker(reachable=True)
        return result

    def _report_broker(self, *, reachable: bool, reason: str = "") -> None:
        if reachable != self._broker_reachable:
            self._broker_reachable = reachable
            log.warning("broker_reachable" if reachable else "broker_unreachable", reason=reason)
