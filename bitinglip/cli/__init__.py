"""The command line: `bitinglip`.

    root ──► submit, task, queue, worker, agent      a task's life, as people ask for it   ──► client, store
         ├─► health, stats, config, db               is it well, and is it set up right
         └─► up, demo ──► system ──► embedded        the whole system as children of this process

Scripts rely on this contract: data goes to stdout and talk to stderr; `--json` gives one document, or one line an
item; the exit code is the error's (`failures`): 0 done, 1 the task failed, 2 bad usage, 3 not found, 4 refused by a
limit, 5 a server cannot be reached, 130 interrupted.

Decisions:
- **Commands are imported when they are run** (`lazy`): `--help` and completion read a table and import only click.
- **Errors are translated once**, in `Root.main`; a command raises what the client raises.
- **No progress on stdout**, not even on a terminal: what can be piped is all that is there.
"""

import io
import sys

from bitinglip.cli.root import cli


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character of an answer shows `?` in its place.
            stream.reconfigure(errors="replace")
    cli.main(prog_name="bitinglip")
