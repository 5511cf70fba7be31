"""An error becomes one message on stderr and an exit code: the last step of every command that goes wrong."""

import json
from typing import Any

import click

from bitinglip.cli.output import say
from bitinglip.errors import BitingLipError, InvalidRequestError

BAD_USAGE = 2
INTERRUPTED = 130


def report_failure(exc: BitingLipError, *, as_json: bool) -> int:
    """Say what went wrong; return the exit code."""
    if as_json:
        field = {"field": exc.field} if isinstance(exc, InvalidRequestError) else {}
        _write_error(exc.code, str(exc), **field)
    else:
        say(f"error: {exc}")
    return exc.exit_code


def report_usage(exc: click.ClickException, *, as_json: bool) -> int:
    """Say which argument is wrong; return the exit code."""
    if as_json:
        _write_error("usage", exc.format_message())
    else:
        exc.show()
    return BAD_USAGE


def _write_error(code: str, message: str, **more: Any) -> None:
    click.echo(json.dumps({"error": {"code": code, "message": message, **more}}), err=True)
