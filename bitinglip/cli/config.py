"""`bitinglip config`: is it set up right?"""

from collections.abc import Mapping

import click

from bitinglip.cli.checks import check_all
from bitinglip.cli.connections import ConnectionBudget, count_connections
from bitinglip.cli.failures import BAD_USAGE
from bitinglip.cli.output import examples, json_option, write_json
from bitinglip.errors import ServerUnreachableError
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.database import Database
from bitinglip.worker.pools import Pool


@click.group()
def config() -> None:
    """Check the configuration."""


@config.command(epilog=examples("bitinglip config check && systemctl restart bitinglip-worker"))
@json_option
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Write every problem of the settings, pools.toml, schedule.toml and celeryconfig.py at once.

    Exits with 2 if there is one.

    Where PostgreSQL can be reached, it also adds up the connections that this machine's workers need. That it cannot be
    reached is no problem of the configuration: ask `bitinglip health`.
    """
    findings = check_all()
    pools = findings.pools
    budget = findings.collect(lambda: _count_connections(pools)) if pools else None
    shortage = budget.find_problem() if budget else None
    problems = [*findings.problems, *([shortage] if shortage else [])]
    if as_json:
        write_json({"problems": problems, "connections": budget.to_json() if budget else None})
    else:
        for line in problems or ["no problem found"]:
            click.echo(line)
        if budget and not shortage:
            click.echo(f"{budget.needed} of {budget.allowed} database connections for {budget.workers} worker(s)")
    ctx.exit(BAD_USAGE if problems else 0)


def _count_connections(pools: Mapping[str, Pool]) -> ConnectionBudget | None:
    """The connections against the limit, or None where PostgreSQL cannot be asked."""
    try:
        url = load_settings(ServerSettings).find_urls().database_url
        database = Database(url, connections=1, name="bitinglip-config")
        try:
            return count_connections(database, pools)
        finally:
            database.close()
    except ServerUnreachableError:
        return None
