"""`bitinglip report`: what a day came to."""

from datetime import datetime

import click

from bitinglip.cli.output import examples, json_option, say, write_json, write_table
from bitinglip.client import Client
from bitinglip.lifecycle.report import read_report


@click.command(
    epilog=examples(
        "bitinglip report",
        "bitinglip report --day 2026-01-31 --agent my-bot",
        "bitinglip report --day $(date -u -d yesterday +%F) --json | jq .completion_tokens",
    )
)
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="In UTC.  [default: today]")
@click.option("--agent", "agent_id", metavar="A", help="This agent's only.")
@json_option
def report(day: datetime | None, agent_id: str | None, *, as_json: bool) -> None:
    """See what each agent's tasks came to on a day: counts, tokens, engine seconds, waits.

    A task is submitted on the day it was recorded; all else counts for the day it ended. Beat stores each day when it
    is over, and those figures stay when the tasks are purged; other days are computed from the tasks that are there.
    """
    with Client() as client:
        found = read_report(client.database, day.date() if day else None, agent_id)
    if as_json:
        for row in found.agents:
            write_json({"day": found.day.isoformat(), "stored": found.stored, **row._mapping})
        return
    say(f"{found.day} UTC, {'as stored' if found.stored else 'as computed now'}")
    headers = ["agent", "submitted", "completed", "failed", "cancelled"]
    headers += ["prompt tokens", "completion tokens", "engine s", "wait p50 s", "wait p95 s"]
    write_table(headers, [tuple(row) for row in found.agents])
