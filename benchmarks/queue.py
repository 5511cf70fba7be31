"""How fast the queue is: echo tasks through the whole path, durable, with one worker.

    python benchmarks/queue.py --json

Starts its own PostgreSQL (fsync on), Valkey, dispatcher and worker, and measures

- `submit_per_s`: 16 client processes that submit one task at a time, each waiting for its commit; queue not draining
- `submit_bulk_per_s`: one client, `submit_many` of 1,000 tasks a call; queue not draining
- `drain_per_s`: from the first of `--tasks` waiting tasks claimed to the last one recorded, four agents
- `start_p50_ms`, `start_p95_ms`: from submission to the claim, both by PostgreSQL's clock, on an idle system

Each figure but the last two is the median of `--rounds` rounds.
"""

import sys

# This folder comes first on the path of a script in it, and would hide the standard library's queue.
sys.path.pop(0)

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bitinglip.client import Client
from bitinglip.domain.task import make_request
from bitinglip.embedded import EmbeddedServers, ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.migrate import upgrade

AGENTS = 4
POOLS = '[pools.bench]\nkinds = ["echo"]\ngpus = []\nslots = {slots}\n'


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks to drain (10,000)")
    parser.add_argument("--slots", type=int, default=64, help="the worker's slots (64)")
    parser.add_argument("--clients", type=int, default=16, help="processes that submit singly (16)")
    parser.add_argument("--singles", type=int, default=6_000, help="tasks that they submit together (6,000)")
    parser.add_argument("--probes", type=int, default=200, help="tasks on an idle system (200)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # Thousands of tasks of one agent wait at once here.
    os.environ["BITINGLIP_TASK_MAX_QUEUE_SIZE"] = "10000"
    with tempfile.TemporaryDirectory(prefix="bitinglip-bench-") as folder, ExitStack() as stack:
        servers = stack.enter_context(EmbeddedServers(Path(folder)))
        urls = servers.urls
        upgrade(Database(urls.database_url))
        client = stack.enter_context(Client(*urls))
        figures = measure(urls, client, options, Path(folder))
    report = {
        **figures,
        "tasks": options.tasks,
        "slots": options.slots,
        "clients": options.clients,
        "rounds": options.rounds,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f"{name:18} {value}")


def measure(urls: ServerUrls, client: Client, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Every figure, in events per second or milliseconds."""
    singles, bulks, drains = [], [], []
    for number in range(options.rounds):
        singles.append(measure_singles(urls, options.clients, options.singles))
        clear(client)
        bulks.append(measure_bulk(client, options.tasks))
        with running_system(urls, folder, options.slots):
            drains.append(measure_drain(client, options.tasks))
        figures = f"{singles[-1]:,.0f} single/s, {bulks[-1]:,.0f} bulk/s, {drains[-1]:,.0f} drained/s"
        talk(f"round {number + 1}: {figures}")
        clear(client)
    with running_system(urls, folder, options.slots):
        waits = measure_starts(client, options.probes)
    return {
        "drain_per_s": round(statistics.median(drains), 1),
        "submit_per_s": round(statistics.median(singles), 1),
        "submit_bulk_per_s": round(statistics.median(bulks), 1),
        "start_p50_ms": round(statistics.median(waits), 2),
        "start_p95_ms": round(statistics.quantiles(waits, n=20)[-1], 2),
    }


def measure_singles(urls: ServerUrls, clients: int, tasks: int) -> float:
    """Submissions a second by `clients` processes together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(clients + 1)
    share = tasks // clients
    arguments = [(urls, barrier, number, share) for number in range(clients)]
    processes = [context.Process(target=submit_singly, args=each) for each in arguments]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    return share * clients / seconds


def submit_singly(urls: ServerUrls, barrier: Any, number: int, tasks: int) -> None:
    """One client process: meet the others, submit, meet them again."""
    with Client(*urls, connections=1) as client:
        client.submit("echo", text="warm", agent=f"agent-{number % AGENTS}")
        barrier.wait()
        for count in range(tasks):
            client.submit("echo", text=f"{count}", agent=f"agent-{number % AGENTS}")
        barrier.wait()


def measure_bulk(client: Client, tasks: int) -> float:
    """Submissions a second by one client in calls of 1,000, requests made within the time."""
    began = time.perf_counter()
    for start in range(0, tasks, 1_000):
        numbers = range(start, min(start + 1_000, tasks))
        client.submit_many([make_request("echo", {"text": f"{n}"}, agent_id=f"agent-{n % AGENTS}") for n in numbers])
    return tasks / (time.perf_counter() - began)


def measure_drain(client: Client, tasks: int) -> float:
    """Tasks a second, from the first claim to the last recorded end, by PostgreSQL's clock."""
    while count_open(client):
        time.sleep(0.2)
    span = "extract(epoch FROM max(finished_at) - min(started_at))"
    sql = f"SELECT {span}, count(*) FROM tasks WHERE status = 'completed'"
    with client.database.transaction() as connection:
        seconds, completed = connection.execute(text(sql)).one()
    assert completed == tasks, f"{completed} of {tasks} tasks completed"
    return tasks / float(seconds)


def measure_starts(client: Client, probes: int) -> list[float]:
    """Milliseconds from each submission to its claim, one task at a time."""
    client.submit("echo", text="warm").result(timeout=30)
    handles = []
    for count in range(probes):
        handles.append(client.submit("echo", text=f"{count}"))
        handles[-1].result(timeout=30)
    tasks = [handle.task() for handle in handles]
    return [(task.started_at - task.created_at).total_seconds() * 1000 for task in tasks if task.started_at]


def count_open(client: Client) -> int:
    """Tasks that have not ended."""
    with client.database.transaction() as connection:
        sql = "SELECT count(*) FROM (SELECT FROM tasks WHERE status IN ('pending', 'in_progress') LIMIT 1) AS open"
        return int(connection.scalar(text(sql)) or 0)


def clear(client: Client) -> None:
    """Remove every task, so that each round starts alike."""
    with client.database.transaction() as connection:
        names = "tasks, task_details, attempts, dependencies, quotes, queues, lanes, settlements"
        connection.execute(text(f"TRUNCATE {names}"))


@contextmanager
def running_system(urls: ServerUrls, folder: Path, slots: int) -> Iterator[None]:
    """One dispatcher and one worker as processes of their own."""
    pools = folder / "pools.toml"
    pools.write_text(POOLS.format(slots=slots))
    environment = {
        **os.environ,
        "BITINGLIP_DATABASE_URL": urls.database_url,
        "BITINGLIP_REDIS_URL": urls.redis_url,
        "BITINGLIP_POOLS_FILE": str(pools),
        "BITINGLIP_POOL": "bench",
    }
    commands = [
        [sys.executable, "-m", "celery", "-A", "bitinglip", "worker", "-n", "bench@%h", "--without-gossip"],
        [sys.executable, "-m", "bitinglip.dispatcher"],
    ]
    with (folder / "system.log").open("ab") as log:
        processes = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=30)


def talk(line: str) -> None:
    """Tell the person who waits."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
