"""`bitinglip stats`: how much was done, and how well that was foretold."""

import click

from bitinglip.cli.output import examples, json_option, write_json, write_table
from bitinglip.client import Client
from bitinglip.lifecycle.quote import read_calibration
from bitinglip.store.queries import get_stats


@click.command(epilog=examples("bitinglip stats --json", "bitinglip stats --calibration"))
@click.option("--calibration", is_flag=True, help="In place of it, compare the last day's quotes with the truth.")
@json_option
def stats(*, calibration: bool, as_json: bool) -> None:
    """Count tasks by status, agents, workers and slots, and the last hour's tokens and waits.

    With --calibration: of how many tasks a wait was foretold, which part of them began within P50 and P90 of it, by how
    much P50 was off, and the engine seconds that were foretold over those that were used.
    """
    with Client() as client:
        if calibration:
            found = read_calibration(client.database)
        else:
            with client.database.transaction() as connection:
                found = get_stats(connection)
    if as_json:
        write_json(found)
        return
    counts = [(f"tasks {status}", count) for status, count in found.get("tasks", {}).items()]
    others = [(name.replace("_", " "), value) for name, value in found.items() if name != "tasks"]
    write_table(["what", "value"], counts + others)
