"""Due times are fixed instants, through clock changes, leap days and absences."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.beat.times import Interval, Times, parse_cron

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo | None = None) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone or UTC)


def list_due(times: Times, after: str, until: str) -> list[str]:
    """The due times in between, UTC."""
    found, moment = [], at(after)
    while (moment := times.find_next(moment)) <= at(until):
        found.append(f"{moment:%m-%dT%H:%M}")
    return found


def test_nine_in_the_morning_stays_nine_when_the_clocks_change() -> None:
    nine = parse_cron("0 9 * * *", BERLIN)

    assert list_due(nine, "2026-03-27T12:00", "2026-03-30T12:00") == ["03-28T08:00", "03-29T07:00", "03-30T07:00"]
    assert list_due(nine, "2026-10-23T12:00", "2026-10-26T12:00") == ["10-24T07:00", "10-25T08:00", "10-26T08:00"]


def test_a_time_that_is_skipped_is_due_all_the_same() -> None:
    half_past_two = parse_cron("30 2 * * *", BERLIN)

    assert list_due(half_past_two, "2026-03-28T00:00", "2026-03-30T12:00") == [
        "03-28T01:30",
        "03-29T01:30",
        "03-30T00:30",
    ]


def test_a_time_that_comes_twice_is_due_once() -> None:
    half_past_two = parse_cron("30 2 * * *", BERLIN)

    assert list_due(half_past_two, "2026-10-24T12:00", "2026-10-26T12:00") == ["10-25T00:30", "10-26T01:30"]


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
@pytest.mark.parametrize(("line", "minutes"), [("*/15 * * * *", 15), ("0 * * * *", 60), ("* * * * *", 1)])
def test_every_hour_goes_on_evenly_through_a_clock_change(day: str, line: str, minutes: int) -> None:
    even = parse_cron(line, BERLIN)
    moment = at(f"{day}T00:00") - timedelta(hours=3)

    for _ in range(6 * 60 // minutes):
        following = even.find_next(moment)
        assert following - moment == timedelta(minutes=minutes)
        moment = following


def test_an_hour_that_half_an_hour_skips_is_left_out() -> None:
    # In 2026 Lord Howe's clocks go from 02:00 to 02:30 on 4 October.
    hourly = parse_cron("0 * * * *", ZoneInfo("Australia/Lord_Howe"))

    assert list_due(hourly, "2026-10-03T14:00", "2026-10-03T17:30") == ["10-03T14:30", "10-03T16:00", "10-03T17:00"]


def test_a_midnight_that_comes_twice_is_due_once_and_not_forgotten() -> None:
    # In 2010 the clocks of St. John's went from 00:01 on 7 November to 23:01 on the day before.
    midnight = parse_cron("0 0 * * *", ZoneInfo("America/St_Johns"))

    assert list_due(midnight, "2010-11-06T00:00", "2010-11-08T12:00") == ["11-06T02:30", "11-07T02:30", "11-08T03:30"]
    assert midnight.find_last(at("2010-11-07T03:00")) == at("2010-11-07T02:30")


def test_a_day_that_is_skipped_is_due_all_the_same() -> None:
    # Samoa had no 30 December 2011.
    that_day = parse_cron("0 9 30 12 *", ZoneInfo("Pacific/Apia"))

    assert that_day.find_next(at("2011-12-30T15:00")) == at("2011-12-30T19:00")


def test_a_day_is_right_if_its_month_its_day_and_its_weekday_are() -> None:
    first_monday = parse_cron("0 9 1-7 * mon", ZoneInfo("UTC"))
    leap_day = parse_cron("0 0 29 2 *", ZoneInfo("UTC"))

    assert list_due(first_monday, "2026-01-01T00:00", "2026-04-01T00:00") == [
        "01-05T09:00",
        "02-02T09:00",
        "03-02T09:00",
    ]
    assert leap_day.find_next(at("2026-01-01T00:00")) == at("2028-02-29T00:00")
    assert leap_day.find_last(at("2026-01-01T00:00")) == at("2024-02-29T00:00")


def test_an_interval_counts_from_midnight_and_not_from_a_start() -> None:
    assert Interval(3600).find_last(at("2026-01-01T09:59:59")) == at("2026-01-01T09:00")
    assert Interval(3600).find_next(at("2026-01-01T09:00")) == at("2026-01-01T10:00")
    assert Interval(1).find_last(at("2026-01-01T09:00:07.999")) == at("2026-01-01T09:00:07")


def test_the_last_due_time_of_a_long_absence_is_one() -> None:
    daily = parse_cron("0 9 * * *", BERLIN)

    assert daily.find_last(at("2026-03-29T06:59:59")) == at("2026-03-28T09:00", BERLIN)
    assert daily.find_last(at("2026-03-29T07:00:00")) == at("2026-03-29T09:00", BERLIN)


LINES = ["0 9 * * *", "30 2 * * *", "*/7 * * * *", "15,45 1-3 * * *", "0 0 31 * *", "0 */2 * * sun", "59 23 28 2 *"]
ZONES = ["UTC", "Europe/Berlin", "America/Santiago", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca"]


@given(
    line=st.sampled_from(LINES),
    zone=st.sampled_from(ZONES),
    moment=st.integers(0, 30 * 366 * 86_400).map(lambda second: at("2005-01-01T00:00") + timedelta(seconds=second)),
)
def test_the_last_and_the_next_due_time_meet(line: str, zone: str, moment: datetime) -> None:
    cron = parse_cron(line, ZoneInfo(zone))
    last, following = cron.find_last(moment), cron.find_next(moment)

    assert last <= moment < following
    assert cron.find_next(last) == following
    assert cron.find_last(following - timedelta(microseconds=1)) == last
    assert cron.find_last(following) == following
    for due in (last, following):
        assert due.tzinfo is UTC
        assert due.second == 0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 9 * *", "write five fields"),
        ("60 9 * * *", "invalid end range: 60 > 59"),
        ("0 9 * * someday", "someday"),
        ("0 9 30 2 *", "never occurs"),
        ("*/0 9 * * *", "zero"),
        ("0 9 , * *", "empty part"),
    ],
)
def test_a_line_that_is_wrong_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_cron(line, BERLIN)
