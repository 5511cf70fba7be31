"""The client: submit tasks and read their records."""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import redis

from bitinglip.client.handle import Handle
from bitinglip.client.models import KnownModels
from bitinglip.client.taken import DEFAULT_LEASE_SECONDS, TakenTask, find_taken_task, take_next
from bitinglip.domain.task import Attempt, Priority, Status, Task, TaskRequest, make_request, parse_task_id
from bitinglip.errors import ConfigurationError, TaskNotFoundError
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.explain import Explanation, explain_task
from bitinglip.lifecycle.quote import Quote, quote_request
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.settings import (
    ArtifactSettings,
    DispatchSettings,
    ServerSettings,
    ServerUrls,
    TaskSettings,
    load_settings,
)
from bitinglip.store import queries
from bitinglip.store.database import Database, retry_once
from bitinglip.store.tasks import Change
from bitinglip.streams.reader import connect
from bitinglip.streams.wake import wake_worker
from bitinglip.streams.writer import EventWriter

if TYPE_CHECKING:
    from bitinglip.artifacts.store import ArtifactStore


class Client:
    """Talks to one BitingLip system. Threads may share it.

    Args:
        database_url: PostgreSQL; None: as configured, else the embedded system.
        redis_url: Redis; None likewise.
        connections: To PostgreSQL, at most.

    Raises:
        ConfigurationError: If only one of the URLs is given.
        SystemNotRunningError: If nothing is configured and no embedded system runs.
        DatabaseUnreachableError: If PostgreSQL does not answer.
        SchemaVersionError: If its schema is not this code's.
    """

    def __init__(self, database_url: str | None = None, redis_url: str | None = None, *, connections: int = 2) -> None:
        urls = _choose_urls(database_url, redis_url)
        self._redis_url = urls.redis_url
        self.database = Database(urls.database_url, connections=connections, name="bitinglip-client")
        self._settings = load_settings(TaskSettings)
        self._models = KnownModels(self.database)
        self.closed = False
        self.database.check_schema()

    @cached_property
    def redis(self) -> "redis.Redis":
        """The connection that streams are read from."""
        return connect(self._redis_url)

    @cached_property
    def events(self) -> EventWriter:
        """Where transitions are announced; nobody waits for it."""
        return EventWriter(self.redis)

    @cached_property
    def artifacts(self) -> "ArtifactStore":
        """Where the files are that tasks make and take, as the settings say.

        Raises:
            ConfigurationError: If a setting is wrong.
        """
        # Its libraries are not small, and most clients never need them.
        from bitinglip.artifacts.store import open_artifacts

        return open_artifacts()

    def submit(
        self,
        type_: str = "text",
        /,
        *,
        model: str | None = None,
        agent: str | None = None,
        priority: Priority | str | None = None,
        user: str | None = None,
        channel: str | None = None,
        title: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl: int | None = None,
        not_before: datetime | None = None,
        depends_on: Iterable[str | uuid.UUID | Handle] = (),
        idempotency_key: str | None = None,
        **payload: Any,
    ) -> Handle:
        """Record a task, durably, and return a handle on it.

        Args:
            type_: Kind of task: `text`, `echo`, ...
            model: A bundled model, a folder, one of the hub as `organisation/name`, or one that a worker holds. One of
                the hub that is not here is fetched first, where a worker's pool `pulls` it.
            agent: Who asks; `default` if nobody says.
            priority: `critical`, `high`, `medium` (the default) or `low`.
            user: On whose behalf.
            channel: A chat channel's id, 17 to 19 digits.
            title: For people; made from the payload if absent.
            description: For people, at most 2,000 characters.
            metadata: A JSON object of the caller's own.
            ttl: Seconds that it may wait; then it fails as `expired`.
            not_before: It does not start before then; with a time zone.
            depends_on: Tasks of the same agent, or downloads, that must complete first; one that does not fails it.
            idempotency_key: A second submission of the agent with this key returns the same task.
            **payload: The kind's own fields: for `text`, `prompt` or `messages`, `max_tokens`, `temperature`, ...

        Raises:
            InvalidRequestError: Naming the field, the value and what would be right.
            ModelNotFoundError: If the model is not known.
            TaskNotFoundError: If a task that it depends on is not known.
            LimitExceededError: If too many of the agent's or the channel's tasks wait, or it may not ask so urgently.
            InfeasibleError: If no registered worker could ever do it: the type, the model's size, who may use it; or if
                its model is not here and would not be fetched.
            DatabaseUnreachableError: If PostgreSQL is away. Nothing was recorded.
        """
        parents = [item.id if isinstance(item, Handle) else parse_task_id(item) for item in depends_on]
        request = make_request(
            type_,
            payload,
            model=model,
            agent_id=agent,
            priority=priority,
            user_id=user,
            channel_id=channel,
            title=title,
            description=description,
            metadata=metadata,
            ttl=ttl,
            not_before=not_before,
            depends_on=parents or None,
            idempotency_key=idempotency_key,
        )
        return self.submit_many([request])[0]

    def submit_many(self, requests: Iterable[TaskRequest]) -> list[Handle]:
        """Record many tasks with few statements; handles in the order of the requests.

        Args:
            requests: From `bitinglip.make_request`.

        Raises:
            InvalidRequestError: If a model cannot do what a request asks. Nothing was recorded.
            ModelNotFoundError: If a model is not known. Nothing was recorded.
            InfeasibleError: If no registered worker could ever do one of them. Nothing was recorded.
            TaskNotFoundError: If a parent is not known. Batches of 1,000 before this one were recorded.
            LimitExceededError: If too many would wait. Batches of 1,000 before this one were recorded.
            DatabaseUnreachableError: If PostgreSQL is away. Batches of 1,000 before this one were recorded.
        """
        checked = list(requests)
        for request in checked:
            self._models.check(request)
        ids = submit_tasks(self.database, checked, self._settings)
        by_agent: dict[str, list[uuid.UUID]] = defaultdict(list)
        for request, task_id in zip(checked, ids, strict=True):
            # Another id is that of an earlier task, which the idempotency key names.
            if task_id == request.id:
                by_agent[request.agent_id].append(task_id)
        for agent_id, queued in by_agent.items():
            self.events.announce_queued(agent_id, queued)
        return [Handle(self, task_id) for task_id in ids]

    def upload(self, path: Path | str) -> str:
        """Bring a picture for tasks to start from, and return the name that their `image` takes.

        Args:
            path: A PNG, JPEG or WebP file.

        Raises:
            InvalidRequestError: If it is missing, too large or no such picture.
            ArtifactDiskFullError: If there is no room for it.
            ArtifactStoreTakenError: If the store is another system's.
            ArtifactStoreError: If the store cannot be used. Try again.
            ConfigurationError: If a setting is wrong.
        """
        from bitinglip.artifacts.sweep import find_owner
        from bitinglip.artifacts.upload import upload_picture

        self.artifacts.check_owner(find_owner(self.database))
        max_bytes = load_settings(ArtifactSettings).artifact_upload_bytes
        return upload_picture(self.artifacts, Path(path), max_bytes=max_bytes)

    def get(self, task_id: str | uuid.UUID) -> Task:
        """The record of a task.

        Raises:
            TaskNotFoundError: If there is none.
        """
        wanted = parse_task_id(task_id)

        def read() -> Task | None:
            with self.database.transaction() as connection:
                return queries.get_task(connection, wanted)

        task = retry_once(read)
        if task is None:
            raise TaskNotFoundError(task_id)
        return task

    def attempts(self, task_id: str | uuid.UUID) -> list[Attempt]:
        """The attempts at a task that have ended.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        with self.database.transaction() as connection:
            return queries.list_attempts(connection, parse_task_id(task_id))

    def handle(self, task_id: str | uuid.UUID) -> Handle:
        """A handle on a task that was submitted before, by anyone.

        Raises:
            TaskNotFoundError: If there is none.
        """
        return Handle(self, self.get(task_id).id)

    def explain(self, task_id: str | uuid.UUID) -> Explanation:
        """What a task waits for now, how many go before it, and what would release it.

        Raises:
            TaskNotFoundError: If there is none.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        swap_seconds = load_settings(DispatchSettings).swap_seconds
        return explain_task(self.database, parse_task_id(task_id), swap_seconds=swap_seconds)

    def quote(self, request: TaskRequest) -> Quote:
        """When a task would run if it were submitted now, and what it would cost. Nothing is recorded.

        Args:
            request: From `bitinglip.make_request`.

        Raises:
            InvalidRequestError: If the model cannot do what it asks.
            ModelNotFoundError: If the model is not known.
            InfeasibleError: If no registered worker could ever do it.
            LimitExceededError: If its agent may not ask so urgently.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        self._models.check(request)
        return quote_request(self.database, request, swap_seconds=load_settings(DispatchSettings).swap_seconds)

    def cancel(self, task_ids: Sequence[str | uuid.UUID]) -> list[Change]:
        """Cancel tasks: waiting ones at once, running ones at their next step; the others had ended, or are not known.

        Raises:
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        changes = cancel(self.database, [parse_task_id(task_id) for task_id in task_ids])
        self.tell_cancelled(changes)
        return changes

    def tell_cancelled(self, changes: Iterable[Change]) -> None:
        """Announce what was cancelled, and wake the workers that have to stop something."""
        told = list(changes)
        self.events.announce_changes(told)
        for worker_id in {change.worker_id for change in told if change.status == Status.IN_PROGRESS}:
            if worker_id is not None:
                wake_worker(self.redis, worker_id)

    def next(
        self,
        agent: str,
        timeout: float | None = None,
        *,
        channel: str | None = None,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
    ) -> TakenTask | None:
        """Take the agent's next task of type `agent`, most urgent and then oldest first; wait for one if need be.

        It is this process's until it is completed, failed or handed back: a thread renews its lease. If the process
        dies, the task is ready again when the lease has run out.

        Args:
            agent: Whose tasks.
            timeout: Seconds to wait for one; None waits for ever.
            channel: This channel's only.
            lease_seconds: How long a dead process keeps it.

        Raises:
            InvalidRequestError: If no task can have that agent or channel, or the lease is out of bounds.
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        return take_next(self, agent, timeout=timeout, channel=channel, lease_seconds=lease_seconds)

    def taken(self, task_id: str | uuid.UUID, token: str | uuid.UUID) -> TakenTask:
        """A task that was taken before, perhaps by another process, which knows the token.

        Raises:
            TaskNotFoundError: If there is no such task.
            InvalidRequestError: If the token is none.
            LeaseLostError: If the token does not hold the task (any more).
            DatabaseUnreachableError: If PostgreSQL is away.
        """
        return find_taken_task(self, parse_task_id(task_id), token)

    def close(self) -> None:
        """Say what is still to be said, for a second at most, and close every connection.

        A task that was taken and not ended is another's when its lease is over.
        """
        self.closed = True
        if "events" in self.__dict__:
            self.events.close(within_seconds=1)
        self.database.close()
        if "redis" in self.__dict__:
            self.redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _choose_urls(database_url: str | None, redis_url: str | None) -> ServerUrls:
    if database_url is None and redis_url is None:
        return load_settings(ServerSettings).find_urls()
    if database_url is None or redis_url is None:
        given, missing = ("redis_url", "database_url") if database_url is None else ("database_url", "redis_url")
        raise ConfigurationError(f"{given} is given without {missing}; give both, or neither to use what is configured")
    return ServerUrls(database_url, redis_url)
