"""`bitinglip model list` and `bitinglip model show`: what is registered, read from the database alone."""

import click

from bitinglip.cli.model_view import list_fits, write_details, write_models
from bitinglip.cli.output import examples, json_option, say, write_json
from bitinglip.client import Client
from bitinglip.domain.models import ModelStatus
from bitinglip.registry.documents import write_entry
from bitinglip.registry.lookup import get_entry
from bitinglip.store.entries import list_entries


@click.command(
    "list",
    epilog=examples(
        "bitinglip model list",
        "bitinglip model list --status failed --json | jq -r .error.message",
        "bitinglip model list --json > models.json    # bitinglip model scan --restore models.json",
    ),
)
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice([*map(str, ModelStatus)]), help="May be repeated."
)
@json_option
def list_(statuses: tuple[str, ...], *, as_json: bool) -> None:
    """List the registered models: where each stands, how large it is, and which nodes have it.

    With --json each line has all that registering the model again needs: see `bitinglip model scan --restore`.
    """
    with Client() as client, client.database.statement() as connection:
        entries = [entry for entry in list_entries(connection) if not statuses or entry.status in statuses]
    if as_json:
        for entry in entries:
            write_json(write_entry(entry))
        return
    write_models(entries)
    if not entries and not statuses:
        say("fetch one with 'bitinglip model pull org/name', or find those that are here with 'bitinglip model scan'")


@click.command(
    epilog=examples("bitinglip model show org/name", "bitinglip model show org/name --json | jq '.fits[].fits'")
)
@click.argument("name")
@json_option
def show(name: str, *, as_json: bool) -> None:
    """Show all that is known of a model: its commit, licence, files and copies, what it needs, and where it fits."""
    with Client() as client:
        entry = get_entry(client.database, name)
        fits = list_fits(client.database, entry)
    if as_json:
        write_json({**write_entry(entry), "fits": fits})
    else:
        write_details(entry, fits)
        if not fits:
            say(f"no worker does {entry.record.type or 'any'!r} tasks now; start one with 'bitinglip worker start'")
