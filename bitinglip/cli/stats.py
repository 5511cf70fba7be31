"""`bitinglip stats`: how much was done."""

import click

from bitinglip.cli.output import examples, json_option, write_json, write_table
from bitinglip.client import Client
from bitinglip.store.queries import get_stats


@click.command(epilog=examples("bitinglip stats --json"))
@json_option
def stats(*, as_json: bool) -> None:
    """Count tasks by status, agents, workers and slots, and the last hour's tokens and waits."""
    with Client() as client, client.database.transaction() as connection:
        found = get_stats(connection)
    if as_json:
        write_json(found)
        return
    counts = [(f"tasks {status}", count) for status, count in found["tasks"].items()]
    others = [(name.replace("_", " "), value) for name, value in found.items() if name != "tasks"]
    write_table(["what", "value"], counts + others)
