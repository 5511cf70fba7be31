"""Structured logs to stderr: one event name, then fields.

Never prompts, keys or tokens: log `prompt_chars=len(prompt)`. ERROR means that a person must act; a retry is INFO.
"""

import logging
import sys
from typing import Any

import structlog

from bitinglip.settings import LogSettings, load_settings


def configure_logging() -> None:
    """Send BitingLip's and the libraries' logs to stderr, as the settings say. Idempotent."""
    settings = load_settings(LogSettings)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    level = logging.getLevelNamesMapping()[settings.log_level]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_make_printer,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, force=False)


def _make_printer(*_: object) -> Any:
    """Writes to whatever stderr is now: a program, or a test, may have exchanged it."""
    return structlog.PrintLogger(sys.stderr)


if not structlog.is_configured():
    # In somebody else's program, until it configures structlog: warnings, and never on stdout, where its data goes.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=_make_printer,
    )


def get_logger(**fields: Any) -> Any:
    """A logger that adds `fields` to everything it writes."""
    return structlog.get_logger(**fields)
