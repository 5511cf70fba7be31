"""What a dispatcher's round costs with a million tasks waiting, of ten thousand agents.

    python benchmarks/dispatch.py --json

Starts its own PostgreSQL (fsync on) and Valkey, fills the tables, and measures rounds as `Dispatcher` runs them, of a
few workers that are simulated by real claims and finishes between the rounds:

- `round_p50_ms`, `round_p99_ms`: settle, plan and reserve when 1 to 16 tasks have ended since the last round
- `statements_ms`: median of each statement of such a round, its round trip included; what is left is planning
- `dispatches_per_s`: tasks settled, planned, reserved and their doorbells rung, when `--batch` have ended
- `fill_s`: from no lane known to every slot filled, all agents new
"""

import sys

# This folder comes first on the path of a script in it; `queue.py` would hide the standard library's.
sys.path.pop(0)

import argparse
import gc
import json
import os
import platform
import random
import statistics
import tempfile
import time
import uuid
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import event, text

from bitinglip.celery_app import Loader
from bitinglip.dispatcher.doorbells import DoorbellRinger
from bitinglip.dispatcher.round import run_round
from bitinglip.embedded import EmbeddedServers
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.finish import finish_attempts
from bitinglip.lifecycle.lease import register_worker
from bitinglip.store.database import Database
from bitinglip.store.migrate import upgrade
from bitinglip.store.tasks import Doorbell, Ending
from bitinglip.store.workers import WorkerRecord

FILL = (
    "SET session_replication_role = replica",
    """
    INSERT INTO tasks (id, type, priority, agent_id, max_attempts, ttl_seconds, created_at)
    SELECT gen_random_uuid(), 'echo',
           (CASE WHEN n % 10 = 0 THEN 'high' WHEN n % 10 = 1 THEN 'low' ELSE 'medium' END)::task_priority,
           'agent-' || n / 10 % :agents, 4, 300, now()
    FROM generate_series(1, :tasks) AS n
    """,
    "INSERT INTO task_details (task_id, title, payload) SELECT id, 'echo', '{\"text\": \"hello\"}' FROM tasks",
    "INSERT INTO queues (type, model, agent_id, priority) SELECT DISTINCT type, '', agent_id, priority FROM tasks",
    "INSERT INTO agents (id) SELECT DISTINCT agent_id FROM tasks",
    "SET session_replication_role = origin",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="tasks that wait (1,000,000)")
    parser.add_argument("--agents", type=int, default=10_000, help="whose they are (10,000)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--slots", type=int, default=64, help="of each worker (64)")
    parser.add_argument("--rounds", type=int, default=1_000, help="small rounds (1,000)")
    parser.add_argument("--batch", type=int, default=512, help="tasks that end before each large round (512)")
    parser.add_argument("--batches", type=int, default=20, help="large rounds (20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bitinglip-bench-") as folder, ExitStack() as stack:
        servers = stack.enter_context(EmbeddedServers(Path(folder)))
        os.environ["BITINGLIP_DATABASE_URL"], os.environ["BITINGLIP_REDIS_URL"] = servers.urls
        database = Database(servers.urls.database_url)
        stack.callback(database.close)
        upgrade(database)
        fill(database, options)
        report = measure(database, options)
    report |= {name: getattr(options, name) for name in ("tasks", "agents", "workers", "slots", "rounds", "batch")}
    report |= {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f"{name:18} {value}")


def fill(database: Database, options: argparse.Namespace) -> None:
    """Make the tasks that wait; built without indexes, which are then made at once."""
    began = time.perf_counter()
    values = {"tasks": options.tasks, "agents": options.agents}
    with database.statement() as connection:
        indexes = connection.execute(
            text(
                "SELECT i.indexname, i.indexdef FROM pg_indexes AS i WHERE i.tablename = 'tasks'"
                " AND NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conname = i.indexname)"
            )
        ).all()
        for name, _ in indexes:
            connection.execute(text(f"DROP INDEX {name}"))
        for sql in FILL:
            connection.execute(text(sql), {name: value for name, value in values.items() if f":{name}" in sql})
        for _, definition in indexes:
            connection.exec_driver_sql(definition)
        connection.execute(text("VACUUM ANALYZE"))
        # A million new rows are still being written to the disk; that is not what is measured.
        connection.execute(text("CHECKPOINT"))
    talk(f"filled in {time.perf_counter() - began:.1f} s")


class Workers:
    """Stand for worker processes: they claim what is reserved for them, and finish what they run."""

    def __init__(self, database: Database, count: int, slots: int) -> None:
        self.database = database
        self.slots = slots
        self.running: list[tuple[uuid.UUID, Doorbell]] = []
        for number in range(count):
            worker = WorkerRecord(
                id=uuid.uuid4(),
                name=f"bench-{number}",
                node="bench",
                pool="bench",
                kinds=["echo"],
                slots=slots,
                pid=1,
                version="0",
                charge="tasks",
            )
            register_worker(database, worker, lease_seconds=3_600)

    def take(self, reserved: list[Any]) -> None:
        """Claim them all."""
        mine = defaultdict(list)
        for item in reserved:
            mine[item.worker.id].append(Doorbell(item.head.task_id, item.head.attempt))
        for worker, bells in mine.items():
            assert None not in claim_reserved(self.database, bells, worker)
            self.running += [(worker, bell) for bell in bells]

    def finish(self, count: int) -> None:
        """End some, as they come."""
        random.shuffle(self.running)
        ended, self.running = self.running[:count], self.running[count:]
        mine = defaultdict(list)
        for worker, bell in ended:
            usage = {"engine_seconds": random.expovariate(1), "total_tokens": 100}
            mine[worker].append(Ending(bell.task_id, bell.attempt, "completed", result={"text": "hello"}, usage=usage))
        for worker, endings in mine.items():
            assert None not in finish_attempts(self.database, endings, worker)


class Stopwatch:
    """Milliseconds of each statement, by name."""

    def __init__(self, database: Database) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.began = 0.0
        event.listen(database.engine, "before_cursor_execute", self.start)
        event.listen(database.engine, "after_cursor_execute", self.stop)

    def start(self, *_: Any) -> None:
        """A statement is sent."""
        self.began = time.perf_counter()

    def stop(self, _: Any, __: Any, statement: str, *___: Any) -> None:
        """It has been answered."""
        words = (
            statement[statement.rfind("; EXECUTE ") + 2 :].split() if "; EXECUTE " in statement else statement.split()
        )
        name = words[1] if words[0] == "EXECUTE" else " ".join(words[:3])
        self.times[name].append((time.perf_counter() - self.began) * 1000)

    def medians(self) -> dict[str, float]:
        """The most costly first."""
        medians = {name: round(statistics.median(times), 3) for name, times in self.times.items()}
        return dict(sorted(medians.items(), key=lambda item: -item[1]))


def measure(database: Database, options: argparse.Namespace) -> dict[str, Any]:
    """Every figure."""
    random.seed(4)
    workers = Workers(database, options.workers, options.slots)
    ringer = make_ringer()
    began = time.perf_counter()
    while (result := run_round(database)).more or result.reserved:
        workers.take(result.reserved)
    fill_seconds = time.perf_counter() - began
    talk(f"every slot filled in {fill_seconds:.2f} s")
    # As the dispatcher does.
    gc.collect()
    gc.freeze()
    run_small(database, workers, options.rounds // 10)
    times = run_small(database, workers, options.rounds)
    stopwatch = Stopwatch(database)
    run_small(database, workers, options.rounds // 5)
    statements = stopwatch.medians()
    batches = run_batches(database, workers, ringer, options)
    ringer.close()
    return {
        "round_p50_ms": round(statistics.median(times), 2),
        "round_p99_ms": round(statistics.quantiles(times, n=100)[-1], 2),
        "dispatches_per_s": round(statistics.median(batches)),
        "dispatches_per_s_best": round(max(batches)),
        "fill_s": round(fill_seconds, 2),
        "statements_ms": statements,
    }


def run_small(database: Database, workers: Workers, rounds: int) -> list[float]:
    """Milliseconds of rounds with few places each."""
    times = []
    for _ in range(rounds):
        workers.finish(random.randint(1, 16))
        began = time.perf_counter()
        result = run_round(database)
        times.append((time.perf_counter() - began) * 1000)
        assert result.reserved
        workers.take(result.reserved)
    return times


def run_batches(
    database: Database, workers: Workers, ringer: DoorbellRinger, options: argparse.Namespace
) -> list[float]:
    """Dispatches a second in large rounds."""
    with database.transaction() as connection:
        connection.execute(text("UPDATE workers SET slots = :slots"), {"slots": 4 * options.batch // options.workers})
    rates = []
    for _ in range(options.batches):
        while (result := run_round(database)).reserved:
            workers.take(result.reserved)
        workers.finish(options.batch)
        began = time.perf_counter()
        reserved = []
        while (result := run_round(database)).reserved:
            ringer.ring(result.reserved)
            reserved += result.reserved
        rates.append(len(reserved) / (time.perf_counter() - began))
        workers.take(reserved)
    return rates


def make_ringer() -> DoorbellRinger:
    """Over the benchmark's own Valkey."""
    from celery import Celery

    return DoorbellRinger(Celery("bitinglip", loader=Loader, set_as_current=False))


def talk(line: str) -> None:
    """Tell the person who waits."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
