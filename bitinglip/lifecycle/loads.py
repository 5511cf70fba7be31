"""A model could not be loaded: where it is not to be tried for a while, and when nobody is to wait for it any more.

That is no failure of the task that asked for it. A model is given up when two workers could not load it, or the only
one that could take it has failed three times; never while another worker holds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from bitinglip.store.database import Database
from bitinglip.store.jsonb import make_storable
from bitinglip.store.loads import (
    BATCH,
    fail_waiting,
    forget_load_failures,
    list_load_failures,
    list_other_workers,
    record_load_failure,
)
from bitinglip.store.models import ModelSize, note_sizes
from bitinglip.store.queues import notify_dispatchers
from bitinglip.store.tasks import Change
from bitinglip.telemetry import get_logger

MOST_WORKERS = 2
MOST_FAILURES = 3
MESSAGE_CHARACTERS = 500

log = get_logger()


@dataclass(frozen=True, slots=True)
class LoadVerdict:
    """What a failed load means for whoever waits for the model.

    Attributes:
        given_up: Why nobody is to wait for it any more; None: others may load it, or this worker, later.
        failed: The tasks that waited for it and have been failed.
    """

    given_up: str | None = None
    failed: list[Change] = field(default_factory=list)


def note_models(database: Database, sizes: Sequence[ModelSize], *, worker_name: str, loaded: Sequence[str]) -> None:
    """Record what models take, and that a worker has loaded some: its earlier failures with these are forgotten.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction(durable=False) as connection:
        note_sizes(connection, sizes)
        if loaded:
            forget_load_failures(connection, worker_name=worker_name, models=loaded)


def report_load_failure(database: Database, *, type_: str, model: str, worker_name: str, message: str) -> LoadVerdict:
    """Record that a worker could not load a model; if that was one time too many, fail what waits for it.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. It may have been recorded.
    """
    reason = make_storable(message)[:MESSAGE_CHARACTERS]
    with database.transaction() as connection:
        record_load_failure(connection, model=model, worker_name=worker_name, message=reason)
        failures = list_load_failures(connection, model)
        others = list_other_workers(
            connection, type_=type_, model=model, failed=[failure.worker_name for failure in failures]
        )
    if not _is_hopeless(failures, others):
        return LoadVerdict()
    given_up = _describe(model, failures)
    failed = _fail_all(database, type_, model, given_up)
    log.error("model_given_up", model=model, workers=[failure.worker_name for failure in failures], tasks=len(failed))
    return LoadVerdict(given_up, failed)


def _is_hopeless(failures: Sequence[Row[Any]], others: Sequence[bool]) -> bool:
    if any(others):
        return False
    if len(failures) >= MOST_WORKERS:
        return True
    return not others and any(failure.failures >= MOST_FAILURES for failure in failures)


def _describe(model: str, failures: Sequence[Row[Any]]) -> str:
    reasons = "; ".join(f"on worker {failure.worker_name}: {failure.message}" for failure in failures)
    return f"model {model!r} could not be loaded {reasons}; see the logs of these workers, then retry the task"


def _fail_all(database: Database, type_: str, model: str, message: str) -> list[Change]:
    failed: list[Change] = []
    while True:
        with database.transaction() as connection:
            batch = fail_waiting(connection, type_=type_, model=model, message=message)
            if batch:
                # Their children are to be told.
                notify_dispatchers(connection)
        failed += batch
        if len(batch) < BATCH:
            return failed
