"""Option values that are more than a word: JSON objects and moments, parsed by click callbacks.

What is wrong is raised as `click.BadParameter`, to which click adds the option's name.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_json_object(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """The JSON object that is written out.

    Raises:
        click.BadParameter: If it is none, or PostgreSQL could not store it.
    """
    if text is None:
        return None
    try:
        document = json.loads(text)
        plain = json.dumps(document, ensure_ascii=False, allow_nan=False)
        plain.encode()
    except (ValueError, RecursionError) as exc:
        raise click.BadParameter(f"{_shorten(text)} cannot be stored as JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise click.BadParameter(f'{_shorten(text)} is no JSON object; write one, such as {{"ticket": 17}}')
    if "\\u0000" in plain:
        raise click.BadParameter(f"{_shorten(text)} contains a NUL character, which cannot be stored; remove it")
    return document


def read_json_object(ctx: click.Context, parameter: click.Parameter, path: str | None) -> dict[str, Any] | None:
    """The JSON object in a file.

    Raises:
        click.BadParameter: If it cannot be read, or holds none.
    """
    if path is None:
        return None
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise click.BadParameter(f"{path!r} cannot be read: {exc}") from exc
    return parse_json_object(ctx, parameter, text)


def parse_moment(_: click.Context, __: click.Parameter, text: str | None) -> datetime | None:
    """A time: ISO 8601, local unless it names a zone; or a while ago, such as `10m`, `2h`, `1d`.

    Raises:
        click.BadParameter: If it is neither.
    """
    if text is None:
        return None
    try:
        ago = _parse_span(text)
        return datetime.now(UTC) - ago if ago is not None else _parse_time(text)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(f"{text!r} is no time; write 10m, 2h, 1d or 2026-01-31T18:00") from exc


def parse_due(_: click.Context, __: click.Parameter, text: str | None) -> datetime | None:
    """A time to come: ISO 8601, local unless it names a zone; or a while from now, such as `in 10m`, `+2h`, `1d`.

    Raises:
        click.BadParameter: If it is neither.
    """
    if text is None:
        return None
    try:
        ahead = _parse_span(text.removeprefix("in ").removeprefix("+").strip())
        return datetime.now(UTC) + ahead if ahead is not None else _parse_time(text)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(f"{text!r} is no time; write +10m, 'in 2h', 1d or 2026-01-31T18:00") from exc


def parse_event_id(_: click.Context, __: click.Parameter, text: str | None) -> str | None:
    """An event's id.

    Raises:
        click.BadParameter: If it is none.
    """
    if text is not None and not re.fullmatch(r"\d{1,18}-\d{1,18}", text):
        raise click.BadParameter(f"{text!r} is no event id; pass the id of the last event seen, such as 1-17")
    return text


def _parse_span(text: str) -> timedelta | None:
    """How long `10m` is; None if it is no such thing."""
    span = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    return timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else None


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone()


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text):,} characters)"
