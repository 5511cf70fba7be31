"""One worker's life: register, run what doorbells and heartbeats bring, leave.

    start ──► beat, at each heartbeat or when woken ──► drain ──► (hand back) ──► stop
                └ lease lost: stop everything, register anew

Invariant: a worker that cannot renew its lease tells what it runs to stop before the lease can have run out (`lease`),
and hands it back when PostgreSQL answers again. What stops too late is discarded by the fence.

Weakness: a claim or a finish that waits for PostgreSQL holds its slot; nothing else can use it meanwhile.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import redis

from bitinglip.domain.catalogue import DOWNLOAD
from bitinglip.engine import wire
from bitinglip.engine.link import EngineLimits, EngineLink
from bitinglip.errors import BitingLipError, DatabaseUnreachableError
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.finish import finish_attempts
from bitinglip.lifecycle.lease import HeldTask, Lease
from bitinglip.lifecycle.outcome import Outcome, StopReason
from bitinglip.lifecycle.run import NOT_OURS, RunLimits, RunningAttempt, RunReport, TaskRunner
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.locate import is_hub_model
from bitinglip.settings import ModelSettings, TaskSettings, WorkerSettings, find_node_name, load_settings
from bitinglip.store.database import Database
from bitinglip.store.tasks import ClaimedTask, Doorbell, Ending
from bitinglip.streams.wake import WakeListener
from bitinglip.streams.writer import EventWriter
from bitinglip.telemetry import get_logger
from bitinglip.worker.artifacts import WorkerArtifacts
from bitinglip.worker.gather import Gatherer
from bitinglip.worker.hardware import GpuMemoryWatch
from bitinglip.worker.lease import WorkerLease
from bitinglip.worker.missed import MissedDoorbells
from bitinglip.worker.models import ModelNotes
from bitinglip.worker.node import NodeKeeper
from bitinglip.worker.pools import WorkerSpec
from bitinglip.worker.shelf import ModelShelf
from bitinglip.worker.stock import ModelStock, find_kind

if TYPE_CHECKING:
    from bitinglip.registry.downloader import ModelDownloader

GATHER_SECONDS = 0.01
"""From one batch of claims, or of endings, to the next: a busy worker's echo tasks cost a fifth less CPU by it."""

WATCH_SECONDS = 0.1

log = get_logger()


class WorkerRuntime:
    """What a worker process does besides being a Celery worker.

    Args:
        name: Stable; names the worker's Celery queue.
        spec: Its pool and GPUs.
        database: Two connections are enough.
        writer: Where events go.
        wake_client: Where the heartbeat is woken from afar.
        on_deaf: Called when doorbells ought to ring and do not.
    """

    def __init__(
        self,
        name: str,
        spec: WorkerSpec,
        database: Database,
        writer: EventWriter,
        wake_client: "redis.Redis",
        *,
        worker_settings: WorkerSettings,
        task_settings: TaskSettings,
        on_deaf: Callable[[], None],
    ) -> None:
        self._name = name
        self._spec = spec
        self._database = database
        self._writer = writer
        self._settings = worker_settings
        self._woken = threading.Event()
        self._lease = WorkerLease(name, spec, database, worker_settings)
        self._artifacts = WorkerArtifacts(name, spec, database)
        self._wakes = WakeListener(wake_client, self._lease.id, self.beat_soon)
        node, cache = find_node_name(), ModelCache()
        shelf = ModelShelf(database, node=node, cache=cache, make_downloader=partial(_make_downloader, database))
        self._notes = ModelNotes(database, name, shelf, writer.announce_changes)
        self._keeper = (
            NodeKeeper(database, node=node, cache=cache, settings=load_settings(ModelSettings))
            if DOWNLOAD.name in spec.pool.kinds
            else None
        )
        self._draining = threading.Event()
        self._hand_back_at = math.inf
        self._handing_back = threading.Event()
        self._stop = threading.Event()
        self._engine_up = False
        self._mutex = threading.Lock()
        self._abandoned: set[Doorbell] = set()
        self._link = EngineLink(
            devices=_name_devices(spec),
            slots=spec.pool.slots,
            memory_bytes=spec.memory_limit_bytes,
            environment={"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in spec.gpus)},
            preload=_plan_preload(spec, self._notes),
            limits=EngineLimits(
                worker_settings.load_seconds, worker_settings.prefill_seconds, worker_settings.step_seconds
            ),
            check_memory=GpuMemoryWatch(spec.gpus).check if spec.gpus else None,
            on_holding=self._note_holding,
            on_loss=self._report_engine_loss,
            on_out_of_service=self._go_out_of_service,
        )
        self._stock = ModelStock(
            database,
            spec.pool,
            node=node,
            shelf=shelf,
            load=lambda kind, model, folder: self._link.preload(wire.Preload(kind, model, folder)),
        )
        self._claims: Gatherer[Doorbell, ClaimedTask | None] = Gatherer(
            lambda doorbells: claim_reserved(self._database, doorbells, self._lease.id),
            name="claims",
            linger_seconds=GATHER_SECONDS,
        )
        self._endings: Gatherer[Ending, str | None] = Gatherer(
            lambda batch: finish_attempts(self._database, batch, self._lease.id),
            name="endings",
            linger_seconds=GATHER_SECONDS,
        )
        self._runner = TaskRunner(
            self._claims.ask,
            self._endings.ask,
            self._link,
            writer,
            spool=self._artifacts.spool,
            use_model=self._notes.use,
            doubt_model=self._notes.doubt,
            report_load_failure=self._notes.report_load_failure,
            slots=spec.pool.slots,
            limits=RunLimits(
                attempt_seconds=task_settings.timeout,
                stop_seconds=worker_settings.cancel_seconds,
                base_retry_seconds=task_settings.base_retry_delay,
            ),
        )
        self._missed = MissedDoorbells(self._runner.run, slots=spec.pool.slots, on_deaf=on_deaf)
        self._heart = threading.Thread(target=self._beat_until_stopped, name="heartbeat", daemon=True)
        self._watch = threading.Thread(target=self._watch_until_stopped, name="watch", daemon=True)

    @property
    def is_draining(self) -> bool:
        """Whether it takes no more tasks."""
        return self._draining.is_set()

    def start(self) -> None:
        """Register and start the heartbeat.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
            SchemaVersionError: If it is not the schema of this code.
        """
        self._database.check_schema()
        self._lease.artifact_store = self._artifacts.prepare()
        self._register()
        # By now a worker that had the name has lost what it ran.
        self._artifacts.spool.clear()
        self._heart.start()
        self._watch.start()
        self._stock.start()
        if self._keeper is not None:
            self._keeper.start()

    def run(self, doorbell: Doorbell) -> RunReport:
        """Run what a doorbell stands for; blocks until it has ended."""
        self._missed.note_ring()
        return NOT_OURS if self._handing_back.is_set() else self._runner.run(doorbell)

    def beat_soon(self) -> None:
        """Beat now rather than at the next heartbeat: something was cancelled, or the worker is to drain."""
        self._woken.set()

    def drain(self) -> None:
        """Be given no more tasks and give back what has not begun; what runs goes on, for a bounded time."""
        if not self._draining.is_set():
            self._hand_back_at = time.monotonic() + self._settings.drain_seconds
            self._draining.set()
        self._lease.give_back_reserved()

    def hand_back(self) -> None:
        """Stop what runs and make it ready for other workers, at no cost to it."""
        if self._handing_back.is_set():
            return
        self._handing_back.set()
        running = self._runner.list_running()
        log.warning("tasks_handed_back", worker=self._name, tasks=len(running))
        for attempt in running.values():
            self._runner.stop_attempt(attempt, StopReason.HANDED_BACK)
        self._link.kill("its worker was stopped")

    def stop(self) -> None:
        """Leave: what has not ended goes to other workers."""
        # What the heartbeat delivered runs where Celery does not see it: the lease is kept, and the drain bounded.
        self.drain()
        self._stock.stop()
        self._missed.close()
        self._stop.set()
        self._woken.set()
        self._heart.join(timeout=5)
        self._link.close()
        if self._keeper is not None:
            self._keeper.stop()
        self._lease.leave()
        self._wakes.close()
        self._writer.close()
        self._database.close()

    def _register(self) -> None:
        self._wakes.watch(self._lease.id)
        self._lease.register(self._link.holding, engine_up=self._engine_up, is_draining=self._draining.is_set())

    def _beat_until_stopped(self) -> None:
        while not self._stop.is_set():
            self._woken.wait(self._settings.heartbeat_seconds)
            self._woken.clear()
            if self._stop.is_set():
                return
            try:
                self._beat()
            except DatabaseUnreachableError as exc:
                log.warning("heartbeat_failed", reason=str(exc))
            except Exception:
                # Whatever it was: a worker without a heartbeat would go on taking doorbells for tasks of others.
                log.exception("heartbeat_failed")

    def _beat(self) -> None:
        began = time.monotonic()
        renewed = self._lease.renew(self._link.holding, engine_up=self._engine_up)
        running = self._runner.list_running()
        if renewed is None:
            log.warning("lease_lost", worker=self._name, tasks=len(running))
            self._abandon_all()
            with self._mutex:
                self._abandoned.clear()
            self._return_or_leave()
            return
        self._obey(renewed, running, began)
        self._notes.write()

    def _obey(self, renewed: Lease, running: dict[Doorbell, RunningAttempt], began: float) -> None:
        """Stop what is no longer ours, run what we missed, leave if told to.

        Args:
            renewed: What PostgreSQL says.
            running: What ran when it said so.
            began: When it was asked, on the monotonic clock.
        """
        ours = {task.doorbell for task in renewed.held}
        for doorbell, attempt in running.items():
            # Claimed after the heartbeat's snapshot: the next one will name it.
            if attempt.claimed_at is not None and attempt.claimed_at < began and doorbell not in ours:
                self._runner.stop_attempt(attempt, StopReason.ABANDONED)
        for task in renewed.held:
            if task.cancelled and task.doorbell in running:
                self._runner.stop_attempt(running[task.doorbell], StopReason.CANCELLED)
        idle = [task for task in renewed.held if task.doorbell not in running]
        given_back = self._release_abandoned(idle, set(running))
        if self._draining.is_set():
            self._lease.give_back_reserved()
        elif renewed.draining:
            log.info("drained_from_afar", worker=self._name)
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._missed.run([task for task in idle if task.doorbell not in given_back], len(running))

    def _return_or_leave(self) -> None:
        if self._lease.begin_anew():
            self._register()
            return
        self._stop.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def _abandon_all(self) -> None:
        for doorbell, attempt in self._runner.list_running().items():
            if attempt.claimed_at is not None:
                with self._mutex:
                    self._abandoned.add(doorbell)
                self._runner.stop_attempt(attempt, StopReason.ABANDONED)

    def _release_abandoned(self, idle: list[HeldTask], running: set[Doorbell]) -> set[Doorbell]:
        """Hand back what was stopped while PostgreSQL was away and is still ours: a new attempt begins elsewhere."""
        held = {task.doorbell for task in idle if task.running}
        with self._mutex:
            ours = self._abandoned & held
            # What has not stopped yet is handed back by a later heartbeat.
            self._abandoned &= running
        for doorbell in ours:
            error = {"code": "lease_unsure", "message": "its worker could not reach PostgreSQL", "retryable": True}
            self._endings.ask(Ending(doorbell.task_id, doorbell.attempt, Outcome.RELEASED, error=error))
        return ours

    def _note_holding(self, holding: wire.Holding) -> None:
        """The dispatcher places tasks by what is held: it is told at once."""
        self._notes.note_holding(holding)
        self.beat_soon()

    def _report_engine_loss(self) -> None:
        self._engine_up = False
        self._notes.note_engine_loss()
        self._lease.report_engine_loss()

    def _go_out_of_service(self, problem: str) -> None:
        """Its GPU cannot be used: take nothing more, and stay registered so that people see why."""
        log.error("worker_out_of_service", worker=self._name, problem=problem)
        self._lease.problem = problem
        self._draining.set()
        self._lease.give_back_reserved()

    def _watch_until_stopped(self) -> None:
        """Keep the two deadlines that must hold even while PostgreSQL hangs, and see when the engine is up."""
        while not self._stop.wait(WATCH_SECONDS):
            now = time.monotonic()
            if self._engine_up != self._link.is_up:
                self._engine_up = self._link.is_up
                self.beat_soon()
            if self._lease.has_become_unsure():
                log.warning("lease_unsure", worker=self._name, tasks=len(self._runner.list_running()))
                self._abandon_all()
            if now > self._hand_back_at:
                self._hand_back_at = math.inf
                self.hand_back()


def _make_downloader(database: Database) -> "ModelDownloader":
    # The hub's library is for workers that need it.
    from bitinglip.registry.downloader import make_downloader

    return make_downloader(database)


def _name_devices(spec: WorkerSpec) -> tuple[str, ...]:
    return tuple(f"cuda:{number}" for number in range(len(spec.gpus))) or ("cpu",)


def _plan_preload(spec: WorkerSpec, notes: ModelNotes) -> tuple[wire.Preload, ...]:
    """What the engine loads at each start; models of the hub are brought first, and added then."""
    commands = []
    for model in spec.pool.preload:
        if is_hub_model(model):
            continue
        try:
            folder = notes.find_folder(model)
            commands.append(wire.Preload(find_kind(spec.pool, folder), model, folder))
        except BitingLipError as exc:
            log.warning("preload_failed", model=model, reason=str(exc))
    return tuple(commands)
