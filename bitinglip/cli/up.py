"""`bitinglip up`: the whole system on this machine."""

from pathlib import Path
from typing import Any

import click

from bitinglip.cli.output import examples, json_option, say, write_json
from bitinglip.cli.system import RunningSystem, run_system
from bitinglip.embedded.flower import USER as FLOWER_USER
from bitinglip.embedded.signals import StopSignals
from bitinglip.settings import ServerSettings, load_settings

data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path), metavar="D", help="Where the system keeps its data and logs."
)


@click.command(
    epilog=examples(
        "bitinglip up",
        "bitinglip up --data-dir ./data        then, elsewhere:",
        'BITINGLIP_DATA_DIR=./data bitinglip submit text "What is the capital of Peru?" --follow',
    )
)
@data_dir_option
@click.option("--pool", "pools", multiple=True, metavar="P", help="Whose workers; repeatable.  [default: every pool's]")
@json_option
def up(data_dir: Path | None, pools: tuple[str, ...], *, as_json: bool) -> None:
    """Run PostgreSQL, Valkey, the dispatcher, workers (one for every GPU) and Flower until Ctrl-C.

    With BITINGLIP_DATABASE_URL and BITINGLIP_REDIS_URL set, it uses those servers and starts none.
    """
    default = load_settings(ServerSettings).data_dir
    with StopSignals() as signals, run_system(data_dir or default, pools, signals, say) as system:
        if as_json:
            write_json(describe_system(system))
        else:
            _introduce(system, is_default=data_dir is None)
        say("ready; Ctrl-C stops it")
        signals.wait()


def describe_system(system: RunningSystem) -> dict[str, Any]:
    """A system as one JSON document; no password is in it."""
    return {
        "data_dir": str(system.data_dir),
        "database": system.database_address,
        "embedded": system.embedded,
        "flower_url": system.flower_url,
        "flower_user": FLOWER_USER,
        "flower_password_file": str(system.flower_password_file),
        "workers": [f"{spec.pool_name}-{spec.number}" for spec in system.workers],
        "logs": str(system.data_dir / "logs"),
    }


def _introduce(system: RunningSystem, *, is_default: bool) -> None:
    environment = "" if is_default or not system.embedded else f"BITINGLIP_DATA_DIR={system.data_dir} "
    lines = [
        ("Flower", f"{system.flower_url}  user {FLOWER_USER}, password in {system.flower_password_file}"),
        ("PostgreSQL", system.database_address + ("  whole URL in " + str(system.data_dir / "running.json"))),
        ("workers", ", ".join(f"{spec.pool_name}-{spec.number}" for spec in system.workers)),
        ("logs", str(system.data_dir / "logs")),
        ("submit", f'{environment}bitinglip submit text "What is the capital of Peru?" --follow'),
        ("look", f"{environment}bitinglip task list"),
    ]
    for name, value in lines:
        click.echo(f"{name:<12}{value}")
