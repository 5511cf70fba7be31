"""`bitinglip agent`: who asks, how much of the workers is theirs, and the work that they do themselves."""

from collections.abc import Mapping
from typing import Any

import click

from bitinglip.cli.fields import name_options
from bitinglip.cli.output import examples, json_option, write_json, write_table
from bitinglip.cli.overviews import agents
from bitinglip.cli.taking import complete, fail, next_, renew
from bitinglip.client import Client
from bitinglip.domain.task import Priority
from bitinglip.lifecycle.agents import edit_agent, pause_agent, resume_agent

NONE = "none"


@click.group()
def agent() -> None:
    """See the agents, limit them, and do their work."""


for command in (agents, next_, renew, complete, fail):
    agent.add_command(command)


@agent.command(
    "set",
    epilog=examples(
        "bitinglip agent set my-bot --weight 3",
        "bitinglip agent set my-bot --max-running 4 --daily-seconds 3600",
        "bitinglip agent set my-bot --max-priority medium --max-queued 200",
        "bitinglip agent set my-bot --max-running none --daily-seconds none --daily-tokens none",
    ),
)
@click.argument("agent_id", metavar="AGENT")
@click.option("--weight", type=float, metavar="W", help="Its share of the workers, 0.001 to 1,000.  [default: 1]")
@click.option(
    "--max-priority",
    type=click.Choice([*(priority.value for priority in Priority), NONE]),
    help="The most urgent that it may ask for.",
)
@click.option("--max-queued", metavar="N|none", help="Tasks of it that may wait at once; none: as the settings say.")
@click.option("--max-running", metavar="N|none", help="Tasks of it that workers may hold at once.")
@click.option("--daily-seconds", metavar="S|none", help="Engine seconds that it may use each day, by UTC.")
@click.option("--daily-tokens", metavar="N|none", help="Tokens that it may use each day, by UTC, prompts included.")
@click.option("--force", is_flag=True, help="Accept a limit that what runs, or what was used today, exceeds already.")
@json_option
def set_(agent_id: str, *, as_json: bool, force: bool, **fields: Any) -> None:
    """Set an agent's weight and limits, also before its first task. What is not given stays.

    It holds from the next task that is given out; what workers have been given goes on.
    """
    given = {name: None if value == NONE else value for name, value in fields.items() if value is not None}
    if not given:
        *names, last = (f"--{name.replace('_', '-')}" for name in fields)
        message = f"nothing to change: give {', '.join(names)} or {last}"
        raise click.UsageError(message)
    with Client() as client, name_options():
        changed = edit_agent(client.database, agent_id, force=force, **given)
    _write_agent(changed, as_json=as_json)


@agent.command(epilog=examples("bitinglip agent pause my-bot"))
@click.argument("agent_id", metavar="AGENT")
@json_option
def pause(agent_id: str, *, as_json: bool) -> None:
    """Give workers nothing more of an agent until it is resumed.

    What workers have been given goes on, what it submits waits, and the work that it takes itself is not held back.
    """
    with Client() as client:
        changed = pause_agent(client.database, agent_id)
    _write_agent(changed, as_json=as_json)


@agent.command(epilog=examples("bitinglip agent resume my-bot"))
@click.argument("agent_id", metavar="AGENT")
@json_option
def resume(agent_id: str, *, as_json: bool) -> None:
    """Go on with an agent that was paused, at the turn of those that wait; it does not claim the time it was away."""
    with Client() as client:
        changed = resume_agent(client.database, agent_id)
    _write_agent(changed, as_json=as_json)


def _write_agent(fields: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(fields)
    else:
        write_table(["field", "value"], list(fields.items()))
