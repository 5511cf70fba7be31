"""The client for asyncio. Each call runs in a thread: the drivers below are the synchronous ones."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

from bitinglip.client.handle import Handle
from bitinglip.client.sync import Client
from bitinglip.domain.task import Status, Task, TaskRequest
from bitinglip.streams.events import Event


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
