"""Errors in the user's words: a field of a request is named by the option that it came from."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import click

from bitinglip.errors import InvalidRequestError

_OPTION_OF_FIELD = {
    "agent_id": "agent",
    "user_id": "user",
    "channel_id": "channel",
    "width": "size",
    "height": "size",
}
_REMEDIES = dict.fromkeys(("channel_id", "channel"), "a channel id has 17 to 19 digits")


@contextmanager
def name_options() -> Iterator[None]:
    """Let errors of the block name options: `--channel (channel_id): '123': a channel id has 17 to 19 digits`.

    Raises:
        InvalidRequestError: As the block raised it, in other words.
    """
    try:
        yield
    except InvalidRequestError as exc:
        name = _find_option(exc.field)
        value = exc.value.isoformat(timespec="seconds") if isinstance(exc.value, datetime) else exc.value
        raise type(exc)(name, value, _REMEDIES.get(exc.field, exc.remedy)) from exc


def _find_option(field: str) -> str:
    name = field.partition(".")[0]
    names = {name, _OPTION_OF_FIELD.get(name, name)}
    for parameter in click.get_current_context().command.params:
        if parameter.name in names:
            if isinstance(parameter, click.Argument):
                return parameter.human_readable_name
            option = parameter.opts[0]
            return option if option.strip("-").replace("-", "_") == name else f"{option} ({field})"
    return field
