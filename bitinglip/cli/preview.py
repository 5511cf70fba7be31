"""How far a picture is, for people: a bar and the picture as it comes on a terminal, a line now and then elsewhere.

Which pictures a terminal can show is asked of the terminal itself, once, when the library is imported. The answer comes
on stdin, so this is done only where stdin is a terminal, too.
"""

import base64
import io
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

LINE_SECONDS = 5.0
"""From one line to the next where nothing can be drawn anew."""

PREVIEW_ROWS = 12
"""Of the terminal, for the picture."""

_BAR_COLUMNS = 30
_MAX_PREVIEW_SIDE = 512


def find_renderable(*, preview: bool | None) -> Any:
    """Rich's way to draw pictures on this terminal, a class; None: none are drawn.

    Args:
        preview: Whether they are wanted; None: where they can be shown.
    """
    if preview is False or not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return None
    if 0 in os.get_terminal_size(sys.stdout.fileno()):
        # It does not know how large it is, and so nobody knows how large a picture would be.
        return None
    # The import asks the terminal.
    from textual_image import renderable

    found = renderable.Image
    # Those of characters ask the terminal again and again how large one is, and wait for each answer.
    return None if found in {renderable.HalfcellImage, renderable.UnicodeImage} else found


class DrawingView:
    """Shows the progress of an image task on stderr: stdout is for data.

    Args:
        preview: As for `find_renderable`.
    """

    def __init__(self, *, preview: bool | None = None) -> None:
        self._preview = preview
        self._live: Any = None
        self._renderable: Any = None
        self._picture: Any = None
        self._next_line_at = 0.0

    def show(self, progress: Mapping[str, Any]) -> None:
        """Tell of one `progress` event of an image task.

        Args:
            progress: fraction, step, steps; perhaps done, drawing and count of its pictures, and preview.
        """
        if sys.stderr.isatty():
            self._draw(progress)
        elif time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + LINE_SECONDS
            click.echo(f"{progress['fraction']:.0%}: {_describe(progress)}", err=True)

    def end(self) -> None:
        """Take the bar away: something else is written next."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, progress: Mapping[str, Any]) -> None:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        if self._live is None:
            self._open()
        if self._renderable is not None and "preview" in progress:
            picture = open_preview(progress["preview"])
            self._picture = (
                self._renderable(picture, width="auto", height=PREVIEW_ROWS) if picture is not None else self._picture
            )
        bar = Table.grid(padding=(0, 1))
        fraction = progress["fraction"]
        bar.add_row(ProgressBar(1.0, fraction, width=_BAR_COLUMNS), f"{fraction:.0%}", _describe(progress))
        self._live.update(Group(bar, self._picture) if self._picture is not None else bar, refresh=True)

    def _open(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._renderable = find_renderable(preview=self._preview)
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._live.start()


def open_preview(text: str) -> Any:
    """The PIL image that a `progress` event holds as a JPEG in base64; None if it is none."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("JPEG",))
        if max(picture.size) > _MAX_PREVIEW_SIDE:
            return None
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # A preview is not worth an error.
        return None
    return picture


def _describe(progress: Mapping[str, Any]) -> str:
    line = f"step {progress['step']} of {progress['steps']}"
    done, drawing, count = (progress.get(name, 0) for name in ("done", "drawing", "count"))
    if count <= 1:
        return line
    which = f"picture {done + 1}" if drawing == 1 else f"pictures {done + 1} to {done + drawing}"
    return f"{line}, {which} of {count}"
