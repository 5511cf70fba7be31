"""`bitinglip demo`: the whole system at work, once, with answers and pictures that are right or wrong."""

import time
from collections.abc import Sequence
from pathlib import Path

import click

from bitinglip.artifacts.store import open_artifacts
from bitinglip.cli.demo_pictures import NEEDED_SHOWN, Picture
from bitinglip.cli.demo_run import MODEL, NEEDED_RIGHT, QUESTIONS, Answer, DemoRun
from bitinglip.cli.demo_view import StreamView, View, choose_view, write_report
from bitinglip.cli.output import examples, json_option, say, write_json
from bitinglip.cli.system import RunningSystem, run_system
from bitinglip.cli.up import data_dir_option
from bitinglip.client import Client
from bitinglip.domain.catalogue import IMAGE, TEXT
from bitinglip.embedded.signals import StopSignals
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.queries import list_offered_models
from bitinglip.worker.pools import find_pools_file, read_pools

LOOK_SECONDS = 0.05
LOAD_SECONDS = 60.0
ANSWER_SECONDS = 120.0


@click.command(epilog=examples("bitinglip demo", "bitinglip demo --json | jq .right"))
@data_dir_option
@json_option
@click.pass_context
def demo(ctx: click.Context, data_dir: Path | None, *, as_json: bool) -> None:
    """Start a system, let agents ask 60 questions and for 4 pictures, count what is right, stop it.

    The models are small and come with BitingLip. One knows capitals, adds, subtracts and spells backwards; it never saw
    these questions. The other one draws shapes. Exits with 0 if all was answered and drawn, 57 answers and 3 pictures
    of it right.
    """
    folder = data_dir or load_settings(ServerSettings).data_dir / "demo"
    began = time.monotonic()
    with StopSignals() as signals, run_system(folder, _list_pools(), signals, say) as system:
        start_seconds = time.monotonic() - began
        say(f"ready after {start_seconds:.1f} s; Flower is at {system.flower_url}")
        # Not closed: after an interruption its threads still read, until the servers under them are stopped.
        client = Client(system.urls.database_url, system.urls.redis_url)
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
    logs = system.data_dir / "logs"
    if summary["completed"] < QUESTIONS or summary["right"] < NEEDED_RIGHT:
        say(f"error: {QUESTIONS} answers and {NEEDED_RIGHT} right ones were expected; see {logs}")
        ctx.exit(1)
    if summary["drawn"] < len(run.pictures) or summary["shown"] < NEEDED_SHOWN:
        needed = f"{len(run.pictures)} pictures and {NEEDED_SHOWN} right ones"
        say(f"error: {needed} were expected; see {logs}")
        ctx.exit(1)


def _list_pools() -> list[str]:
    """The pools whose workers answer: those of others would only make the start longer."""
    wanted = {TEXT.name, IMAGE.name}
    return [name for name, pool in read_pools(find_pools_file()).items() if wanted & set(pool.kinds)]


def _ask(client: Client, system: RunningSystem, signals: StopSignals) -> DemoRun:
    run = DemoRun(client)
    sketch, *pictures = run.pictures
    # The first one has its model loaded: that is no part of what is measured.
    run.ask_for_pictures([sketch])
    _wait_for_models(client, sketch, system, signals)
    slots = sum(spec.pool.slots for spec in system.workers)
    first, *rest = run.answers
    _ask_and_show(run, [first], StreamView(first), signals)
    run.ask_for_pictures(pictures)
    _ask_and_show(run, rest, choose_view(slots), signals)
    run.stop_clock()
    _await_pictures(run, signals)
    run.collect(open_artifacts(system.data_dir if system.embedded else None))
    return run


def _ask_and_show(run: DemoRun, answers: Sequence[Answer], view: View, signals: StopSignals) -> None:
    """Show a run until these answers have ended, a signal came, or the time is over."""
    if signals.first is not None:
        return
    run.ask(answers)
    with view:
        while any(answer.state != "done" for answer in answers) and run.elapsed_seconds < ANSWER_SECONDS:
            view.show(run)
            if signals.wait(LOOK_SECONDS):
                return
        view.show(run)


def _await_pictures(run: DemoRun, signals: StopSignals) -> None:
    """Return when the pictures are drawn, a signal came, or the time is over."""
    while not all(picture.has_ended for picture in run.pictures) and run.elapsed_seconds < ANSWER_SECONDS:
        if signals.wait(LOOK_SECONDS):
            return


def _wait_for_models(client: Client, sketch: Picture, system: RunningSystem, signals: StopSignals) -> None:
    """Give a worker time to load the models, so that the first answer shows the queue and not the disk."""
    preloads = any(MODEL in spec.pool.preload for spec in system.workers)
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline:
        with client.database.transaction() as connection:
            is_loaded = not preloads or MODEL in list_offered_models(connection)
        if (is_loaded and (sketch.step or sketch.has_ended)) or signals.wait(LOOK_SECONDS):
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
        f'  {where}bitinglip submit text "What is the capital of Peru?" --follow\n'
        f'  {where}bitinglip submit image "a red circle on blue" --out .'
    )
