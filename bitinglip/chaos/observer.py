"""Ask PostgreSQL again and again, whether it is there or not."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection

from bitinglip.chaos.watch import get_time
from bitinglip.errors import BitingLipError
from bitinglip.store.database import Database, retry_once

LOOK_SECONDS = 0.02

T = TypeVar("T")


class Observer:
    """Looks at a system that may be broken at the moment.

    Args:
        database: Where to look.
        pause: Waits so many seconds; raises if the person asked for the end.
    """

    def __init__(self, database: Database, pause: Callable[[float], None]) -> None:
        self.database = database
        self.pause = pause
        self._ahead = timedelta(0)

    def set_clock(self) -> None:
        """Learn how far PostgreSQL's clock is ahead of this machine's, to within a round trip.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        self._ahead = self.read(get_time) - datetime.now(UTC)

    def get_time(self) -> datetime:
        """The time by PostgreSQL's clock, also while it is away."""
        return datetime.now(UTC) + self._ahead

    def read(self, look: Callable[[Connection], T]) -> T:
        """What a look gives.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """

        def ask() -> T:
            with self.database.transaction() as connection:
                return look(connection)

        return retry_once(ask)

    def wait_for(self, attempt: Callable[[], T | None], *, within: float) -> T | None:
        """The first true thing that an attempt gives; None if there is none in time. Its errors mean: not yet."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                given = attempt()
            except BitingLipError:
                given = None
            if given:
                return given
            self.pause(LOOK_SECONDS)
        return None

    def wait_to_read(self, look: Callable[[Connection], T | None], *, within: float) -> T | None:
        """The first true thing that a look gives; None if there is none in time."""
        return self.wait_for(lambda: self.read(look), within=within)
