"""The daily report: what each agent's tasks came to on a day, UTC. Stored when the day is over, computed until then."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Row

from bitinglip.errors import InvalidRequestError
from bitinglip.settings import TaskSettings
from bitinglip.store import reports
from bitinglip.store.database import Database


@dataclass(frozen=True, slots=True)
class DayReport:
    """A day's figures.

    Attributes:
        stored: Whether they are final.
        agents: A row each, as `store.reports.compute_report` says.
    """

    day: date
    stored: bool
    agents: Sequence[Row[Any]]


def store_report(database: Database, day: date) -> int:
    """Store a day's figures; returns how many agents' are new. May be repeated.

    Raises:
        InvalidRequestError: If the day is not over.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction() as connection:
        today, _ = reports.find_days(connection)
        if day >= today:
            raise InvalidRequestError("day", str(day), f"not over; it is {today} in UTC")
        return len(reports.store_report(connection, day))


def store_reports_until_yesterday(database: Database, settings: TaskSettings) -> dict[date, int]:
    """Store yesterday's figures, and those of the days before it since the last that is stored and not yet purged.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. Days before are stored.
    """
    with database.transaction() as connection:
        today, last = reports.find_days(connection)
    yesterday = today - timedelta(days=1)
    first = min(yesterday, last + timedelta(days=1)) if last else yesterday
    first = max(first, today - timedelta(days=settings.retention_days))
    days = [first + timedelta(days=number) for number in range((today - first).days)]
    return {day: store_report(database, day) for day in days}


def read_report(database: Database, day: date | None = None, agent_id: str | None = None) -> DayReport:
    """A day's figures: those stored, else as they are now.

    Args:
        database: Where.
        day: UTC; None: today so far.
        agent_id: This agent's only.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction() as connection:
        wanted = day or reports.find_days(connection)[0]
        if stored := reports.list_reports(connection, wanted, agent_id):
            return DayReport(wanted, stored=True, agents=stored)
        return DayReport(wanted, stored=False, agents=reports.compute_report(connection, wanted, agent_id))
