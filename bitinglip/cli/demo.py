"""`bitinglip demo`: the whole system at work, once, with answers that are right or wrong."""

import time
from pathlib import Path

import click

from bitinglip.cli.demo_run import MODEL, NEEDED_RIGHT, QUESTIONS, DemoRun
from bitinglip.cli.demo_view import choose_view, stream_answer, write_report
from bitinglip.cli.output import examples, json_option, say, write_json
from bitinglip.cli.system import RunningSystem, run_system
from bitinglip.cli.up import data_dir_option
from bitinglip.client import Client
from bitinglip.embedded.signals import StopSignals
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.queries import list_offered_models

LOOK_SECONDS = 0.1
LOAD_SECONDS = 60.0
ANSWER_SECONDS = 120.0


@click.command(epilog=examples("bitinglip demo", "bitinglip demo --json | jq .right"))
@data_dir_option
@json_option
@click.pass_context
def demo(ctx: click.Context, data_dir: Path | None, *, as_json: bool) -> None:
    """Start a system, let three agents ask 60 questions, count the right answers, stop it.

    The model is small and comes with BitingLip. It knows capitals, adds, subtracts and spells backwards; it never saw
    these questions. Exits with 0 if all were answered, and 57 of them right.
    """
    folder = data_dir or load_settings(ServerSettings).data_dir / "demo"
    began = time.monotonic()
    with StopSignals() as signals, run_system(folder, None, signals, say) as system:
        start_seconds = time.monotonic() - began
        say(f"ready after {start_seconds:.1f} s; Flower is at {system.flower_url}")
        with Client(system.urls.database_url, system.urls.redis_url) as client:
            run = _ask(client, system, signals)
        interrupted = signals.first is not None
    if interrupted:
        raise click.Abort
    summary = run.summarise()
    if as_json:
        write_json({**summary, "start_seconds": round(start_seconds, 3), "data_dir": str(system.data_dir)})
    else:
        write_report(run)
        _say_where_to_look(system)
    ctx.exit(0 if summary["completed"] == QUESTIONS and summary["right"] >= NEEDED_RIGHT else 1)


def _ask(client: Client, system: RunningSystem, signals: StopSignals) -> DemoRun:
    run = DemoRun(client)
    _wait_for_model(client, system, signals)
    stream_answer(run)
    run.ask_rest()
    with choose_view(sum(spec.pool.slots for spec in system.workers)) as view:
        while not run.is_done() and run.elapsed_seconds < ANSWER_SECONDS and signals.first is None:
            view.show(run)
            signals.wait(LOOK_SECONDS)
        view.show(run)
    run.collect()
    return run


def _wait_for_model(client: Client, system: RunningSystem, signals: StopSignals) -> None:
    """Give a worker time to load the model, so that the first answer shows the queue and not the disk."""
    deadline = time.monotonic() + LOAD_SECONDS
    while any(MODEL in spec.pool.preload for spec in system.workers) and time.monotonic() < deadline:
        with client.database.transaction() as connection:
            if MODEL in list_offered_models(connection) or signals.wait(LOOK_SECONDS):
                return


def _say_where_to_look(system: RunningSystem) -> None:
    where = f"BITINGLIP_DATA_DIR={system.data_dir} " if system.embedded else ""
    say(
        "\nThe system is stopped; its tasks are kept. To look at them, run it again in one terminal:\n"
        f"  bitinglip up --data-dir {system.data_dir}\n"
        "and in another:\n"
        f"  {where}bitinglip task list\n"
        f"  {where}bitinglip queue list --watch\n"
        f"  {where}bitinglip stats\n"
        f'  {where}bitinglip submit text "What is the capital of Peru?" --follow'
    )
