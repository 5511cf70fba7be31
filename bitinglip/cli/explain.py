"""`bitinglip task explain` and `bitinglip submit --quote`: why a task waits, and when one would run."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from bitinglip.cli.fields import name_options
from bitinglip.cli.output import examples, json_option, write_json, write_table
from bitinglip.client import Client
from bitinglip.domain.task import TaskRequest, make_request, parse_task_id

_RENAMED = {"agent": "agent_id", "user": "user_id", "channel": "channel_id"}
# The others are the kind's own: `payload`, too, is one of the kind `agent`.
_SHARED = TaskRequest.model_fields.keys() - {"id", "type", "payload", "max_attempts"}


@click.command(epilog=examples("bitinglip task explain 01890a5d-ac96-774b-bcce-b302099a8057 --json | jq -r .message"))
@click.argument("task_id", metavar="ID")
@json_option
def explain(task_id: str, *, as_json: bool) -> None:
    """Say what a task waits for now, how many go before it, and what would release it."""
    with Client() as client:
        found = client.explain(task_id)
    if as_json:
        write_json({"id": task_id, **asdict(found)})
        return
    click.echo(_make_sentence(found.message))
    rows = [("code", found.code), ("position", found.position), ("released by", found.release)]
    numbers = [
        (name.replace("_", " "), value)
        for name, value in found.details.items()
        if isinstance(value, bool | int | float | str | datetime | uuid.UUID)
    ]
    write_table(["field", "value"], [row for row in [*rows, *numbers] if row[1] is not None])


def write_quote(client: Client, kind: str, fields: Mapping[str, Any], *, as_json: bool) -> None:
    """Write when a task would run, and what it would cost.

    Args:
        client: Where it would be submitted.
        kind: Of task.
        fields: As `Client.submit` takes them.
        as_json: One document.

    Raises:
        BitingLipError: As for `Client.quote`.
    """
    with name_options():
        found = client.quote(_make_request(kind, fields))
    if as_json:
        write_json(asdict(found))
        return
    click.echo(_make_sentence(f"if it were submitted now: {found.message}"))
    rows = [(name.replace("_", " "), value) for name, value in asdict(found).items() if name != "message"]
    write_table(["field", "value"], rows)


def _make_request(kind: str, fields: Mapping[str, Any]) -> TaskRequest:
    named = {_RENAMED.get(name, name): value for name, value in fields.items()}
    if "depends_on" in named:
        named["depends_on"] = [parse_task_id(task_id) for task_id in named["depends_on"]] or None
    payload = {name: value for name, value in named.items() if name not in _SHARED}
    return make_request(kind, payload, **{name: value for name, value in named.items() if name in _SHARED})


def _make_sentence(message: str) -> str:
    return "".join(char if char.isprintable() else " " for char in f"{message[:1].upper()}{message[1:]}.")
