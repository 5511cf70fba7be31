"""`bitinglip model`: which models there are, and what to do with them."""

import click

from bitinglip.cli.lazy import Entry, LazyGroup

# Some read the network's and the disk's packages, which the others need not wait for.
COMMANDS = {
    "pull": Entry("bitinglip.cli.model_pull:pull", "Have a model fetched from the hub, and watch it come."),
    "list": Entry("bitinglip.cli.model_list:list_", "List the registered models."),
    "show": Entry("bitinglip.cli.model_list:show", "Show a model: its files, its copies, and where it fits."),
    "verify": Entry("bitinglip.cli.model_files:verify", "Hash every byte of this node's copy, and repair it."),
    "scan": Entry("bitinglip.cli.model_files:scan", "Register what is on this node's disk."),
    "pin": Entry("bitinglip.cli.model_files:pin", "Keep a model whatever room is needed."),
    "remove": Entry("bitinglip.cli.model_files:remove", "Delete a model from every node."),
}


@click.group(cls=LazyGroup, entries=COMMANDS)
def model() -> None:
    """Fetch, list, verify, pin and remove models."""
