"""How long a running text takes to be cancelled: from the call to the recorded end, its slot free.

    python benchmarks/cancel.py --json

Starts its own PostgreSQL, Valkey, dispatcher and worker, with the demo model and the default heartbeat. Each text is
made to go on for long by a JSON schema, and is cancelled when its first tokens have come.
"""

import sys

# This folder comes first on the path of a script in it, and its queue.py would hide the standard library's.
sys.path.pop(0)

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.embedded import EmbeddedServers, ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.migrate import upgrade
from bitinglip.streams.events import EventName

POOLS = '[pools.bench]\nkinds = ["text"]\ngpus = []\nslots = 4\npreload = ["demo"]\n'

LONG = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 200}},
    "required": ["words"],
    "additionalProperties": False,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--texts", type=int, default=200, help="to cancel, one after the other (200)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bitinglip-bench-") as folder, EmbeddedServers(Path(folder)) as servers:
        upgrade(Database(servers.urls.database_url))
        with running_system(servers.urls, Path(folder)), Client(*servers.urls) as client:
            waits = sorted(cancel_one(client) for _ in range(options.texts))
    report = {
        "cancel_p50_s": round(statistics.median(waits), 4),
        "cancel_p99_s": round(waits[int(len(waits) * 0.99) - 1], 4),
        "cancel_max_s": round(waits[-1], 4),
        "texts": len(waits),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(report, indent=2) if options.json else report)


def cancel_one(client: Client) -> float:
    """Seconds from the call to the recorded end of a text that runs."""
    handle = client.submit("text", model="demo", prompt="Words, please.", max_tokens=900, json_schema=LONG)
    next(event for event in handle.stream() if event.name is EventName.TEXT)
    began = time.perf_counter()
    assert handle.cancel()
    while (status := handle.status) is Status.IN_PROGRESS:
        time.sleep(0.002)
    assert status is Status.CANCELLED, status
    return time.perf_counter() - began


@contextmanager
def running_system(urls: ServerUrls, folder: Path) -> Iterator[None]:
    """A dispatcher and a worker, as processes."""
    pools = folder / "pools.toml"
    pools.write_text(POOLS)
    environment = {
        **os.environ,
        "BITINGLIP_DATABASE_URL": urls.database_url,
        "BITINGLIP_REDIS_URL": urls.redis_url,
        "BITINGLIP_POOLS_FILE": str(pools),
    }
    commands = [
        [sys.executable, "-m", "bitinglip.dispatcher"],
        [sys.executable, "-m", "celery", "-A", "bitinglip", "worker", "-n", "bench@%h", "--without-gossip"],
    ]
    with (folder / "bench.log").open("wb") as log:
        processes = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for command in commands]
        try:
            yield
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
