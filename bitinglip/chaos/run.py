"""The whole story: learn, measure, break in rounds, wait, measure, check."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from random import Random

from sqlalchemy import Connection

from bitinglip.chaos.checks import check_invariants
from bitinglip.chaos.faults import FaultSkipped, Injector
from bitinglip.chaos.files import add_files
from bitinglip.chaos.kinds import Fault
from bitinglip.chaos.load import IMAGE_MODEL, MODEL, Ledger, SteadyLoad, Submitter
from bitinglip.chaos.observer import Observer
from bitinglip.chaos.report import FaultReport, Report
from bitinglip.chaos.system import System
from bitinglip.chaos.watch import WorkerState, count_open, get_span_seconds, list_ready_workers
from bitinglip.client import Client
from bitinglip.errors import ConfigurationError, ServerUnreachableError
from bitinglip.store.database import Database
from bitinglip.store.server import count_dispatcher_connections

READY_SECONDS = 90.0
STEADY_SECONDS = 60.0
END_SECONDS = 90.0
DISPATCHER_SECONDS = 2.0
BURSTS = 5
BURST_TASKS = 400

Tell = Callable[[str], None]


def break_system(
    system: System, faults: Sequence[Fault], *, rounds: int, seed: int, tell: Tell, pause: Callable[[float], None]
) -> Report:
    """Run every fault `rounds` times, each round in another order, and say what came of it.

    Args:
        system: That runs.
        faults: Which kinds.
        rounds: How often each.
        seed: Of the load, the order and the victims.
        tell: Told what happens, line by line.
        pause: Waits so many seconds; raises if the person asked for the end.

    Raises:
        ConfigurationError: If no worker does echoes.
        ServerUnreachableError: If the system is not well to begin with.
    """
    database = Database(system.urls.database_url, connections=2, name="bitinglip-chaos")
    try:
        with Client(system.urls.database_url, system.urls.redis_url) as client:
            run = _Run(system, client, Observer(database, pause), seed, tell)
            return run.go(faults, rounds)
    finally:
        database.close()


class _Run:
    def __init__(self, system: System, client: Client, observer: Observer, seed: int, tell: Tell) -> None:
        self._system = system
        self._client = client
        self._observer = observer
        self._seed = seed
        self._tell = tell
        self._ledger = Ledger()
        self._submitter = Submitter(client, self._ledger, seed)
        self._injector = Injector(system, observer, self._submitter, seed)
        self._workers: dict[str, WorkerState] = {}
        self._recoveries: dict[Fault, list[float]] = defaultdict(list)

    def go(self, faults: Sequence[Fault], rounds: int) -> Report:
        self._observer.set_clock()
        self._workers = self._wait_ready()
        self._tell(f"{len(self._workers)} workers are ready; learning what is right, measuring the throughput")
        if self._all_hold(MODEL):
            self._submitter.learn_answers()
        if self._all_hold(IMAGE_MODEL):
            self._submitter.learn_to_draw()
        before = self._measure_throughput()
        self._load = SteadyLoad(self._submitter, sum(worker.slots for worker in self._workers.values()))
        with self._load:
            self._break_in_rounds(faults, rounds)
        self._wait_for_end()
        after = self._measure_throughput()
        verdict = self._observer.read(lambda at: check_invariants(at, self._ledger))
        verdict = add_files(verdict, self._system.artifacts, self._client.database, self._ledger.expected)
        recoveries = [FaultReport(fault, seconds) for fault, seconds in self._recoveries.items()]
        return Report(verdict, before, after, rounds, self._seed, recoveries)

    def _all_hold(self, model: str) -> bool:
        return all(model in worker.models for worker in self._workers.values())

    def _wait_ready(self) -> dict[str, WorkerState]:
        def look() -> list[WorkerState]:
            workers = [worker for worker in self._observer.read(list_ready_workers) if "echo" in worker.kinds]
            if self._system.workers is None:
                return workers
            models = {MODEL, IMAGE_MODEL}
            enough = len(workers) == self._system.workers and all(models <= {*worker.models} for worker in workers)
            return workers if enough else []

        ready = self._observer.wait_for(look, within=READY_SECONDS if self._system.is_own else 5)
        if ready:
            return {worker.name: worker for worker in ready}
        if self._system.is_own:
            raise ServerUnreachableError(f"the workers were not ready within {READY_SECONDS:g} s; see their logs")
        raise ConfigurationError("no worker does tasks of kind 'echo'; add it to the kinds of a pool in pools.toml")

    def _break_in_rounds(self, faults: Sequence[Fault], rounds: int) -> None:
        order = list(faults)
        random = Random(self._seed)  # noqa: S311 - a repeatable order, no secret
        for number in range(1, rounds + 1):
            random.shuffle(order)
            for fault in list(order):
                try:
                    self._break(fault, f"round {number} of {rounds}: {fault}")
                except FaultSkipped as exc:
                    self._tell(f"{fault} is skipped: {exc}")
                    order.remove(fault)

    def _break(self, fault: Fault, title: str) -> None:
        seconds = self._injector.inflict(fault)
        self._recoveries[fault].append(seconds)
        began = time.monotonic()
        is_steady = self._wait_steady()
        rest = f"steady {time.monotonic() - began:.1f} s later" if is_steady else "not steady again"
        self._tell(f"{title:<34} recovered after {seconds:5.2f} s, {rest}")

    def _wait_steady(self) -> bool:
        """Whether everything is as it was: no fault may hit what is not over the last one."""
        since = self._observer.get_time()

        def look(connection: Connection) -> bool:
            now = {worker.name: worker for worker in list_ready_workers(connection)}
            _, suspects = count_open(connection)
            dispatchers = count_dispatcher_connections(connection, active_within_seconds=DISPATCHER_SECONDS)
            are_back = all(self._is_back(now.get(name), known, since) for name, known in self._workers.items())
            return are_back and not suspects and dispatchers >= self._system.dispatchers

        return bool(self._observer.wait_to_read(look, within=STEADY_SECONDS))

    def _is_back(self, now: WorkerState | None, known: WorkerState, since: datetime) -> bool:
        """Whether a worker has its models, has beaten and, where it must have been given some, has completed a task."""
        if now is None or now.last_seen_at < since or not set(known.models) <= set(now.models):
            return False
        return not self._load.fills_every_slot or (now.worked_at is not None and now.worked_at > since)

    def _wait_for_end(self) -> None:
        self._tell("no more faults; waiting until every task has ended")
        self._observer.wait_to_read(lambda at: count_open(at)[0] == 0, within=END_SECONDS)

    def _measure_throughput(self) -> float:
        """Echo tasks a second, from the first claim of a burst to its last end: the median of several bursts."""
        rates = []
        for _ in range(BURSTS + 1):
            ids = self._submitter.submit_burst(BURST_TASKS)
            if self._observer.wait_to_read(lambda at: count_open(at)[0] == 0, within=END_SECONDS) is None:
                return 0.0
            rates.append(len(ids) / self._observer.read(partial(get_span_seconds, task_ids=ids)))
        # The first one finds connections closed and statements unplanned.
        return statistics.median(rates[1:])
