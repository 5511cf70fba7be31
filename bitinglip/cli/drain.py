"""`bitinglip worker drain`: a worker leaves when its tasks have ended, told from afar."""

import click

from bitinglip.cli.output import examples, json_option, write_json
from bitinglip.client import Client
from bitinglip.lifecycle.lease import drain_by_name
from bitinglip.streams.wake import wake_worker


@click.command(epilog=examples("bitinglip worker drain $(hostname)-default-0", "bitinglip worker list"))
@click.argument("name")
@json_option
def drain(name: str, *, as_json: bool) -> None:
    """Give the worker NAME no more tasks; it leaves when those that it runs have ended.

    What it has not begun goes to others at once. It is told again by its next heartbeat if it does not hear this.
    """
    with Client() as client:
        worker_id = drain_by_name(client.database, name)
        wake_worker(client.redis, worker_id)
    if as_json:
        write_json({"name": name, "id": worker_id, "state": "draining"})
    else:
        click.echo(f"{name} draining")
