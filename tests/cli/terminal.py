"""A terminal with a command in it, which answers what programs ask terminals."""

import os
import pty
import subprocess
import sys
import termios
import threading
from types import TracebackType
from typing import Self

from tests.conftest import REPOSITORY

QUESTION = "\x1b[c"
"""What are you?"""

COLUMNS = 100

CELL_QUESTION = "\x1b[16t"
"""How large is a character?"""


class Terminal:
    """Runs a command whose stdin, stdout and stderr are one terminal.

    Args:
        *arguments: Of `bitinglip`.
        shows_pictures: Whether it says that it knows sixels.
        rows: Of 100 columns each; 0: it does not know how large it is.
    """

    def __init__(self, *arguments: str, shows_pictures: bool = False, rows: int = 40) -> None:
        self.shown = ""
        self._answers = {
            QUESTION: "\x1b[?62;4;22c" if shows_pictures else "\x1b[?62;22c",
            CELL_QUESTION: "\x1b[6;20;10t",
        }
        self._ours, theirs = pty.openpty()
        if rows:
            termios.tcsetwinsize(theirs, (rows, COLUMNS))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from bitinglip.cli import main; main()", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._ours)

    def wait(self) -> int:
        """The command's exit code, once it has ended and all that it wrote has been read."""
        status = self._process.wait(timeout=20)
        self._reader.join(timeout=20)
        return status

    def _read(self) -> None:
        asked = 0
        while True:
            try:
                piece = os.read(self._ours, 65_536)
            except OSError:
                # The other side is closed.
                return
            self.shown += piece.decode(errors="replace")
            for question, answer in self._answers.items():
                if question in self.shown[asked:]:
                    asked = len(self.shown)
                    os.write(self._ours, answer.encode())
