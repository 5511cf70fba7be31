"""`bitinglip agent`: who asks."""

import click

from bitinglip.cli.output import examples, json_option, write_json, write_table
from bitinglip.client import Client
from bitinglip.store.queries import list_agents


@click.group()
def agent() -> None:
    """See the agents."""


@agent.command("list", epilog=examples("bitinglip agent list --json | jq 'select(.pending > 0)'"))
@json_option
def list_(*, as_json: bool) -> None:
    """List the agents, their weights, and how many of their tasks have each status."""
    with Client() as client, client.database.transaction() as connection:
        rows = list_agents(connection)
    if as_json:
        for row in rows:
            write_json(dict(row._mapping))
        return
    headers = ["agent", "weight", "since", "pending", "in progress", "completed", "failed", "cancelled"]
    write_table(headers, [tuple(row) for row in rows])
