"""The private servers: with no URLs configured, a real PostgreSQL and a real Valkey from pinned wheels.

    this process ──► ProcessStack ──► postgres, valkey, then what the caller starts on top (workers, Flower ...)
         │                                  ▲
         └── pipe ──► guard ────────────────┘  at end of file: stops what is left, the last started first

Decisions, and what was rejected:
- **Plain subprocesses under a guard.** honcho, circus and supervisor lost the running task or left orphans; PDEATHSIG
  kills every child at once, the broker before the worker that still reports to it.
- **The wheels' programs, not their Python**, which orphans the server when Python is killed.
- **Never trust authentication**: other users of the machine can reach the loopback address too. Passwords are
  generated, kept in 0600 files, and never in an argument.
- **A process is (pid, start time)**: a pid alone may belong to another process by the time that it is signalled.
- **A restarted child keeps its place in the stack and its port**: what depends on it just reconnects.

Weakness: a `kill -9` of the parent and the guard together leaves the servers running until the next start on the same
data folder, which stops them first.
"""

from bitinglip.embedded.child import ChildStartError, Program
from bitinglip.embedded.children import ChildDeath, ProcessStack
from bitinglip.embedded.servers import EmbeddedServers, remove_data
from bitinglip.settings import RUNNING_FILE, ServerUrls, read_running

__all__ = [
    "RUNNING_FILE",
    "ChildDeath",
    "ChildStartError",
    "EmbeddedServers",
    "ProcessStack",
    "Program",
    "ServerUrls",
    "read_running",
    "remove_data",
]
