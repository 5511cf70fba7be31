"""What commands write: JSON and tables on stdout, talk on stderr.

Invariant: nothing that came from a task reaches a terminal as a control sequence.
"""

import json
import re
import sys
import uuid
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import click

_CONTROLS = re.compile("[\x7f-\x9f]")
"""Those that JSON leaves as they are."""

json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout: one document, or one line an item.")


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def say(message: str) -> None:
    """Talk to the person: to stderr, so that stdout holds data only."""
    click.echo(_make_harmless(message) if sys.stderr.isatty() else message, err=True)


def _make_harmless(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def write_json(document: Any) -> None:
    """One document on one line."""
    is_unicode = sys.stdout.encoding.lower().startswith("utf")
    text = json.dumps(document, default=_encode, ensure_ascii=not is_unicode)
    click.echo(_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def write_text(text: str, *, newline: bool = True) -> None:
    """Text that a model or a user wrote; its control characters are harmless on a terminal."""
    if sys.stdout.isatty():
        text = _make_harmless(text)
    click.echo(text, nl=newline)


def write_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns under their headers."""
    for line in format_table(headers, rows):
        click.echo(line)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table: columns as wide as their widest cell; numbers, and what lacks one, to the right."""
    cells = [[_format_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    is_number = [
        all(isinstance(row[index], int | float | None) for row in rows) and any(row[index] is not None for row in rows)
        for index in range(len(headers))
    ]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in ([header.upper() for header in headers], *cells)
    ]


def _format_cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.2f}"
        case datetime():
            return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case list() | tuple():
            return ",".join(map(_format_cell, value)) or "-"
    text = str(value)
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def _encode(value: object) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case uuid.UUID():
            return str(value)
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
    message = f"{type(value).__name__} has no JSON form"
    raise TypeError(message)
