"""What people change in records: try again, edit, delete. Nothing here touches what a worker runs.

Invariant: a change that is refused changed nothing.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection

from bitinglip.domain.payloads import dump_json
from bitinglip.domain.task import (
    MAX_METADATA_BYTES,
    Description,
    Metadata,
    Priority,
    Status,
    Task,
    Title,
    describe_first_error,
)
from bitinglip.errors import ConflictError, InvalidRequestError, LimitExceededError, TaskNotFoundError
from bitinglip.settings import TaskSettings
from bitinglip.store import agents, queries, records
from bitinglip.store.database import Database, retry_once
from bitinglip.store.tasks import Change, cancel_tasks
from bitinglip.store.workers import delete_gone

BATCH = 1_000


class TaskEdit(BaseModel):
    """What may be changed in a task; None leaves it as it is, metadata is merged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Title | None = None
    description: Description | None = None
    priority: Priority | None = None
    metadata: Metadata = Field(default_factory=dict)


def make_edit(fields: Mapping[str, Any]) -> TaskEdit:
    """Validate what a caller wants to change.

    Raises:
        InvalidRequestError: Naming the field. A status is never set by hand: tasks are cancelled or retried.
    """
    if fields.get("status") is not None:
        raise InvalidRequestError("status", fields["status"], "is not set by hand; cancel the task, or retry it")
    try:
        return TaskEdit.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as exc:
        raise describe_first_error(exc) from exc


def update(database: Database, task_id: uuid.UUID, edit: TaskEdit) -> Change:
    """Change a task's record.

    Raises:
        TaskNotFoundError: If there is none.
        ConflictError: If its priority is to change and it waits no more.
        InvalidRequestError: If its metadata would become too large.
        LimitExceededError: If its agent may not ask so urgently.
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    with database.transaction() as connection:
        change = records.update_task(
            connection,
            task_id,
            title=edit.title,
            description=edit.description,
            priority=edit.priority,
            metadata=edit.metadata,
        )
        task = queries.get_task(connection, task_id)
        if task is None:
            raise TaskNotFoundError(task_id)
        if change is None:
            raise ConflictError(task_id, f"it is {task.status} and waits no more; its priority has no effect")
        _check_edited(connection, task, edit)
        return change


def _check_edited(connection: Connection, task: Task, edit: TaskEdit) -> None:
    """Refuse, before it is committed, what only the whole record shows to be wrong."""
    size = len(dump_json(task.metadata).encode())
    if edit.metadata and size > MAX_METADATA_BYTES:
        remedy = f"with what is there, it is {size:,} bytes of JSON; at most {MAX_METADATA_BYTES:,}"
        raise InvalidRequestError("metadata", edit.metadata, remedy)
    if edit.priority is not None:
        agent = agents.get_agent(connection, task.agent_id)
        allowed = agent.max_priority if agent else None
        if allowed is not None and edit.priority.rank < Priority(allowed).rank:
            raise LimitExceededError("priority", task.agent_id, limit=allowed, waiting=edit.priority)


def retry(database: Database, task_ids: Sequence[uuid.UUID]) -> list[Change]:
    """Make failed tasks ready again, with all their attempts before them; the others are not in the answer.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def make_ready() -> list[Change]:
        with database.transaction() as connection:
            # A statement of its own: whoever waited for a deletion must see what it left.
            failed = records.lock_failed(connection, task_ids)
            return records.retry_tasks(connection, failed)

    return retry_once(make_ready)


def delete(database: Database, task_ids: Sequence[uuid.UUID]) -> list[Change]:
    """Delete tasks for good, waiting ones after cancelling them; the others are not in the answer.

    Left alone are those that run, and those that others wait for which are not to be deleted with them.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """

    def remove() -> list[Change]:
        with database.transaction() as connection:
            # A statement of its own: what the next one sees can then not change any more, and no child be added.
            records.lock_tasks(connection, task_ids)
            chosen = _choose_deletable(connection, task_ids)
            cancel_tasks(connection, [task_id for task_id, status in chosen.items() if status == Status.PENDING])
            return records.delete_tasks(connection, [*chosen])

    return retry_once(remove)


def _choose_deletable(connection: Connection, task_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
    """The largest set of the tasks that can go together, with their statuses."""
    chosen = dict.fromkeys(task_ids, "")
    while True:
        deletable = dict(records.list_deletable(connection, [*chosen]))
        if len(deletable) == len(chosen):
            return deletable
        # What had to stay may wait for others that then have to stay, too.
        chosen = deletable


def purge(database: Database, settings: TaskSettings) -> int:
    """Delete the tasks that finished longer ago than they are kept, batch by batch; returns how many.

    So are the registrations of workers that left as long ago.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. Batches before are deleted.
    """
    purged = 0
    while True:
        with database.transaction() as connection:
            # Streams expire by themselves, and the files that these tasks made are left for the sweep.
            batch = len(records.purge_finished(connection, days=settings.retention_days, batch=BATCH))
        purged += batch
        if batch < BATCH:
            break
    with database.transaction() as connection:
        delete_gone(connection, days=settings.retention_days)
    return purged


def change_matching(
    database: Database,
    change: Callable[[Database, Sequence[uuid.UUID]], list[Change]],
    *,
    oldest_first: bool = False,
    **filters: Any,
) -> Iterator[Change]:
    """Cancel, retry or delete every task that matches, `BATCH` at a time.

    Args:
        database: Where the tasks are.
        change: `cancel`, `retry` or `delete`.
        oldest_first: Parents before their children; else children before their parents.
        **filters: As for `store.queries.list_ids`.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    pages = _list_pages(database, filters)
    if oldest_first:
        pages = (page[::-1] for page in reversed([*pages]))
    for page in pages:
        yield from change(database, page)


def _list_pages(database: Database, filters: Mapping[str, Any]) -> Iterator[list[uuid.UUID]]:
    before_seq: int | None = None
    while True:

        def find(before: int | None = before_seq) -> list[tuple[uuid.UUID, int]]:
            with database.transaction() as connection:
                return queries.list_ids(connection, before_seq=before, limit=BATCH, **filters)

        found = retry_once(find)
        if not found:
            return
        yield [task_id for task_id, _ in found]
        before_seq = found[-1][1]
