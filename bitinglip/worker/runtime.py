"""One worker's life: register, run what doorbells and heartbeats bring, leave.

Weakness: a claim or a finish that waits for PostgreSQL holds its slot; nothing else can use it meanwhile.
"""

import os
import signal
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

from bitinglip.engine import wire
from bitinglip.engine.link import EngineLink
from bitinglip.errors import BitingLipError, DatabaseUnreachableError
from bitinglip.lifecycle import lease
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.finish import finish_attempts
from bitinglip.lifecycle.lease import HeldTask
from bitinglip.lifecycle.run import RunReport, TaskRunner
from bitinglip.registry.locate import locate_model
from bitinglip.settings import TaskSettings, WorkerSettings
from bitinglip.store.database import Database
from bitinglip.store.tasks import ClaimedTask, Doorbell, Ending
from bitinglip.store.workers import WorkerRecord
from bitinglip.streams.writer import EventWriter
from bitinglip.telemetry import get_logger
from bitinglip.worker.gather import Gatherer
from bitinglip.worker.pools import WorkerSpec

MISSED_SECONDS = 1.0
"""A reservation this old is run by the heartbeat if a slot is free and no doorbell has rung for as long."""

LOST_SECONDS = 5.0
"""A reservation this old is run by the heartbeat if a slot is free, even while other doorbells ring."""

GATHER_SECONDS = 0.01
"""From one batch of claims, or of endings, to the next: a busy worker's echo tasks cost a fifth less CPU by it."""

log = get_logger()


class WorkerRuntime:
    """What a worker process does besides being a Celery worker.

    Args:
        name: Stable; names the worker's Celery queue.
        spec: Its pool and GPUs.
        database: Two connections are enough.
        writer: Where events go.
    """

    def __init__(
        self,
        name: str,
        spec: WorkerSpec,
        database: Database,
        writer: EventWriter,
        *,
        worker_settings: WorkerSettings,
        task_settings: TaskSettings,
    ) -> None:
        self._name = name
        self._spec = spec
        self._database = database
        self._writer = writer
        self._settings = worker_settings
        self._id = uuid.uuid4()
        self._draining = threading.Event()
        self._stop = threading.Event()
        self._rung_at = time.monotonic()
        self._link = EngineLink(
            devices=_name_devices(spec),
            slots=spec.pool.slots,
            memory_bytes=spec.memory_limit_bytes,
            environment={"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in spec.gpus)},
            preload=_plan_preload(spec),
        )
        claims: Gatherer[Doorbell, ClaimedTask | None] = Gatherer(
            lambda doorbells: claim_reserved(self._database, doorbells, self._id),
            name="claims",
            linger_seconds=GATHER_SECONDS,
        )
        endings: Gatherer[Ending, str | None] = Gatherer(
            lambda batch: finish_attempts(self._database, batch, self._id),
            name="endings",
            linger_seconds=GATHER_SECONDS,
        )
        self._runner = TaskRunner(
            claims.ask,
            endings.ask,
            self._link,
            writer,
            slots=spec.pool.slots,
            base_retry_seconds=task_settings.base_retry_delay,
        )
        self._missed = ThreadPoolExecutor(spec.pool.slots, thread_name_prefix="missed")
        self._heart = threading.Thread(target=self._beat_until_stopped, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Register and start the heartbeat.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
            SchemaVersionError: If it is not the schema of this code.
        """
        self._database.check_schema()
        self._register()
        self._heart.start()

    def run(self, doorbell: Doorbell) -> RunReport:
        """Run what a doorbell stands for; blocks until it has ended."""
        self._rung_at = time.monotonic()
        return self._runner.run(doorbell)

    def drain(self) -> None:
        """Be given no more tasks and give back what has not begun; what runs goes on."""
        self._draining.set()
        try:
            lease.drain(self._database, self._id)
        except DatabaseUnreachableError as exc:
            log.warning("drain_not_recorded", reason=str(exc))

    def stop(self) -> None:
        """Leave: what has not ended goes to other workers."""
        self._stop.set()
        self._heart.join(timeout=5)
        self._missed.shutdown(wait=True, cancel_futures=True)
        self._link.close()
        try:
            released = lease.leave(self._database, self._id)
            log.info("worker_left", worker=self._name, released=released)
        except DatabaseUnreachableError as exc:
            log.warning("leave_not_recorded", reason=str(exc))
        self._writer.close()
        self._database.close()

    def _register(self) -> None:
        record = WorkerRecord(
            id=self._id,
            name=self._name,
            node=socket.gethostname(),
            pool=self._spec.pool_name,
            kinds=self._spec.pool.kinds,
            slots=self._spec.pool.slots,
            pid=os.getpid(),
            version=version("bitinglip"),
            gpus=[gpu.to_json() for gpu in self._spec.gpus],
            models=self._link.holding.models,
            memory_limit_bytes=self._spec.memory_limit_bytes,
        )
        lease.register_worker(self._database, record, lease_seconds=self._settings.lease_seconds)
        log.info("worker_registered", worker=self._name, worker_id=str(self._id), pool=self._spec.pool_name)

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(self._settings.heartbeat_seconds):
            try:
                self._beat()
            except DatabaseUnreachableError as exc:
                log.warning("heartbeat_failed", reason=str(exc))
            except Exception:
                # Whatever it was: a worker without a heartbeat would go on taking doorbells for tasks of others.
                log.exception("heartbeat_failed")

    def _beat(self) -> None:
        began = time.monotonic()
        held = lease.renew(
            self._database,
            self._id,
            lease_seconds=self._settings.lease_seconds,
            models=self._link.holding.models,
            memory_bytes=self._link.holding.memory_bytes,
        )
        running = self._runner.list_running()
        if held is None:
            log.warning("lease_lost", worker=self._name, tasks=len(running))
            for attempt in running.values():
                self._runner.stop_attempt(attempt, abandoned=True)
            self._return_or_leave()
            return
        ours = {task.doorbell for task in held}
        for doorbell, attempt in running.items():
            # Claimed after the heartbeat's snapshot: the next one will name it.
            if attempt.claimed_at is not None and attempt.claimed_at < began and doorbell not in ours:
                self._runner.stop_attempt(attempt, abandoned=True)
        for task in held:
            if task.cancelled and task.doorbell in running:
                self._runner.stop_attempt(running[task.doorbell], abandoned=False)
        if self._draining.is_set():
            self.drain()
            return
        self._run_missed([task for task in held if task.doorbell not in running], len(running))

    def _return_or_leave(self) -> None:
        """Register anew, unless another worker has the name now: two would take it from each other for ever."""
        if lease.is_name_taken(self._database, self._name):
            log.error("name_taken", worker=self._name, remedy="start the other one under a name of its own, with -n")
            self._stop.set()
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._id = uuid.uuid4()
        self._register()

    def _run_missed(self, waiting: list[HeldTask], running: int) -> None:
        """Run what should have come by a doorbell: a slot is free, and still the bell has not rung."""
        quiet = time.monotonic() - self._rung_at > MISSED_SECONDS
        patience = MISSED_SECONDS if quiet else LOST_SECONDS
        missed = [task for task in waiting if task.running or task.reserved_seconds > patience]
        for task in missed[: max(0, self._spec.pool.slots - running)]:
            log.info("doorbell_missed", task_id=str(task.doorbell.task_id))
            self._missed.submit(self._runner.run, task.doorbell)


def _name_devices(spec: WorkerSpec) -> tuple[str, ...]:
    return tuple(f"cuda:{number}" for number in range(len(spec.gpus))) or ("cpu",)


def _plan_preload(spec: WorkerSpec) -> tuple[wire.Preload, ...]:
    commands = []
    for model in spec.pool.preload:
        try:
            commands.append(wire.Preload("text", model, str(locate_model(model).path)))
        except BitingLipError as exc:
            log.warning("preload_failed", model=model, reason=str(exc))
    return tuple(commands)
