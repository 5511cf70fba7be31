"""A worker's registration and lease, and the deadline that it sets itself.

Invariant: a worker that cannot renew its lease knows by its own monotonic clock, before the lease can have run out.
"""

import math
import os
import time
import uuid
from importlib.metadata import version

from bitinglip.engine import wire
from bitinglip.errors import DatabaseUnreachableError
from bitinglip.lifecycle import lease
from bitinglip.settings import WorkerSettings, find_node_name
from bitinglip.store.database import Database
from bitinglip.store.workers import WorkerRecord
from bitinglip.telemetry import get_logger
from bitinglip.worker.pools import WorkerSpec

log = get_logger()


class WorkerLease:
    """Who a worker process is to PostgreSQL.

    Args:
        name: Stable; names the worker's Celery queue.
        spec: Its pool and GPUs.
        database: Where it registers.
        settings: How long its lease is.

    Attributes:
        id: New at every registration.
        problem: What is wrong with it, for people.
        artifact_store: Id of the store of artifacts that it sees; None: it needs none, or cannot say.
    """

    def __init__(self, name: str, spec: WorkerSpec, database: Database, settings: WorkerSettings) -> None:
        self._name = name
        self._spec = spec
        self._database = database
        self._settings = settings
        self._own_until = math.inf
        self.id = uuid.uuid4()
        self.problem: str | None = None
        self.artifact_store: uuid.UUID | None = None

    def register(self, holding: wire.Holding, *, engine_up: bool, is_draining: bool) -> None:
        """Take the name and be open for tasks, unless it is draining.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        pool = self._spec.pool
        record = WorkerRecord(
            id=self.id,
            name=self._name,
            node=find_node_name(),
            pool=self._spec.pool_name,
            kinds=pool.kinds,
            slots=pool.slots,
            pid=os.getpid(),
            version=version("bitinglip"),
            state="draining" if is_draining else "ready",
            problem=self.problem,
            gpus=[gpu.to_json() for gpu in self._spec.gpus],
            models=holding.models,
            model_bytes=holding.model_bytes,
            engine_up=engine_up,
            memory_limit_bytes=self._spec.memory_limit_bytes,
            speed=pool.speed,
            charge=pool.charge,
            allowed_models=pool.models,
            allowed_agents=pool.agents,
            pulls=pool.pulls,
            artifact_store=self.artifact_store,
        )
        began = time.monotonic()
        lease.register_worker(self._database, record, lease_seconds=self._settings.lease_seconds)
        self._note_renewal(began)
        log.info("worker_registered", worker=self._name, worker_id=str(self.id), pool=self._spec.pool_name)

    def renew(self, holding: wire.Holding, *, engine_up: bool) -> lease.Lease | None:
        """Extend the lease and return what is this worker's; None if the lease was given to others.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away. The lease runs on.
        """
        began = time.monotonic()
        renewed = lease.renew(
            self._database,
            self.id,
            lease_seconds=self._settings.lease_seconds,
            model_bytes=holding.model_bytes,
            memory_bytes=holding.memory_bytes,
            engine_up=engine_up,
        )
        if renewed is not None:
            self._note_renewal(began)
        return renewed

    def begin_anew(self) -> bool:
        """Be somebody else, to register again; False if another worker has the name now.

        Two would take it from each other for ever.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        if lease.is_name_taken(self._database, self._name):
            log.error("name_taken", worker=self._name, remedy="start the other one under a name of its own, with -n")
            return False
        self.id = uuid.uuid4()
        return True

    def has_become_unsure(self) -> bool:
        """Whether the lease may have run out by now; true once, until it is renewed."""
        if time.monotonic() <= self._own_until:
            return False
        self._own_until = math.inf
        return True

    def give_back_reserved(self) -> None:
        """Take no more tasks and give back what has not begun; to be repeated."""
        try:
            lease.drain(self._database, self.id, self.problem)
        except DatabaseUnreachableError as exc:
            log.warning("drain_not_recorded", reason=str(exc))

    def report_engine_loss(self) -> None:
        """Before the tasks that it held are ready again, and would all come back to this worker, the freest of all."""
        try:
            lease.report_engine_loss(self._database, self.id)
        except DatabaseUnreachableError as exc:
            log.warning("engine_loss_not_recorded", reason=str(exc))

    def leave(self) -> None:
        """End the registration; what is still held goes to others."""
        try:
            released = lease.leave(self._database, self.id)
            log.info("worker_left", worker=self._name, released=released)
        except DatabaseUnreachableError as exc:
            log.warning("leave_not_recorded", reason=str(exc))

    def _note_renewal(self, began: float) -> None:
        """The lease runs from PostgreSQL's clock at some moment after `began`; stop a heartbeat before it can end."""
        self._own_until = began + self._settings.lease_seconds - self._settings.heartbeat_seconds
