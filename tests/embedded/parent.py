"""Run the servers and two children on top, until a signal.

python parent.py DATA_DIR [deaf]: print one JSON line when all are ready. A deaf child ignores SIGTERM.
"""

import json
import sys
from pathlib import Path

from bitinglip.embedded import EmbeddedServers, Program
from bitinglip.embedded.signals import StopSignals

POLITE = "trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 1000; done"


def make_child(servers: EmbeddedServers, name: str, script: str) -> Program:
    return Program(
        name=name,
        argv=("/bin/sh", "-c", script),
        log_file=servers.log_folder / f"{name}.log",
        wait_ready=lambda child: child.wait_until(lambda: "ready" in child.read_log(), within_seconds=10),
    )


def main() -> None:
    servers = EmbeddedServers(Path(sys.argv[1]), fsync=False)
    script = DEAF if "deaf" in sys.argv else POLITE
    with StopSignals() as signals:
        urls = servers.start()
        for name in ("first", "second"):
            servers.stack.start(make_child(servers, name, script))
        pids = servers.stack.find_pids() | {"guard": servers.guard.pid}
        sys.stdout.write(json.dumps({**urls._asdict(), "pids": pids}) + "\n")
        sys.stdout.flush()
        signals.wait()
        survivors = " ".join(servers.stack.find_pids())
        sys.stderr.write(f"{signals.first!r}: stopping {survivors}\n")
        sys.stderr.flush()
        servers.stop(signals.is_hurried)


if __name__ == "__main__":
    main()
