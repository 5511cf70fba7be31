"""Submit tasks and get what they made, from Python, sync and async.

    with Client() as client:
        handle = client.submit("text", model="demo", prompt="What is the capital of Peru?", agent="my-bot")
        print(handle.result(timeout=60)["text"])

A client needs PostgreSQL to submit, and nothing else: with Redis away the task is recorded and runs all the same, and
`stream` and `result` read the record in place of the events.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import redis

from bitinglip.domain.task import Attempt, Priority, Status, Task, TaskRequest, make_request, parse_task_id
from bitinglip.errors import (
    ConfigurationError,
    InvalidRequestError,
    ModelNotFoundError,
    RedisUnreachableError,
    ResultTimeoutError,
    TaskEndedError,
    TaskNotFoundError,
)
from bitinglip.lifecycle.cancel import cancel
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.registry.locate import BUNDLED, find_folder, locate_model
from bitinglip.settings import ServerSettings, ServerUrls, TaskSettings, load_settings
from bitinglip.store import queries
from bitinglip.store.database import Database, retry_once
from bitinglip.streams.events import Event, EventName
from bitinglip.streams.reader import connect, read_events

POLL_SECONDS = 0.5
"""Between two looks at the record, where events do not tell."""

_KNOWN_MODEL_SECONDS = 10.0


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
        self._checked_models: dict[str, tuple[float, int | None]] = {}
        self.database.check_schema()

    @cached_property
    def redis(self) -> "redis.Redis":
        """The connection that streams are read from."""
        return connect(self._redis_url)

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
        **payload: Any,
    ) -> "Handle":
        """Record a task, durably, and return a handle on it.

        Args:
            type_: Kind of task: `text`, `echo`, ...
            model: A bundled model, a folder, or one that a worker holds.
            agent: Who asks; `default` if nobody says.
            priority: `critical`, `high`, `medium` (the default) or `low`.
            user: On whose behalf.
            channel: A chat channel's id, 17 to 19 digits.
            title: For people; made from the payload if absent.
            description: For people, at most 2,000 characters.
            metadata: A JSON object of the caller's own.
            **payload: The kind's own fields: for `text`, `prompt` or `messages`, `max_tokens`, `temperature`, ...

        Raises:
            InvalidRequestError: Naming the field, the value and what would be right.
            ModelNotFoundError: If the model is not known.
            DatabaseUnreachableError: If PostgreSQL is away. Nothing was recorded.
        """
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
        )
        return self.submit_many([request])[0]

    def submit_many(self, requests: Iterable[TaskRequest]) -> "list[Handle]":
        """Record many tasks with few statements; handles in the order of the requests.

        Args:
            requests: From `bitinglip.make_request`.

        Raises:
            InvalidRequestError: If a model cannot do what a request asks. Nothing was recorded.
            ModelNotFoundError: If a model is not known. Nothing was recorded.
            DatabaseUnreachableError: If PostgreSQL is away. Batches of 1,000 before this one were recorded.
        """
        checked = list(requests)
        for request in checked:
            self._check_model(request)
        submit_tasks(self.database, checked, self._settings)
        return [Handle(self, request.id) for request in checked]

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
        """The attempts at a task that have ended."""
        with self.database.transaction() as connection:
            return queries.list_attempts(connection, parse_task_id(task_id))

    def handle(self, task_id: str | uuid.UUID) -> "Handle":
        """A handle on a task that was submitted before, by anyone.

        Raises:
            TaskNotFoundError: If there is none.
        """
        return Handle(self, self.get(task_id).id)

    def close(self) -> None:
        """Close every connection."""
        self.database.close()
        if "redis" in self.__dict__:
            self.redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_model(self, request: TaskRequest) -> None:
        """Refuse what can be known to fail: an unknown model, a bad folder, more tokens than the context has."""
        if request.model is None:
            return
        context = self._find_context(request.model)
        max_tokens = getattr(request.payload, "max_tokens", None)
        asked = "max_tokens" in request.payload.model_fields_set
        if context is not None and asked and max_tokens is not None and max_tokens >= context:
            remedy = f"model {request.model!r} takes {context:,} tokens, prompt included; ask for fewer"
            raise InvalidRequestError("max_tokens", max_tokens, remedy)

    def _find_context(self, model: str) -> int | None:
        """The model's context in tokens, where this machine can see it; looked up again after 10 s."""
        known = self._checked_models.get(model)
        if known is not None and time.monotonic() - known[0] < _KNOWN_MODEL_SECONDS:
            return known[1]
        if find_folder(model) is not None:
            context = locate_model(model).context_tokens
        else:
            with self.database.transaction() as connection:
                offered = queries.list_offered_models(connection)
            if model not in offered:
                raise ModelNotFoundError(model, sorted({*BUNDLED, *offered}))
            context = None
        self._checked_models[model] = (time.monotonic(), context)
        return context


class Handle:
    """One task, wherever it is."""

    def __init__(self, client: Client, task_id: uuid.UUID) -> None:
        self._client = client
        self.id = task_id

    def __repr__(self) -> str:
        return f"Handle({str(self.id)!r})"

    @property
    def status(self) -> Status:
        """Where the task stands now."""
        return self.task().status

    def task(self) -> Task:
        """The record as it is now."""
        return self._client.get(self.id)

    def cancel(self) -> bool:
        """Cancel the task; True if it is or will be, False if it had ended before."""
        return self.id in cancel(self._client.database, [self.id])

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end and return what the task made.

        Args:
            timeout: Seconds; None waits for ever.

        Raises:
            ResultTimeoutError: If it has not ended in time. It goes on.
            TaskEndedError: If it failed or was cancelled.
        """
        task = self.wait(timeout)
        if task.status is Status.COMPLETED:
            return task.result or {}
        error = task.error
        raise TaskEndedError(
            task.id, task.status, error.code if error else task.status, error.message if error else "cancelled"
        )

    def wait(self, timeout: float | None = None) -> Task:
        """Wait for the end and return the record.

        Raises:
            ResultTimeoutError: If it has not ended within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        after = "0-0"
        while True:
            task = self.task()
            if task.status.is_final:
                return task
            left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - time.monotonic())
            if left <= 0:
                raise ResultTimeoutError(self.id, timeout or 0.0)
            after = self._await_news(after, left)

    def stream(self, after: str | None = None) -> Iterator[Event]:
        """The task's events as they come, to its end.

        Ends with `finished`, whatever became of Redis: what the stream lacks is read from the record.

        Args:
            after: The id of the last event seen, to resume; None: from the beginning.
        """
        if after is None:
            task = self.task()
            yield Event("0-1", EventName.QUEUED, {"agent": task.agent_id, "priority": task.priority})
        position = after or "0-1"
        shown = 0
        lacks_text = False
        while True:
            events = self._read(position)
            for event in events:
                if _attempt_of(event.id) != _attempt_of(position):
                    shown, lacks_text = 0, False
                lacks_text = lacks_text or (after is None and not _follows(position, event.id))
                if event.name is EventName.FINISHED:
                    if lacks_text:
                        yield from _replay_text(self.task(), position, shown)
                    yield event
                    return
                position = event.id
                if lacks_text and event.name is EventName.TEXT:
                    # Redis was wiped or the stream trimmed: text with a hole is worse than text at the end.
                    continue
                shown += len(event.data.get("text", ""))
                yield event
            if not events:
                task = self.task()
                if task.status.is_final and not self._read(position, wait_seconds=0.0):
                    yield from _replay_end(task, position, shown if after is None else None)
                    return

    def _read(self, after: str, wait_seconds: float = POLL_SECONDS) -> list[Event]:
        try:
            return list(read_events(self._client.redis, self.id, after=after, wait_seconds=wait_seconds))
        except RedisUnreachableError:
            time.sleep(wait_seconds)
            return []

    def _await_news(self, after: str, seconds: float) -> str:
        """Wait for `finished` or for `seconds`; returns the id of the last event seen."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for event in self._read(after, left):
                after = event.id
                if event.name is EventName.FINISHED:
                    return after
        return after


def _choose_urls(database_url: str | None, redis_url: str | None) -> ServerUrls:
    if database_url is None and redis_url is None:
        return load_settings(ServerSettings).find_urls()
    if database_url is None or redis_url is None:
        given, missing = ("redis_url", "database_url") if database_url is None else ("database_url", "redis_url")
        raise ConfigurationError(f"{given} is given without {missing}; give both, or neither to use what is configured")
    return ServerUrls(database_url, redis_url)


def _replay_end(task: Task, position: str, shown: int | None) -> Iterator[Event]:
    """The rest of a task's events, from its record.

    Args:
        task: Ended.
        position: The last event's id.
        shown: Characters of text that were seen; None if unknown, and no text is repeated.
    """
    if shown is not None:
        for event in _replay_text(task, position, shown):
            position = event.id
            yield event
    error = task.error.model_dump() if task.error else None
    yield Event(_next_id(position), EventName.FINISHED, {"status": task.status, "error": error})


def _replay_text(task: Task, position: str, shown: int) -> Iterator[Event]:
    rest = str((task.result or {}).get("text", ""))[shown:]
    if rest:
        yield Event(_next_id(position), EventName.TEXT, {"text": rest})


def _attempt_of(event_id: str) -> int:
    return int(event_id.partition("-")[0])


def _next_id(event_id: str) -> str:
    attempt, _, sequence = event_id.partition("-")
    return f"{attempt}-{int(sequence) + 1}"


def _follows(event_id: str, later_id: str) -> bool:
    """Whether no event lies between the two, as far as their numbers tell."""
    return later_id == _next_id(event_id) or later_id.endswith("-1")


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited; each call runs in a thread.

    Args:
        database_url: As for `Client`.
        redis_url: As for `Client`.
        connections: As for `Client`.
    """

    def __init__(self, database_url: str | None = None, redis_url: str | None = None, *, connections: int = 4) -> None:
        self._open = lambda: Client(database_url, redis_url, connections=connections)
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        self._client = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.client.close)

    @property
    def client(self) -> Client:
        """The client that does the work.

        Raises:
            RuntimeError: Outside `async with`.
        """
        if self._client is None:
            message = "use 'async with AsyncClient() as client'"
            raise RuntimeError(message)
        return self._client

    async def submit(self, type_: str = "text", /, **fields: Any) -> "AsyncHandle":
        """As `Client.submit`."""
        return AsyncHandle(await asyncio.to_thread(lambda: self.client.submit(type_, **fields)))

    async def submit_many(self, requests: Iterable[TaskRequest]) -> "list[AsyncHandle]":
        """As `Client.submit_many`."""
        return [AsyncHandle(handle) for handle in await asyncio.to_thread(self.client.submit_many, list(requests))]

    async def get(self, task_id: str | uuid.UUID) -> Task:
        """As `Client.get`."""
        return await asyncio.to_thread(self.client.get, task_id)

    async def handle(self, task_id: str | uuid.UUID) -> "AsyncHandle":
        """As `Client.handle`."""
        return AsyncHandle(await asyncio.to_thread(self.client.handle, task_id))


class AsyncHandle:
    """`Handle` for asyncio."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.id = handle.id

    async def task(self) -> Task:
        """As `Handle.task`."""
        return await asyncio.to_thread(self._handle.task)

    async def status(self) -> Status:
        """As `Handle.status`."""
        return (await self.task()).status

    async def cancel(self) -> bool:
        """As `Handle.cancel`."""
        return await asyncio.to_thread(self._handle.cancel)

    async def result(self, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109 - as the sync one
        """As `Handle.result`."""
        return await asyncio.to_thread(self._handle.result, timeout)

    async def stream(self, after: str | None = None) -> AsyncIterator[Event]:
        """As `Handle.stream`."""
        events = self._handle.stream(after)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event
