"""`bitinglip chaos`: break a system on purpose, and see that nothing is lost."""

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitinglip.chaos.kinds import Fault
from bitinglip.cli.output import examples, json_option, say, write_json, write_table
from bitinglip.embedded import remove_data
from bitinglip.embedded.signals import StopSignals
from bitinglip.settings import ServerSettings, WorkerSettings, load_settings

if TYPE_CHECKING:
    from bitinglip.chaos.report import Report
    from bitinglip.chaos.system import System

SHOWN_VIOLATIONS = 20
SHOWN_COUNTS = (
    *("tasks", "completed", "lost", "double_recorded", "stuck"),
    *("files", "files_swept", "file_missing", "file_damaged", "file_unnamed"),
)


def _parse_faults(_: click.Context, __: click.Parameter, text: str) -> list[Fault]:
    try:
        return [Fault(kind) for kind in dict.fromkeys(text.split(","))]
    except ValueError as exc:
        raise click.BadParameter(f"{exc}; choose from {', '.join(Fault)}") from exc


@click.command(
    epilog=examples(
        "bitinglip chaos",
        "bitinglip chaos --json --rounds 3 | jq '.lost + .double_recorded + .stuck'",
        "bitinglip chaos --confirm        break the system that is configured",
    )
)
@click.option("--rounds", type=click.IntRange(1, 1_000), default=1, show_default=True, help="How often each fault.")
@click.option("--seed", type=int, help="Of the load, the order of faults and the victims.  [default: by chance]")
@click.option("--confirm", is_flag=True, help="Break the configured system in place of one of its own.")
@click.option("--faults", callback=_parse_faults, default=",".join(Fault), hidden=True, metavar="KIND,...")
@json_option
@click.pass_context
def chaos(
    ctx: click.Context, rounds: int, seed: int | None, faults: Sequence[Fault], *, confirm: bool, as_json: bool
) -> None:
    """Kill engines, workers, nodes, dispatchers, Redis and PostgreSQL under load; count what was lost.

    Starts a small system of its own in a temporary folder: PostgreSQL, Valkey, two dispatchers and two nodes, each a
    supervisor with a worker on the CPU. Keeps echoes, texts and pictures coming, does each fault, waits for the
    recovery, and checks every task in SQL at the end: completed exactly once, with the right result; and every file:
    it is there as its record says, and after a sweep there is no other.

    With --confirm it breaks the system that is configured: workers, dispatchers and servers on this machine that
    somebody starts again, every connection to the database, and all that is in the database of Redis. What it cannot
    do there it skips, and says so. Tasks of others survive it too, but their streams do not.

    Exits with 0 only if no task was lost, recorded twice or stuck, and no file missing, damaged or nobody's.
    """
    from bitinglip.chaos.run import break_system

    chosen_seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    with StopSignals() as signals:

        def pause(seconds: float) -> None:
            if signals.wait(seconds):
                raise click.Abort

        def break_it(system: "System") -> "Report":
            return break_system(system, faults, rounds=rounds, seed=chosen_seed, tell=say, pause=pause)

        report = break_it(_find_configured()) if confirm else _run_own(break_it, signals)
    if as_json:
        write_json(report.to_json())
    else:
        _write_report(report)
    _say_violations(report)
    if not report.verdict.is_clean:
        ctx.exit(1)


def _find_configured() -> "System":
    """The configured system.

    Raises:
        SystemNotRunningError: If there is none.
    """
    from bitinglip.artifacts.store import open_artifacts
    from bitinglip.chaos.processes import Processes
    from bitinglip.chaos.system import System

    urls = load_settings(ServerSettings).find_urls()
    lease_seconds = load_settings(WorkerSettings).lease_seconds
    return System(urls, Processes(), lease_seconds=lease_seconds, artifacts=open_artifacts())


def _run_own(break_it: Callable[["System"], "Report"], signals: StopSignals) -> "Report":
    """Start a system, break it, stop it, and remove it unless there is something to look for in its logs."""
    from bitinglip.chaos.system import run_own_system

    folder = Path(tempfile.mkdtemp(prefix="bitinglip-chaos-"))
    is_wanted = True
    try:
        say("starting a system of its own: PostgreSQL, Valkey, two dispatchers, two nodes")
        with run_own_system(folder, say, signals.is_hurried) as system:
            report = break_it(system)
        is_wanted = not report.verdict.is_clean
    except click.Abort:
        is_wanted = False
        raise
    finally:
        if is_wanted:
            say(f"its logs are kept in {folder / 'logs'}")
        else:
            remove_data(folder)
    return report


def _write_report(report: "Report") -> None:
    document = report.to_json()
    headers = ["fault", "times", "recovery p50 s", "max s"]
    write_table(headers, [tuple(fault.values()) for fault in document["faults"]])
    click.echo()
    for name in SHOWN_COUNTS:
        click.echo(f"{name.replace('_', ' '):<16}{document[name]:>8,}")
    before, after = document["throughput_before"], document["throughput_after"]
    click.echo(f"{'throughput':<16}{after:>8,.0f}/s, {before:,.0f}/s before the faults")


def _say_violations(report: "Report") -> None:
    violations = report.verdict.violations
    for violation in violations[:SHOWN_VIOLATIONS]:
        say(f"{violation.invariant}: task {violation.task_id}: {violation.reason}")
    if len(violations) > SHOWN_VIOLATIONS:
        say(f"... and {len(violations) - SHOWN_VIOLATIONS} more")
