"""`TaskManager`: what a program does with the records of its tasks, by name.

    with TaskManager() as tasks:
        task = tasks.create("text", model="demo", prompt="What is the capital of Peru?", agent="my-bot")
        tasks.update(task.id, metadata={"ticket": 17})
        tasks.delete(task.id)

A facade: each method is one step of `lifecycle`, or one query. Waiting and streaming are `Client`'s. A change that
raises has changed nothing.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from bitinglip.client.filters import TaskFilter, check_filter, check_limit
from bitinglip.client.sync import Client
from bitinglip.domain.task import Status, Task, TaskRequest, parse_task_id
from bitinglip.errors import ConflictError, InvalidRequestError, RedisUnreachableError
from bitinglip.lifecycle import agents, edit
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.explain import Explanation
from bitinglip.lifecycle.quote import Quote
from bitinglip.store import queries
from bitinglip.store.database import Database
from bitinglip.store.tasks import Change
from bitinglip.streams.reader import ping
from bitinglip.streams.transitions import TransitionName

TaskId = str | uuid.UUID
ChangeTasks = Callable[[Database, Sequence[uuid.UUID]], list[Change]]


class TaskManager:
    """The records of one BitingLip system.

    Args:
        database_url: As for `Client`.
        redis_url: As for `Client`.

    Raises:
        BitingLipError: As for `Client`.
    """

    def __init__(self, database_url: str | None = None, redis_url: str | None = None) -> None:
        self._client = Client(database_url, redis_url)

    def create(self, type_: str = "text", /, **fields: Any) -> Task:
        """Submit a task, as `Client.submit`, and return its record.

        Raises:
            BitingLipError: As for `Client.submit`.
        """
        return self._client.submit(type_, **fields).task()

    def get(self, task_id: TaskId) -> Task:
        """The record of a task.

        Raises:
            TaskNotFoundError: If there is none.
        """
        return self._client.get(task_id)

    def explain(self, task_id: TaskId) -> Explanation:
        """What a task waits for now, as `Client.explain`.

        Raises:
            TaskNotFoundError: If there is none.
        """
        return self._client.explain(task_id)

    def quote(self, request: TaskRequest) -> Quote:
        """When a task would run if it were submitted now, as `Client.quote`. Nothing is recorded.

        Raises:
            BitingLipError: As for `Client.quote`.
        """
        return self._client.quote(request)

    def list(self, *, limit: int = 50, **filters: Unpack[TaskFilter]) -> Sequence[Task]:
        """Tasks that match every filter given, newest first.

        Args:
            limit: At most, up to 1,000.
            **filters: Conditions, as `TaskFilter` names them: `statuses=["failed"]`, `agent_id="my-bot"`, ...

        Raises:
            InvalidRequestError: Naming the first bad filter.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        with self._client.database.transaction() as connection:
            return queries.list_tasks(connection, limit=check_limit(limit), **check_filter(filters))

    def update(self, task_id: TaskId, **fields: Any) -> Task:
        """Change title, description or priority; metadata is merged. Returns the record as it is then.

        Raises:
            InvalidRequestError: If a field may not be changed, the status above all, or not to this value.
            TaskNotFoundError: If there is no such task.
            ConflictError: If its priority is to change and it waits no more.
            LimitExceededError: If its agent may not ask so urgently.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        wanted = edit.make_edit(fields)
        change = edit.update(self._client.database, parse_task_id(task_id), wanted)
        self._client.events.announce_changes([change], TransitionName.UPDATED)
        return self.get(task_id)

    def cancel(self, task_id: TaskId) -> Task:
        """Cancel a task, as soft deletion: its record stays. Returns the record; a running task is stopped soon.

        Raises:
            TaskNotFoundError: If there is no such task.
            ConflictError: If it had ended.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        changed = self._client.cancel([task_id])
        task = self.get(task_id)
        if not changed:
            raise ConflictError(task.id, f"it is {task.status} already")
        return task

    def retry(self, task_id: TaskId) -> Task:
        """Make a failed task ready again, with all its attempts before it. Returns its record.

        Raises:
            TaskNotFoundError: If there is no such task.
            ConflictError: If it has not failed.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        changed = self.retry_many([task_id])
        task = self.get(task_id)
        if not changed:
            raise ConflictError(task.id, f"it is {task.status}; only failed tasks are tried again")
        return task

    def retry_many(self, task_ids: Sequence[TaskId]) -> Sequence[Change]:
        """Make failed tasks ready again; the others are not in the answer.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        changes = edit.retry(self._client.database, [parse_task_id(task_id) for task_id in task_ids])
        self._client.events.announce_changes(changes, TransitionName.READY)
        return changes

    def delete(self, task_id: TaskId, *, hard: bool = False) -> None:
        """Delete a task: softly, which cancels it and keeps its record, or for good.

        Raises:
            TaskNotFoundError: If there is no such task.
            ConflictError: If it cannot be: softly, as it had ended; for good, as it runs or others wait for it.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        if not hard:
            self.cancel(task_id)
        elif not self.delete_many([task_id]):
            task = self.get(task_id)
            if task.status is Status.IN_PROGRESS:
                raise ConflictError(task.id, "it runs; cancel it, and delete it when it has ended")
            raise ConflictError(task.id, "others wait for it; delete them with it, or cancel it and try again")

    def delete_many(self, task_ids: Sequence[TaskId]) -> Sequence[Change]:
        """Delete tasks for good, also those that wait; those that run or that others wait for are not in the answer.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        changes = edit.delete(self._client.database, [parse_task_id(task_id) for task_id in task_ids])
        self._client.events.announce_changes(changes, TransitionName.DELETED)
        return changes

    def cancel_matching(self, **filters: Unpack[TaskFilter]) -> Sequence[Change]:
        """Cancel every task that matches and has not ended; the filters are those of `list`.

        Raises:
            InvalidRequestError: If a filter is bad, or none is given.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        changes = self._change_matching(cancel, {"statuses": [Status.PENDING, Status.IN_PROGRESS]}, filters)
        self._client.tell_cancelled(changes)
        return changes

    def retry_matching(self, **filters: Unpack[TaskFilter]) -> Sequence[Change]:
        """Retry every failed task that matches, parents before their children; the filters are those of `list`.

        Raises:
            InvalidRequestError: If a filter is bad, or none is given.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        changes = self._change_matching(edit.retry, {"statuses": [Status.FAILED]}, filters, oldest_first=True)
        self._client.events.announce_changes(changes, TransitionName.READY)
        return changes

    def delete_matching(self, **filters: Unpack[TaskFilter]) -> Sequence[Change]:
        """Delete every task that matches for good; what runs or is waited for stays. The filters are those of `list`.

        Raises:
            InvalidRequestError: If a filter is bad, or none is given.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        changes = self._change_matching(edit.delete, {}, filters)
        self._client.events.announce_changes(changes, TransitionName.DELETED)
        return changes

    def edit_agent(self, agent_id: str, *, force: bool = False, **fields: Any) -> Mapping[str, Any]:
        """Set an agent's weight and limits, as `bitinglip agent set` does; returns the agent.

        Args:
            agent_id: The agent; it need not have asked for anything yet.
            force: Accept a limit that what runs, or what was used today, exceeds already.
            **fields: weight, max_priority, max_queued, max_running, daily_seconds, daily_tokens; None removes a limit.

        Raises:
            InvalidRequestError: Naming the field, the value and what would be right.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        return agents.edit_agent(self._client.database, agent_id, force=force, **fields)

    def pause_agent(self, agent_id: str) -> Mapping[str, Any]:
        """Give workers nothing more of an agent until it is resumed; what they have been given goes on.

        Raises:
            AgentNotFoundError: If nobody has heard of it.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        return agents.pause_agent(self._client.database, agent_id)

    def resume_agent(self, agent_id: str) -> Mapping[str, Any]:
        """Undo a pause; returns the agent.

        Raises:
            AgentNotFoundError: If nobody has heard of it.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        return agents.resume_agent(self._client.database, agent_id)

    def statistics(self) -> dict[str, Any]:
        """Counts by status, agents, workers, slots, and the last hour's tokens, engine seconds and waits in seconds.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        with self._client.database.transaction() as connection:
            return dict(queries.get_stats(connection))

    def check_health(self) -> Mapping[str, bool]:
        """Whether PostgreSQL answers, Redis answers, and any worker's lease holds.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        stats = self.statistics()
        try:
            ping(self._client.redis)
            redis_answers = True
        except RedisUnreachableError:
            redis_answers = False
        return {"database": True, "redis": redis_answers, "workers": stats["workers"] > 0}

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _change_matching(
        self, change: ChangeTasks, default: TaskFilter, filters: TaskFilter, *, oldest_first: bool = False
    ) -> Sequence[Change]:
        conditions = check_filter(filters)
        if not conditions:
            raise InvalidRequestError("filters", dict(filters), "would mean every task; give at least one condition")
        wanted = {**check_filter(default), **conditions}
        return [*edit.change_matching(self._client.database, change, oldest_first=oldest_first, **wanted)]
