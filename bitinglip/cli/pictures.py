"""Pictures that are done: where they are, saved to a folder, on one sheet, opened."""

import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitinglip.cli.output import say
from bitinglip.client.pictures import list_pictures, make_slug, name_draft, open_draft, save_pictures
from bitinglip.domain.task import Task
from bitinglip.errors import InvalidRequestError

if TYPE_CHECKING:
    from bitinglip.artifacts.store import ArtifactStore

CELL_SIDE = 512
"""Pixels of the longer side of a picture on a sheet, at most."""

GAP = 8
OPEN_SECONDS = 2.0
"""After which a program that opens a picture is left alone: some stay until they are closed."""


def locate_pictures(task: Task, store: "ArtifactStore | None" = None) -> list[str]:
    """Where a completed task's pictures are: paths, or URLs.

    Args:
        task: That made them.
        store: Where they are; None: as the settings say.

    Raises:
        ConfigurationError: If a setting is wrong.
    """
    if store is None:
        from bitinglip.artifacts.store import open_artifacts

        store = open_artifacts()
    return [store.locate(str(image["artifact"])) for image in list_pictures(task)]


def check_folder(folder: Path) -> None:
    """See that pictures can be saved to a folder, before any is drawn.

    Raises:
        BadParameter: If they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_draft(folder) as draft:
            draft.touch(exist_ok=False)
    except OSError as exc:
        reason = f"{str(folder)!r}: {exc.strerror}; name a folder that you may write"
        raise click.BadParameter(reason, param_hint="'--out'") from exc


@dataclass(frozen=True, slots=True)
class Delivery:
    """What becomes of a task's pictures at its end.

    Attributes:
        folder: Where they are saved; None: they stay where they are.
        opens: Whether they are shown by another program.
    """

    folder: Path | None
    opens: bool

    def deliver(self, store: "ArtifactStore", task: Task) -> list[str]:
        """Save and open them as asked; return where they are, the sheet last.

        Raises:
            InvalidRequestError: If the folder cannot be written any more.
            BitingLipError: As for `save_pictures`.
        """
        try:
            saved = _save(store, task, self.folder) if self.folder else []
            if self.opens:
                shown = saved or _save(store, task, Path(tempfile.mkdtemp(prefix="bitinglip-")))
                open_picture(shown[-1])
        except OSError as exc:
            remedy = f"{exc.strerror}; the pictures are kept: 'bitinglip task show {task.id}'"
            raise InvalidRequestError("--out", str(self.folder), remedy) from exc
        return [str(path) for path in saved] or locate_pictures(task, store)


def write_sheet(pictures: Sequence[Path], folder: Path, slug: str) -> Path:
    """Put pictures on one, in rows; return the path of the new file.

    Args:
        pictures: Files.
        folder: Where it goes.
        slug: The beginning of its name.

    Raises:
        OSError: If the folder cannot be written.
    """
    from PIL import Image

    cells = [_open_cell(path) for path in pictures]
    columns = math.ceil(math.sqrt(len(cells)))
    rows = math.ceil(len(cells) / columns)
    width, height = max(cell.width for cell in cells) + GAP, max(cell.height for cell in cells) + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (GAP + column * width, GAP + row * height))
    with open_draft(folder) as draft:
        sheet.save(draft, "PNG")
        return name_draft(draft, f"{slug}-sheet", "png")


def open_picture(path: Path) -> None:
    """Have the desktop show a picture; where there is none, say so."""
    program = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    if program is None:
        say(f"no program opens pictures here; open {path} yourself")
        return
    quiet = subprocess.DEVNULL
    command = [program, str(path.resolve())]
    started = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)  # noqa: S603 - no shell
    try:
        status = started.wait(OPEN_SECONDS)
    except subprocess.TimeoutExpired:
        return
    if status != 0:
        say(f"{program} could not open {path} (exit code {status}); open it yourself")


def _save(store: "ArtifactStore", task: Task, folder: Path) -> list[Path]:
    """The pictures' paths, and that of their sheet if they are several."""
    saved = save_pictures(store, task, folder)
    return [*saved, write_sheet(saved, folder, make_slug(task.title))] if len(saved) > 1 else saved


def _open_cell(path: Path) -> Any:
    """A PIL image of a picture, no larger than a cell."""
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
        cell = picture.convert("RGB")
    cell.thumbnail((CELL_SIDE, CELL_SIDE))
    return cell
