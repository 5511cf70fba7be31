"""When something recurs: its due times, as a pure function of time.

A cron line is read in a time zone. Where the clocks change, a line with certain hours is due once a day all the same:
a time that is skipped is due as long after midnight as ever, one that comes twice is due the first time. A line with
every hour (`*/15 * * * *`) goes by what the clocks show, twice through the hour that comes twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from itertools import count, product

from celery.schedules import ParseException, crontab

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOURS_A_DAY = 24


@dataclass(frozen=True, slots=True)
class Interval:
    """Every so many seconds, counted from 1970: the same due times for everybody, at 3,600 each full hour."""

    seconds: int

    def find_last(self, until: datetime) -> datetime:
        """The last due time at or before a moment, UTC."""
        step = timedelta(seconds=self.seconds)
        return EPOCH + (until - EPOCH) // step * step

    def find_next(self, after: datetime) -> datetime:
        """The first due time after a moment, UTC."""
        return self.find_last(after) + timedelta(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Cron:
    """The times of a cron line. A day is right if its month, its day and its weekday (0 is Sunday) all are."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    zone: tzinfo

    def find_last(self, until: datetime) -> datetime:
        """The last due time at or before a moment, UTC."""
        return next(
            max(found)
            for day in _walk(until.astimezone(self.zone).date(), days=-1)
            if (found := [instant for instant in _list_instants(self, day) if instant <= until])
        )

    def find_next(self, after: datetime) -> datetime:
        """The first due time after a moment, UTC."""
        return next(
            min(found)
            for day in _walk(after.astimezone(self.zone).date(), days=1)
            if (found := [instant for instant in _list_instants(self, day) if instant > after])
        )

    def includes(self, day: date) -> bool:
        """Whether the line has times on a day."""
        return day.month in self.months and day.day in self.days and day.isoweekday() % 7 in self.weekdays

    def place(self, wall: datetime) -> Iterator[datetime]:
        """The instants at which a wall clock of the zone shows a time that the line has: none, one or two."""
        first = wall.astimezone(UTC)
        if len(self.hours) < HOURS_A_DAY:
            yield first
            return
        for instant in {first, wall.replace(fold=1).astimezone(UTC)}:
            if instant.astimezone(self.zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
                yield instant


Times = Cron | Interval


def parse_cron(line: str, zone: tzinfo) -> Cron:
    """The times of `minute hour day month weekday`, in Celery's notation.

    Raises:
        ValueError: If it is no such line, or never due.
    """
    if len(line.split()) != 5:  # noqa: PLR2004 - as said
        message = "write five fields: minute hour day month weekday, such as 0 9 * * mon-fri"
        raise ValueError(message)
    try:
        parsed = crontab.from_string(" ".join(line.split()))
    except (ValueError, ParseException) as exc:
        message = f"{str(exc)[:1].lower()}{str(exc)[1:]}".rstrip(".")
        raise ValueError(message) from exc
    return Cron(
        frozenset(parsed.minute),
        frozenset(parsed.hour),
        frozenset(parsed.day_of_month),
        frozenset(parsed.month_of_year),
        frozenset(parsed.day_of_week),
        zone,
    )


def _walk(start: date, *, days: int) -> Iterator[date]:
    """Day after day, from the one before: an instant can lie a day beside the date that its line names."""
    return (start + timedelta(days=days * number) for number in count(-1))


@lru_cache(maxsize=256)
def _list_instants(cron: Cron, day: date) -> list[datetime]:
    if not cron.includes(day):
        return []
    walls = (datetime.combine(day, time(*clock), cron.zone) for clock in product(cron.hours, cron.minutes))
    return [instant for wall in walls for instant in cron.place(wall)]
