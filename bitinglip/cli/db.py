"""`bitinglip db`: the schema, and whether what the tables say holds together."""

from dataclasses import asdict

import click

from bitinglip.cli.output import examples, json_option, say, write_json, write_table
from bitinglip.cli.schema import HEAD, upgrade_schema
from bitinglip.lifecycle.check import find_all_drift, repair_all_drift
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.database import Database

DRIFTED = 1


@click.group()
def db() -> None:
    """Bring the database to this code's schema, and check what it says."""


@db.command(epilog=examples("BITINGLIP_DATABASE_URL=... BITINGLIP_REDIS_URL=... bitinglip db upgrade"))
@click.option("--revision", default=HEAD, show_default=True, metavar="R", help="Up to this migration.")
@json_option
def upgrade(revision: str, *, as_json: bool) -> None:
    """Run the migrations that the database lacks. Safe to run twice, and while old workers run."""
    database = Database(load_settings(ServerSettings).find_urls().database_url, connections=1, name="bitinglip-upgrade")
    try:
        upgrade_schema(database, revision)
    finally:
        database.close()
    if as_json:
        write_json({"database": database.address, "revision": revision})
    else:
        say(f"{database.address} is at {revision}")


@db.command(epilog=examples("bitinglip db check", "bitinglip db check --repair --json"))
@click.option("--repair", is_flag=True, help="Put it right. Dispatchers wait meanwhile; nobody else does.")
@json_option
@click.pass_context
def check(ctx: click.Context, *, repair: bool, as_json: bool) -> None:
    """Write what does not hold together: hints, lanes, counts, dependencies, budgets. Reads whole tables.

    Exits with 1 if something was found and not repaired.
    """
    database = Database(load_settings(ServerSettings).find_urls().database_url, connections=1, name="bitinglip-check")
    try:
        database.check_schema()
        found = repair_all_drift(database) if repair else find_all_drift(database)
    finally:
        database.close()
    if as_json:
        write_json({"repaired": repair, "drift": [asdict(drift) for drift in found]})
    elif found:
        rows = [(drift.code, drift.count, drift.meaning, "; ".join(drift.examples)) for drift in found]
        write_table(["code", "count", "meaning", "examples"], rows)
        say("all repaired" if repair else "run 'bitinglip db check --repair' to put it right")
    else:
        say("nothing to repair")
    ctx.exit(DRIFTED if found and not repair else 0)
