"""Each kind of fault, and how long the system takes to be over it.

A fault at a worker is measured from the kill to the next attempt of the victim, a task that had just begun there. At a
dispatcher: the longest time in which nothing was begun. At a server: from its return to the next task that begins.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from random import Random
from typing import assert_never
from uuid import UUID

import psutil
import redis
from sqlalchemy import Connection

from bitinglip.chaos import processes, watch
from bitinglip.chaos.kinds import Fault
from bitinglip.chaos.load import Submitter
from bitinglip.chaos.observer import LOOK_SECONDS, Observer
from bitinglip.chaos.processes import POSTGRES, REDIS, kill_all, list_node, resume
from bitinglip.chaos.system import System
from bitinglip.chaos.watch import WorkerState
from bitinglip.streams.reader import connect, ping

VICTIMS = 5
"""How many are tried until one begins on a worker of this machine and is hit before it ends."""

START_SECONDS = 20.0
RECOVERY_SECONDS = 60.0
DISPATCH_SECONDS = 3.0
"""How long to watch for gaps after a dispatcher's death."""

PAUSE_LEASES = 1.5


class FaultSkipped(Exception):  # noqa: N818 - it is no error
    """A fault that cannot be done to this system; says why."""


class Injector:
    """Does faults to one system.

    Args:
        system: To which.
        observer: Where recovery is seen.
        submitter: Makes the victims.
        seed: Of what is chosen by chance.
    """

    def __init__(self, system: System, observer: Observer, submitter: Submitter, seed: int) -> None:
        self._system = system
        self._observer = observer
        self._submitter = submitter
        self._random = Random(seed)  # noqa: S311 - a repeatable choice, no secret
        self._redis: redis.Redis = connect(system.urls.redis_url, timeout_seconds=1)

    def inflict(self, fault: Fault) -> float:
        """Do it, and return the seconds until the system was over it; `RECOVERY_SECONDS` if it was not in that time.

        Raises:
            FaultSkipped: If it cannot be done to this system.
        """
        match fault:
            case Fault.NODE if not self._system.is_own:
                raise FaultSkipped("nobody would start the node again")
            case Fault.ENGINE | Fault.WORKER | Fault.NODE | Fault.PAUSE:
                return self._hit_worker(fault)
            case Fault.DISPATCHER:
                return self._kill_dispatcher()
            case Fault.REDIS_KILL:
                self._kill_server(REDIS, "Redis")
                return self._await_start_after(self._is_redis_there)
            case Fault.REDIS_FLUSH:
                # Somebody else's server may hold more than this system's database.
                self._redis.flushall() if self._system.is_own else self._redis.flushdb()
                return self._await_start_after(self._is_redis_there)
            case Fault.POSTGRES_KILL:
                began = self._observer.get_time()
                self._kill_server(POSTGRES, "PostgreSQL")
                return self._await_start_after(lambda: self._observer.read(watch.get_server_start) > began)
            case Fault.POSTGRES_TERMINATE:
                self._observer.read(watch.terminate_backends)
                return self._await_start_after(lambda: self._observer.read(watch.get_time) is not None)
            case _:
                assert_never(fault)

    def _hit_worker(self, fault: Fault) -> float:
        for _ in range(VICTIMS):
            victim, worker, process = self._find_victim()
            with self._harm(fault, worker, process):
                began = self._observer.get_time()
                started = self._await_second_start(victim)
                if started is not None:
                    return (started - began).total_seconds()
        raise FaultSkipped("no task could be hit while it ran")

    def _find_victim(self) -> tuple[UUID, WorkerState, psutil.Process]:
        """A task that has just begun, and the worker of this machine that runs it."""
        for _ in range(VICTIMS):
            victim = self._observer.wait_for(self._submitter.submit_victim, within=START_SECONDS)
            worker_id = victim and self._observer.wait_to_read(
                partial(watch.find_first_worker, task_id=victim), within=START_SECONDS
            )
            for worker in self._observer.read(watch.list_ready_workers):
                process = self._system.processes.find_worker(worker)
                if victim and worker.id == worker_id and process is not None:
                    return victim, worker, process
        raise FaultSkipped("no task began on a worker of this machine that somebody would start again")

    @contextmanager
    def _harm(self, fault: Fault, worker: WorkerState, process: psutil.Process) -> Iterator[None]:
        """Do it; the block waits for the recovery before what was stopped or kept down is let go."""
        match fault:
            case Fault.ENGINE:
                engine = self._system.processes.find_engine(worker)
                if engine is None:
                    raise FaultSkipped(f"worker {worker.name} has no engine")
                kill_all([engine])
                yield
            case Fault.WORKER:
                kill_all([process])
                yield
            case Fault.NODE:
                with self._system.hold_node(worker.name.partition("-")[0]):
                    node = list_node(process)
                    self._system.killed.update(member.pid for member in node)
                    kill_all(node)
                    yield
            case Fault.PAUSE:
                with self._paused(process):
                    yield
            case _:
                raise AssertionError(fault)

    @contextmanager
    def _paused(self, process: psutil.Process) -> Iterator[None]:
        """Stop a process for longer than its lease, not for longer: where it is the only worker, only it can go on."""
        end = threading.Timer(PAUSE_LEASES * self._system.lease_seconds, resume, [process])
        process.send_signal(signal.SIGSTOP)
        try:
            end.start()
            yield
            while end.is_alive():
                self._observer.pause(LOOK_SECONDS)
        finally:
            end.cancel()
            resume(process)

    def _await_second_start(self, victim: UUID) -> datetime | None:
        """When the victim's next attempt began; None if it ended before it was hit."""

        def look(connection: Connection) -> tuple[datetime | None] | None:
            again = watch.find_second_start(connection, victim)
            return (again,) if again is not None or watch.has_ended(connection, victim) else None

        seen = self._observer.wait_to_read(look, within=RECOVERY_SECONDS)
        return self._observer.get_time() if seen is None else seen[0]

    def _kill_dispatcher(self) -> float:
        workers = self._observer.read(watch.list_ready_workers)
        found = self._system.processes.list_dispatchers(workers)
        if not found:
            raise FaultSkipped("no dispatcher of this machine would be started again")
        chosen = self._random.choice(found)
        self._system.killed.add(chosen.pid)
        kill_all([chosen])
        began = self._observer.get_time()
        until = time.monotonic() + DISPATCH_SECONDS
        while time.monotonic() < until:
            self._observer.pause(LOOK_SECONDS)
        started = self._observer.wait_to_read(lambda at: watch.list_starts(at, began), within=RECOVERY_SECONDS)
        if not started:
            return RECOVERY_SECONDS
        return max((later - sooner) / timedelta(seconds=1) for sooner, later in pairwise([began, *started]))

    def _kill_server(self, names: tuple[str, ...], title: str) -> None:
        workers = self._observer.read(watch.list_ready_workers)
        server = self._system.processes.find_server(workers, names)
        if server is None:
            raise FaultSkipped(f"{title} is nobody's child here, so nobody would start it again")
        self._system.killed.add(server.pid)
        kill_all([server])
        self._observer.wait_for(lambda: not processes.is_alive(server), within=RECOVERY_SECONDS)

    def _await_start_after(self, has_returned: Callable[[], bool]) -> float:
        """Seconds from a server's return to the next task that begins."""
        if not self._observer.wait_for(has_returned, within=RECOVERY_SECONDS):
            return RECOVERY_SECONDS
        returned = self._observer.get_time()
        started = self._observer.wait_to_read(lambda at: watch.list_starts(at, returned), within=RECOVERY_SECONDS)
        return (started[0] - returned).total_seconds() if started else RECOVERY_SECONDS

    def _is_redis_there(self) -> bool:
        ping(self._redis)
        return True
