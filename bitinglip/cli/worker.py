"""`bitinglip worker`: who works, and one more."""

import os

import click

from bitinglip.cli.checks import refuse_problems
from bitinglip.cli.output import examples, json_option, say, write_json, write_table
from bitinglip.cli.pool import run_pool
from bitinglip.cli.programs import find_worker, make_worker_command, make_worker_environment, plan_pool
from bitinglip.client import Client
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.database import Database
from bitinglip.store.queries import list_workers


@click.group()
def worker() -> None:
    """List and start workers."""


@worker.command("list", epilog=examples("bitinglip worker list --json | jq -r .name"))
@click.option("--all", "include_gone", is_flag=True, help="Those that have left, too.")
@json_option
def list_(*, include_gone: bool, as_json: bool) -> None:
    """List the workers: their pool, their slots, the models they hold."""
    with Client() as client, client.database.transaction() as connection:
        rows = list_workers(connection, include_gone=include_gone)
    if as_json:
        for row in rows:
            write_json(dict(row._mapping))
        return
    columns = ["name", "pool", "state", "alive", "kinds", "slots", "running", "reserved", "models", "last_seen_at"]
    write_table(columns, [[getattr(row, column) for column in columns] for row in rows])


@worker.command(
    epilog=examples("bitinglip worker start --pool default", "bitinglip worker start --pool default --number 1")
)
@click.option("--pool", metavar="P", help="As in pools.toml.  [default: the first one there]")
@click.option("--number", type=click.IntRange(min=0), metavar="N", help="One worker of the pool, counted from 0.")
def start(pool: str | None, number: int | None) -> None:
    """Run a pool's workers on this machine: one on the CPU, or one for every GPU, until Ctrl-C.

    A single worker takes the place of this process, as service managers like it.
    """
    refuse_problems()
    specs = plan_pool(pool)
    settings = load_settings(ServerSettings)
    database = Database(settings.find_urls().database_url, connections=1)
    database.check_schema()
    database.close()
    if number is None and len(specs) > 1:
        run_pool(specs, settings.data_dir)
        return
    spec = find_worker(specs, number or 0)
    command = make_worker_command(spec)
    say(f"worker {spec.number} of pool {spec.pool_name!r} on {', '.join(gpu.name for gpu in spec.gpus) or 'the CPU'}")
    os.execve(command[0], command, make_worker_environment(spec))  # noqa: S606 - our own command line
