"""`bitinglip events`: what becomes of tasks, as it happens."""

from dataclasses import asdict
from datetime import datetime

import click

from bitinglip.cli.output import examples, format_table, json_option, say, write_json, write_text
from bitinglip.domain.task import parse_task_id
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.streams.reader import connect
from bitinglip.streams.transitions import Transition, listen_transitions
from bitinglip.telemetry import configure_logging

HEADERS = ["time", "event", "status", "agent", "task", "attempt"]


@click.command(
    epilog=examples(
        "bitinglip events --agent my-bot",
        "bitinglip events --json | jq -r 'select(.status == \"failed\") | .task_id'",
    )
)
@click.option("--agent", "agent_id", metavar="A", help="This agent's only.")
@click.option("--task", "task_id", metavar="ID", help="This task's only.")
@json_option
def events(agent_id: str | None, task_id: str | None, *, as_json: bool) -> None:
    """Write a line whenever something becomes of a task, until Ctrl-C.

    The events are queued, started, retried, released, finished, cancelling, updated, deleted and ready. A time is when
    this command heard of it. What it could not hear, because Redis was away, it never shows: see `bitinglip task list`.
    """
    configure_logging()
    wanted = parse_task_id(task_id) if task_id is not None else None
    with connect(load_settings(ServerSettings).find_urls().redis_url) as client:
        transitions = listen_transitions(client, agent=agent_id, on_connection=_say_connection)
        for transition in transitions:
            if wanted is None or transition.task_id == wanted:
                _write(transition, as_json=as_json)


def _write(transition: Transition, *, as_json: bool) -> None:
    now = datetime.now().astimezone()
    if as_json:
        write_json({"time": now, **asdict(transition)})
        return
    cells = [
        f"{now:%H:%M:%S}",
        f"{transition.event:<10}",
        f"{transition.status:<11}",
        f"{transition.agent_id:<12}",
        transition.task_id,
        f"{transition.attempt}  {transition.error_code or ''}",
    ]
    write_text(format_table(HEADERS, [cells])[1])


def _say_connection(connected: bool) -> None:
    say("Redis is back; what happened meanwhile is not shown" if connected else "Redis is away; this waits for it")
