"""`bitinglip db`: the schema."""

import click

from bitinglip.cli.output import examples, json_option, say, write_json
from bitinglip.cli.schema import HEAD, upgrade_schema
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.database import Database


@click.group()
def db() -> None:
    """Bring the database to this code's schema."""


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
