"""The client: submit tasks and read their records."""

import time
import uuid
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import redis

from bitinglip.client.handle import Handle
from bitinglip.domain.task import Attempt, Priority, Task, TaskRequest, make_request, parse_task_id
from bitinglip.errors import ConfigurationError, InvalidRequestError, ModelNotFoundError, TaskNotFoundError
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.registry.locate import BUNDLED, find_folder, locate_model
from bitinglip.settings import ServerSettings, ServerUrls, TaskSettings, load_settings
from bitinglip.store import queries
from bitinglip.store.database import Database, retry_once
from bitinglip.streams.reader import connect

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
    ) -> Handle:
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

    def submit_many(self, requests: Iterable[TaskRequest]) -> list[Handle]:
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

    def handle(self, task_id: str | uuid.UUID) -> Handle:
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


def _choose_urls(database_url: str | None, redis_url: str | None) -> ServerUrls:
    if database_url is None and redis_url is None:
        return load_settings(ServerSettings).find_urls()
    if database_url is None or redis_url is None:
        given, missing = ("redis_url", "database_url") if database_url is None else ("database_url", "redis_url")
        raise ConfigurationError(f"{given} is given without {missing}; give both, or neither to use what is configured")
    return ServerUrls(database_url, redis_url)
