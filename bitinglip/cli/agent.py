"""`bitinglip agent`: who asks, how much of the workers is theirs, and the work that they do themselves."""

from typing import Any

import click

from bitinglip.cli.fields import name_options
from bitinglip.cli.output import examples, json_option, write_json, write_table
from bitinglip.cli.taking import complete, fail, next_, renew
from bitinglip.client import Client
from bitinglip.domain.task import Priority
from bitinglip.lifecycle.agents import edit_agent
from bitinglip.store.queries import list_agents

NONE = "none"


@click.group()
def agent() -> None:
    """See the agents, limit them, and do their work."""


for command in (next_, renew, complete, fail):
    agent.add_command(command)


@agent.command("list", epilog=examples("bitinglip agent list --json | jq 'select(.pending > 0)'"))
@json_option
def list_(*, as_json: bool) -> None:
    """List the agents, their weights and limits, and how many of their tasks have each status."""
    with Client() as client, client.database.transaction() as connection:
        rows = list_agents(connection)
    if as_json:
        for row in rows:
            write_json(dict(row._mapping))
        return
    headers = ["agent", "weight", "max priority", "max queued", "since"]
    counts = ["pending", "in progress", "completed", "failed", "cancelled"]
    write_table([*headers, *counts], [tuple(row) for row in rows])


@agent.command(
    "set",
    epilog=examples(
        "bitinglip agent set my-bot --weight 3",
        "bitinglip agent set my-bot --max-priority medium --max-queued 200",
        "bitinglip agent set my-bot --max-priority none --max-queued none",
    ),
)
@click.argument("agent_id", metavar="AGENT")
@click.option("--weight", type=float, metavar="W", help="Its share of the workers, up to 1,000.  [default: 1]")
@click.option(
    "--max-priority",
    type=click.Choice([*(priority.value for priority in Priority), NONE]),
    help="The most urgent that it may ask for.",
)
@click.option("--max-queued", metavar="N|none", help="Tasks of it that may wait at once; none: as the settings say.")
@json_option
def set_(agent_id: str, *, as_json: bool, **fields: Any) -> None:
    """Set an agent's weight and limits, also before its first task. What is not given stays."""
    given = {name: None if value == NONE else value for name, value in fields.items() if value is not None}
    if not given:
        raise click.UsageError("nothing to change: give --weight, --max-priority or --max-queued")
    with Client() as client, name_options():
        changed = edit_agent(client.database, agent_id, **given)
    if as_json:
        write_json(changed)
    else:
        write_table(["field", "value"], list(changed.items()))
