"""`bitinglip worker`: who works, and one more."""

import click

from bitinglip.cli.checks import refuse_problems
from bitinglip.cli.drain import drain
from bitinglip.cli.output import examples, json_option, write_json, write_table
from bitinglip.cli.pool import run_workers
from bitinglip.cli.programs import find_worker, plan_pools
from bitinglip.client import Client
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.database import Database
from bitinglip.store.queries import list_workers


@click.group()
def worker() -> None:
    """List, start and drain workers."""


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
@click.option(
    "--pool", "pools", multiple=True, metavar="P", help="As in pools.toml; repeatable.  [default: every pool]"
)
@click.option("--number", type=click.IntRange(min=0), metavar="N", help="One worker of the pool, counted from 0.")
def start(pools: tuple[str, ...], number: int | None) -> None:
    """Run the pools' workers on this machine: one on the CPU, or one for every GPU, until Ctrl-C.

    This process stays their parent. A worker that dies is started again, and its tasks are free at once. One that was
    drained from afar leaves for good; when all have left, this ends with 0. The first Ctrl-C, or SIGTERM, lets what
    runs end, for at most BITINGLIP_DRAIN_SECONDS; a second one hands it back.

    A single worker writes its log to this terminal, several write to a file each.
    """
    refuse_problems()
    specs = plan_pools(pools)
    chosen = specs if number is None else [find_worker(specs, number)]
    settings = load_settings(ServerSettings)
    database = Database(settings.find_urls().database_url, connections=1)
    database.check_schema()
    database.close()
    run_workers(chosen, settings.data_dir)


worker.add_command(drain)
