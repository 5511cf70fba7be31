"""Step 1 of 4: a request becomes a record, durable before the caller hears of it."""

import uuid
from collections.abc import Sequence
from typing import NoReturn

from sqlalchemy import Connection

from bitinglip.domain.catalogue import DOWNLOAD, get_kind
from bitinglip.domain.task import TaskRequest, find_made
from bitinglip.errors import InvalidRequestError, LimitExceededError, TaskNotFoundError
from bitinglip.lifecycle.bring import Arrangement, arrange_downloads, list_models_to_bring, note_downloads
from bitinglip.lifecycle.feasible import check_feasible
from bitinglip.lifecycle.fleet import SYSTEM_AGENT, FleetPicture, read_fleet
from bitinglip.settings import TaskSettings
from bitinglip.store.artifacts import list_named
from bitinglip.store.database import Database, retry_once
from bitinglip.store.submissions import (
    Limits,
    Parent,
    Refusal,
    find_keyed,
    insert_tasks,
    lock_submitters,
    mark_parents,
)

BATCH = 1_000


def submit_tasks(database: Database, requests: Sequence[TaskRequest], settings: TaskSettings) -> list[uuid.UUID]:
    """Record tasks in the order given, in transactions of up to `BATCH`; returns the id of each.

    An id is that of an earlier task where the idempotency key was used before, and of a download that waits or runs
    already where one of the same model is asked for.

    Raises:
        InfeasibleError: If no registered worker could ever do one of them. Nothing is recorded.
        InvalidRequestError: If a task depends on another agent's, or on one after it, takes a file that none has made,
            or its idempotency key was used for something else. Nothing of the current batch is recorded.
        TaskNotFoundError: If a parent is not known. Nothing of the current batch is recorded.
        LimitExceededError: If too many would wait. Nothing of the current batch is recorded.
        DatabaseUnreachableError: If PostgreSQL is away. Nothing of the current batch is recorded.
    """
    picture = check_feasible(database, requests)
    ids: list[uuid.UUID] = []
    for start in range(0, len(requests), BATCH):
        ids += _submit_batch(database, requests[start : start + BATCH], settings, picture)
    return ids


def submit_within(connection: Connection, request: TaskRequest, settings: TaskSettings) -> uuid.UUID:
    """Record one task in a transaction of the caller's, which a refusal does not spoil; returns its id.

    Raises:
        InvalidRequestError: As `submit_tasks`.
        TaskNotFoundError: As `submit_tasks`.
        LimitExceededError: As `submit_tasks`.
    """
    picture = FleetPicture(members=[])
    if list_models_to_bring([request], picture):
        picture = read_fleet(connection)
    return _insert_whole(connection, [request], settings, picture)[0]


def _submit_batch(
    database: Database, batch: Sequence[TaskRequest], settings: TaskSettings, picture: FleetPicture
) -> list[uuid.UUID]:
    def insert_whole() -> list[uuid.UUID]:
        with database.transaction() as connection:
            return _insert_whole(connection, batch, settings, picture)

    def insert_alone(*, exact: bool) -> Sequence[Refusal]:
        with database.statement() as connection:
            return _insert(connection, batch, settings, exact=exact)

    def find_ids() -> list[uuid.UUID]:
        with database.statement() as connection:
            return _find_ids(connection, batch)

    single = len(batch) == 1
    if list_models_to_bring(batch, picture) or any(
        request.depends_on or (request.idempotency_key and not single) for request in batch
    ):
        return retry_once(insert_whole)
    # The shared lock is enough where there is room for everybody.
    refused = not single or retry_once(lambda: insert_alone(exact=False))
    if refused and (refusals := retry_once(lambda: insert_alone(exact=True))):
        _refuse(refusals[0])
    return retry_once(find_ids) if batch[0].idempotency_key else [request.id for request in batch]


def _insert_whole(
    connection: Connection, batch: Sequence[TaskRequest], settings: TaskSettings, picture: FleetPicture
) -> list[uuid.UUID]:
    models = list_models_to_bring(batch, picture)
    # Before looking for keys and downloads: until this ends, nobody else records one of them.
    lock_submitters(connection, batch, [SYSTEM_AGENT] if models else [])
    arranged = arrange_downloads(connection, batch, models, picture) if models else Arrangement([*batch])
    requests = _name_recorded_parents(connection, arranged.requests)
    _check_parents(connection, requests)
    _check_inputs(connection, requests)
    if requests and (refusals := _insert(connection, requests, settings, exact=True)):
        _refuse(refusals[0])
    note_downloads(connection, arranged.begun)
    # Before the commit: a key that was used for something else undoes the batch.
    ids = _find_ids(connection, batch)
    return [arranged.joined.get(request.id, task_id) for request, task_id in zip(batch, ids, strict=True)]


def _insert(
    connection: Connection, requests: Sequence[TaskRequest], settings: TaskSettings, *, exact: bool
) -> list[Refusal]:
    return insert_tasks(
        connection,
        requests,
        limits=Limits(settings.max_queue_size, settings.channel_limit),
        max_attempts=settings.max_retry_count + 1,
        ttl_seconds=settings.default_ttl,
        exact=exact,
    )


def _name_recorded_parents(connection: Connection, batch: Sequence[TaskRequest]) -> list[TaskRequest]:
    """The batch, with children of the tasks that are recorded where it repeats parents by their keys."""
    parents = {parent for request in batch for parent in request.depends_on}
    keyed = {r.id: (r.agent_id, r.idempotency_key) for r in batch if r.idempotency_key}
    if parents.isdisjoint(keyed):
        return list(batch)
    # Of two in the batch with one key only the first is recorded.
    known = {key: task_id for task_id, key in reversed(keyed.items())}
    known |= {(row.agent_id, row.idempotency_key): row.id for row in find_keyed(connection, [*known])}
    recorded = {task_id: known[key] for task_id, key in keyed.items()}
    return [
        request.model_copy(update={"depends_on": [recorded.get(parent, parent) for parent in request.depends_on]})
        for request in batch
    ]


def _check_parents(connection: Connection, batch: Sequence[TaskRequest]) -> None:
    parents = {parent for request in batch for parent in request.depends_on}
    before: dict[uuid.UUID, Parent] = {}
    recorded = mark_parents(connection, parents) if parents else {}
    later = {request.id for request in batch}
    for request in batch:
        later.discard(request.id)
        for parent in request.depends_on:
            if parent in later:
                raise InvalidRequestError("depends_on", str(parent), "comes after the task; submit parents first")
            found = before.get(parent) or recorded.get(parent)
            if found is None:
                raise TaskNotFoundError(parent)
            # A model that is fetched is everybody's.
            if found.agent_id != request.agent_id and found.type != DOWNLOAD.name:
                remedy = f"a task of another agent than {request.agent_id!r}; depend on your own tasks"
                raise InvalidRequestError("depends_on", str(parent), remedy)
        before[request.id] = Parent(request.agent_id, request.type)


def _check_inputs(connection: Connection, batch: Sequence[TaskRequest]) -> None:
    """See that the files that tasks take of others were made; of what was brought the worker knows more."""
    made = [(request, find_made(get_kind(request.type), request.payload)) for request in batch]
    makers = {maker.task_id for _, found in made for maker in found.values()}
    named = list_named(connection, [*makers]) if makers else set()
    for request, found in made:
        for field, maker in found.items():
            name = getattr(request.payload, field)
            if name not in named:
                remedy = f"task {maker.task_id} has made no such file; take a name from its result"
                raise InvalidRequestError(field, name, remedy)


def _refuse(refusal: Refusal) -> NoReturn:
    if refusal.scope == "priority":
        raise LimitExceededError("priority", refusal.name, limit=refusal.limit, waiting=refusal.waiting)
    raise LimitExceededError(refusal.scope, refusal.name, limit=int(refusal.limit), waiting=int(refusal.waiting))


def _find_ids(connection: Connection, batch: Sequence[TaskRequest]) -> list[uuid.UUID]:
    """The id under which each request is recorded."""
    keys = [(request.agent_id, request.idempotency_key) for request in batch if request.idempotency_key]
    if not keys:
        return [request.id for request in batch]
    rows = find_keyed(connection, keys)
    recorded = {(row.agent_id, row.idempotency_key): (row.id, (row.type, row.model, row.payload)) for row in rows}
    ids = []
    for request in batch:
        asked = (request.type, request.model, request.payload.model_dump(mode="json", exclude_defaults=True))
        task_id, known = recorded.get((request.agent_id, request.idempotency_key), (request.id, asked))
        if known != asked:
            remedy = f"was used for task {task_id}, which asks for something else; use another key"
            raise InvalidRequestError("idempotency_key", request.idempotency_key, remedy)
        ids.append(task_id)
    return ids
