"""PostgreSQL's data folder: how it is made, and what its `postmaster.pid` says.

No account of the machine is trusted at any moment: the password is set while the cluster is made, and goes to `initdb`
through a pipe, not through a file or an argument.
"""

import os
import shutil
import subprocess
import sys
from io import FileIO
from pathlib import Path

from bitinglip.embedded.accounts import Account
from bitinglip.embedded.child import ChildStartError, read_last_words
from bitinglip.embedded.guard_process import Charge, find_start

SUPERUSER = "bitinglip"
# Nothing of ours: PGPORT, LC_ALL or TZ of the caller must not shape the server. A given TZ also spares initdb a search.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
STATUS_LINE = 7
FIRST_MAJOR_WITH_SYNCFS = 17


def make_cluster(
    cluster: Path, *, initdb: Path, major: int, account: Account | None, password: str, log_file: Path, fsync: bool
) -> None:
    """Make the data folder, under another name first: a start that is killed half-way leaves no half cluster.

    Raises:
        ChildStartError: If `initdb` fails.
    """
    draft = cluster.with_name(f"{cluster.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    if account:
        os.chown(draft, account.uid, account.gid)
    options = ["--encoding=UTF8", "--locale=C", "--no-instructions", f"--username={SUPERUSER}"]
    options += ["--auth-local=reject", "--auth-host=scram-sha-256", *_choose_sync(major, fsync=fsync)]
    with log_file.open("ab") as log, _open_password_pipe(password, account) as pipe:
        made = subprocess.run(  # noqa: S603
            [initdb, "-D", draft, f"--pwfile=/dev/fd/{pipe.fileno()}", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            cwd="/",
            check=False,
            pass_fds=[pipe.fileno()],
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    if made.returncode != 0:
        raise ChildStartError("initdb", f"ended with {made.returncode}", read_last_words(log_file), log_file)
    draft.rename(cluster)


def is_ready(cluster: Path, pid: int) -> bool:
    """Whether the server with this pid takes connections. A file that a killed one left also says ready."""
    lines = _read_lock_file(cluster)
    return len(lines) > STATUS_LINE and lines[0] == str(pid) and lines[STATUS_LINE].strip() == "ready"


def drop_dead_lock(cluster: Path, last: Charge | None) -> None:
    """Remove the `postmaster.pid` of our last server, which has ended.

    PostgreSQL itself drops the file when nothing has the number, but takes whatever has it for a live server: a dead
    one that nobody has reaped, or, after a restarted container where numbers repeat, any process of its account. What
    is left of the dead server PostgreSQL notices all the same, by its shared memory.

    Args:
        cluster: The data folder.
        last: The server that we ran last, which has ended; the file of any other is left alone.
    """
    lines = _read_lock_file(cluster)
    if last and lines and lines[0] == str(last.pid) and find_start(last.pid) != last.started_at:
        (cluster / "postmaster.pid").unlink()


def _choose_sync(major: int, *, fsync: bool) -> list[str]:
    if not fsync:
        return ["--no-sync"]
    if major < FIRST_MAJOR_WITH_SYNCFS or sys.platform != "linux":
        return []
    # One call for the file system in place of a thousand for its files: 0.4 s in place of 0.8 to 1.2.
    return ["--sync-method=syncfs"]


def _read_lock_file(cluster: Path) -> list[str]:
    try:
        return (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _open_password_pipe(password: str, account: Account | None) -> FileIO:
    reader, writer = os.pipe()
    if account:
        # Opening /dev/fd/N asks for the pipe's own permission: it must belong to who opens it.
        os.fchown(reader, account.uid, account.gid)
    os.write(writer, f"{password}\n".encode())
    os.close(writer)
    return FileIO(reader)
