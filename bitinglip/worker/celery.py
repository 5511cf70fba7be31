"""How a worker hangs on Celery: its signals, its configuration, and what `revoke` means here.

`celery -A bitinglip worker` and `bitinglip worker start` both come through here. The pool and, where a pool has several
workers on this machine, the number of the worker are in the environment: BITINGLIP_POOL, BITINGLIP_WORKER_NUMBER.
"""

import gc
import os
import signal
import sys
import threading
import time
import uuid
from typing import Any, NoReturn

from celery import bootsteps, signals
from celery.platforms import EX_OK
from celery.worker import state
from celery.worker.control import control_command
from kombu.entity import Queue
from kombu.exceptions import KombuError

from bitinglip.celery_app import CHORE_QUEUE, app, find_config, queue_name
from bitinglip.domain.task import Status
from bitinglip.errors import BitingLipError, ConfigurationError
from bitinglip.lifecycle.cancel import cancel
from bitinglip.settings import ServerSettings, TaskSettings, WorkerSettings, load_settings
from bitinglip.store.database import Database
from bitinglip.streams.reader import connect
from bitinglip.streams.writer import EventWriter
from bitinglip.telemetry import configure_logging, get_logger
from bitinglip.worker.hardware import find_gpus
from bitinglip.worker.pools import (
    NUMBER_VARIABLE,
    POOL_VARIABLE,
    WorkerSpec,
    find_pools_file,
    plan_workers,
    read_pools,
)
from bitinglip.worker.runtime import WorkerRuntime

REPEAT_SECONDS = 1.0
"""Within it a second signal is the first one again: from a service manager to the group, and from the supervisor."""

_runtime: WorkerRuntime | None = None
_spec: WorkerSpec | None = None
_database: Database | None = None
_consumer: Any = None
_told_at: float | None = None
"""When the first signal to stop came, on the monotonic clock."""

_monitors: Any = None
"""Celery's event dispatcher, once the consumer has one."""


def get_runtime() -> WorkerRuntime:
    """The runtime of this worker process.

    Raises:
        RuntimeError: Outside a worker.
    """
    if _runtime is None:
        message = "no worker runs in this process; doorbells are for workers"
        raise RuntimeError(message)
    return _runtime


def find_spec() -> WorkerSpec:
    """The worker that the environment asks for.

    Raises:
        ConfigurationError: If pools.toml has no such pool, or the pool no such worker here.
    """
    pools = read_pools(find_pools_file())
    pool_name = os.environ.get(POOL_VARIABLE) or next(iter(pools))
    specs = plan_workers(pool_name, pools, find_gpus())
    number = os.environ.get(NUMBER_VARIABLE, "0")
    if number not in map(str, range(len(specs))):
        counted = f"pool {pool_name!r} has {len(specs)} worker{'s' if len(specs) > 1 else ''} here, counted from 0"
        raise ConfigurationError(f"{NUMBER_VARIABLE} is {number!r}; {counted}")
    return specs[int(number)]


@signals.celeryd_init.connect
def _configure(sender: str, conf: Any, **_: object) -> None:
    """Before Celery reads its configuration: this worker's queues and its threads, one of them for chores."""
    global _spec  # noqa: PLW0603 - one worker a process
    try:
        configure_logging()
        _spec = find_spec()
    except BitingLipError as exc:
        _give_up(exc)
    conf.worker_concurrency = _spec.pool.slots + 1
    conf.task_queues = [Queue(name, routing_key=name) for name in (queue_name(sender), CHORE_QUEUE)]
    conf.task_default_queue = queue_name(sender)
    sys.stderr.write(f"bitinglip: configuration {find_config()}, pools {find_pools_file()}\n")


@signals.worker_init.connect
def _start(sender: Any, **_: object) -> None:
    """Before the consumer starts: register, start the engine and the heartbeat."""
    global _runtime, _database  # noqa: PLW0603 - one worker a process
    assert _spec is not None  # noqa: S101 - celeryd_init comes first
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave_early)
    try:
        urls = load_settings(ServerSettings).find_urls()
        settings = load_settings(WorkerSettings)
        _database = Database(urls.database_url, name=f"bitinglip-worker {sender.hostname}")
        _runtime = WorkerRuntime(
            sender.hostname,
            _spec,
            _database,
            EventWriter(
                connect(urls.redis_url),
                keep_seconds=settings.stream_seconds,
                prompt_client=connect(urls.redis_url, timeout_seconds=1),
            ),
            connect(urls.redis_url),
            worker_settings=settings,
            task_settings=load_settings(TaskSettings),
            on_deaf=_restart_consumer,
        )
        _runtime.start()
        _calm_collector()
    except BitingLipError as exc:
        _give_up(exc)


def _leave_early(*_: object) -> None:
    """Between registration and the moment when Celery takes signals: begin nothing, and leave in order."""
    state.should_stop = EX_OK
    _drain()


@signals.worker_ready.connect
def _take_signals(sender: Any, **_: object) -> None:
    """Let a second SIGTERM or SIGINT hand running tasks back: Celery's own handlers would go on waiting for threads."""
    global _consumer  # noqa: PLW0603 - one worker a process
    _consumer = sender
    for number in (signal.SIGTERM, signal.SIGINT):
        _take_signal(number, signal.getsignal(number))


def _take_signal(number: signal.Signals, celerys: Any) -> None:
    def obey(*arguments: Any) -> None:
        global _told_at  # noqa: PLW0603 - one worker a process
        if _told_at is None:
            _told_at = time.monotonic()
            celerys(*arguments)
            # Celery has put another handler of its own in place.
            signal.signal(number, obey)
        elif time.monotonic() - _told_at > REPEAT_SECONDS:
            threading.Thread(target=get_runtime().hand_back, name="hand-back").start()

    signal.signal(number, obey)


def _restart_consumer() -> None:
    """Have Celery connect and consume anew: its queue is there, and nothing comes out of it."""
    consumer = _consumer
    if consumer is None or not _is_broker_there():
        return
    get_logger().warning("consumer_restarted", reason="tasks were reserved and no doorbell rang")
    queue = queue_name(consumer.hostname)

    def fail() -> NoReturn:
        app.amqp.queues.select_add(queue, routing_key=queue)
        raise ConnectionResetError("no doorbell rings")

    # In the consumer's own thread: an error of the connection is what makes it begin again.
    consumer.timer.call_after(0, fail)


def _is_broker_there() -> bool:
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
    except (OSError, KombuError):
        return False
    return True


@signals.worker_shutting_down.connect
def _drain(**_: object) -> None:
    """At SIGTERM: take no more. In a thread, because a signal handler must not wait for PostgreSQL."""
    if _runtime is not None:
        threading.Thread(target=_runtime.drain, name="drain").start()


@signals.worker_shutdown.connect
def _leave(**_: object) -> None:
    """After the last running task: give back what was only reserved."""
    if _runtime is not None:
        _runtime.stop()
    # It is leaving already. Python gives signals their fatal meaning back while it ends, unless they are ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class GatherEvents(bootsteps.StartStopStep):
    """Send task events to Flower ten times a second in place of at each turn of Celery's loop.

    Sending them one by one took a third of a busy worker's time.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Buffer events, and flush them by a timer of the consumer's loop."""
        global _monitors  # noqa: PLW0603 - one worker a process
        dispatcher = _monitors = consumer.event_dispatcher
        dispatcher.buffer_limit = 1_000
        dispatcher.on_send_buffered = None
        self._timer = consumer.timer.call_repeatedly(0.1, dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        """Stop the timer; the dispatcher flushes when it closes."""
        if self._timer is not None:
            self._timer.cancel()


app.steps["consumer"].add(GatherEvents)


@control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke_tasks(state: Any, task_id: Any, **_: object) -> dict[str, str]:
    """Celery's revoke, Flower's button included: cancel the tasks.

    Not Celery's own: its set of revoked ids lives in one process, would refuse a task that is retried later, and cannot
    stop a thread. `terminate` needs no special case: a running task is stopped at its next step either way.
    """
    asked = [task_id] if isinstance(task_id, str) else list(task_id or [])
    if _database is None:
        return {"error": "this worker has not started"}
    try:
        done = cancel(_database, [uuid.UUID(item) for item in asked])
    except (ValueError, BitingLipError) as exc:
        return {"error": str(exc)}
    if _runtime is not None:
        _runtime.beat_soon()
    for change in done:
        if change.status == Status.CANCELLED:
            send_revoked_event(str(change.task_id))
    named = ", ".join(str(change.task_id) for change in done)
    return {"ok": f"tasks {named or 'none'} are cancelled or will be at their next step"}


def send_revoked_event(task_id: str) -> None:
    """Tell Celery's monitors that a task was cancelled."""
    if _monitors is not None:
        _monitors.send("task-revoked", uuid=task_id, terminated=False, signum=None, expired=False)


def _calm_collector() -> None:
    """Let Python's collector skip what is loaded for good and look less often: a tenth more echo tasks a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 50)


def _give_up(exc: BitingLipError) -> NoReturn:
    sys.stderr.write(f"{exc}\n")
    raise SystemExit(exc.exit_code) from exc
