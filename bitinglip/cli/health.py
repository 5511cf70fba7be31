"""`bitinglip health`: is the system well?"""

import click

from bitinglip.cli.output import examples, json_option, write_json, write_table
from bitinglip.cli.probes import probe_all
from bitinglip.errors import ServerUnreachableError
from bitinglip.settings import ServerSettings, load_settings


@click.command(epilog=examples("bitinglip health && echo well", "bitinglip health --json | jq .healthy"))
@json_option
@click.pass_context
def health(ctx: click.Context, *, as_json: bool) -> None:
    """Check that PostgreSQL, its schema, Redis, a dispatcher, a worker and room for artifacts are there.

    Exits with 5 if one is not.
    """
    findings = list(probe_all(load_settings(ServerSettings).find_urls()))
    healthy = all(finding.ok for finding in findings)
    if as_json:
        write_json({"healthy": healthy, "checks": [finding.to_json() for finding in findings]})
    else:
        write_table(["part", "ok", "detail"], [(found.part, found.ok, found.detail) for found in findings])
    ctx.exit(0 if healthy else ServerUnreachableError.exit_code)
