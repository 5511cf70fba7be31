"""`bitinglip model pull`: a model is asked for, and watched until it is there."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import click

from bitinglip.cli.fields import name_options
from bitinglip.cli.follow import warn_if_nobody_works
from bitinglip.cli.model_view import write_models
from bitinglip.cli.output import examples, json_option, say, write_json
from bitinglip.cli.progress import ProgressLine
from bitinglip.client import Client, Handle
from bitinglip.domain.catalogue import DOWNLOAD
from bitinglip.domain.models import ModelName, ModelStatus
from bitinglip.registry.documents import write_entry
from bitinglip.registry.lookup import get_entry
from bitinglip.store.entries import ModelEntry, list_entries
from bitinglip.streams.events import Event, EventName

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


@click.command(
    epilog=examples(
        "bitinglip model pull org/name",
        "bitinglip model pull org/name --revision v1.0",
        "bitinglip model pull org/name --no-wait    # writes the id of the task that fetches it",
        "bitinglip model pull org/name --json | jq -r .commit",
    )
)
@click.argument("model", metavar="NAME")
@click.option("--revision", metavar="R", help="A branch, a tag or a commit.  [default: main]")
@click.option("--no-wait", is_flag=True, help="Write the id of the task that fetches it, and be done.")
@json_option
def pull(model: str, revision: str | None, *, no_wait: bool, as_json: bool) -> None:
    """Have NAME, organisation/name on the hub, fetched by a worker and proven byte by byte; then write what it is.

    Returns at once if a node has it. Whoever asks for the same model meanwhile watches the same download. Ctrl-C leaves
    it running. Exits with 1 if it failed, with the cause.
    """
    with name_options():
        name = str(ModelName.parse(model, revision))
    with Client() as client:
        entry = _find_available(client, name)
        if entry is None:
            handle = client.submit(DOWNLOAD.name, model=name)
            if no_wait:
                _write_task(handle, name, as_json=as_json)
                return
            _watch(client, handle, name)
            entry = get_entry(client.database, name)
    if as_json:
        write_json(write_entry(entry))
    else:
        write_models([entry])


class View(Protocol):
    """Shows how far a download is."""

    def show(self, progress: Mapping[str, Any]) -> None:
        """Tell of one `progress` event: stage, done_bytes, total_bytes, files."""

    def end(self) -> None:
        """Leave what is shown as it is: something else is written next."""


class Bars:
    """A bar for the whole model and one for each file that is fetched now, on a terminal.

    Args:
        console: Where.
    """

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._progress: Progress | None = None
        self._whole: TaskID | None = None
        self._files: dict[str, TaskID] = {}

    def show(self, progress: Mapping[str, Any]) -> None:
        """Draw the bars anew; a file that is whole has none any more."""
        bars = self._progress = self._progress or self._start()
        if self._whole is None:
            self._whole = bars.add_task("")
        bars.update(
            self._whole,
            description=progress["stage"],
            completed=progress["done_bytes"],
            total=progress["total_bytes"] or None,
        )
        files = progress["files"]
        for path in self._files.keys() - files.keys():
            bars.remove_task(self._files.pop(path))
        for path, (done_bytes, size) in files.items():
            if path not in self._files:
                self._files[path] = bars.add_task(f"  {path}", total=size)
            bars.update(self._files[path], completed=done_bytes)

    def end(self) -> None:
        """Leave the bars as they are."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._whole = None, None
        self._files.clear()

    def _start(self) -> "Progress":
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as RateColumn

        # A file's name is no markup.
        name = TextColumn("{task.description}", markup=False)
        progress = Progress(
            name, BarColumn(), DownloadColumn(), RateColumn(), TimeRemainingColumn(), console=self._console
        )
        progress.start()
        return progress


def _find_available(client: Client, name: str) -> ModelEntry | None:
    with client.database.statement() as connection:
        found = list_entries(connection, [name])
    return next((entry for entry in found if entry.status is ModelStatus.AVAILABLE), None)


def _write_task(handle: Handle, name: str, *, as_json: bool) -> None:
    if as_json:
        write_json({"id": handle.id, "model": name, "status": handle.status})
    else:
        click.echo(handle.id)


def _watch(client: Client, handle: Handle, name: str) -> None:
    """Show a download to its end.

    Raises:
        TaskEndedError: If it failed or was cancelled; with the cause.
    """
    say(f"task {handle.id}")
    warn_if_nobody_works(client, DOWNLOAD.name)
    view = _choose_view()
    try:
        for event in handle.stream():
            _show(view, event)
    except KeyboardInterrupt:
        view.end()
        again = f"'bitinglip model pull {name}' shows it again, 'bitinglip task cancel {handle.id}' ends it"
        say(f"the download of {name} goes on; {again}")
        raise
    finally:
        view.end()
    handle.result()


def _choose_view() -> View:
    if not sys.stderr.isatty():
        return ProgressLine()
    from rich.console import Console

    return Bars(Console(stderr=True))


def _show(view: View, event: Event) -> None:
    match event.name:
        case EventName.PROGRESS:
            view.show(event.data)
        case EventName.RETRIED | EventName.RELEASED:
            view.end()
            message = (event.data.get("error") or {}).get("message") or "nobody knows why"
            say(f"attempt {event.data['attempt']} has ended: {message}; it goes on with another one")
