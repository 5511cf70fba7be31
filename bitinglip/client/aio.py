"""The client for asyncio. Each call runs in a thread: the drivers below are the synchronous ones."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from bitinglip.client.handle import Handle
from bitinglip.client.sync import Client
from bitinglip.client.taken import DEFAULT_LEASE_SECONDS, TakenTask, take_next
from bitinglip.domain.task import Attempt, Status, Task, TaskRequest
from bitinglip.lifecycle.explain import Explanation
from bitinglip.lifecycle.quote import Quote
from bitinglip.store.tasks import Change
from bitinglip.streams.events import Event

T = TypeVar("T")


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

    async def upload(self, path: Path | str) -> str:
        """As `Client.upload`."""
        return await asyncio.to_thread(self.client.upload, path)

    async def get(self, task_id: str | uuid.UUID) -> Task:
        """As `Client.get`."""
        return await asyncio.to_thread(self.client.get, task_id)

    async def attempts(self, task_id: str | uuid.UUID) -> list[Attempt]:
        """As `Client.attempts`."""
        return await asyncio.to_thread(self.client.attempts, task_id)

    async def explain(self, task_id: str | uuid.UUID) -> Explanation:
        """As `Client.explain`."""
        return await asyncio.to_thread(self.client.explain, task_id)

    async def quote(self, request: TaskRequest) -> Quote:
        """As `Client.quote`."""
        return await asyncio.to_thread(self.client.quote, request)

    async def cancel(self, task_ids: Sequence[str | uuid.UUID]) -> list[Change]:
        """As `Client.cancel`."""
        return await asyncio.to_thread(self.client.cancel, task_ids)

    async def next(
        self,
        agent: str,
        timeout: float | None = None,  # noqa: ASYNC109 - as the sync one
        *,
        channel: str | None = None,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
    ) -> "AsyncTakenTask | None":
        """As `Client.next`; if the wait is cancelled, what was taken at that moment is handed back."""
        stop = threading.Event()

        def take() -> TakenTask | None:
            return take_next(
                self.client, agent, timeout=timeout, channel=channel, lease_seconds=lease_seconds, stop=stop
            )

        waiting = asyncio.create_task(_in_own_thread(take))
        try:
            taken = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            stop.set()
            taken = await waiting
            if taken is not None:
                await asyncio.to_thread(taken.hand_back)
            raise
        return None if taken is None else AsyncTakenTask(taken)

    async def taken(self, task_id: str | uuid.UUID, token: str | uuid.UUID) -> "AsyncTakenTask":
        """As `Client.taken`."""
        return AsyncTakenTask(await asyncio.to_thread(self.client.taken, task_id, token))

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

    async def save_images(
        self,
        folder: Path | str,
        timeout: float | None = None,  # noqa: ASYNC109 - as the sync one
    ) -> list[Path]:
        """As `Handle.save_images`."""
        return await asyncio.to_thread(self._handle.save_images, folder, timeout)

    async def stream(self, after: str | None = None) -> AsyncIterator[Event]:
        """As `Handle.stream`."""
        events = self._handle.stream(after)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event


class AsyncTakenTask:
    """`TakenTask` for asyncio."""

    def __init__(self, taken: TakenTask) -> None:
        self._taken = taken
        self.id = taken.id
        self.token = taken.token
        self.task = taken.task

    @property
    def cancelled(self) -> bool:
        """Whether it is to be cancelled, as the last renewal of its lease heard."""
        return self._taken.cancelled

    async def keep(self, lease_seconds: float) -> bool:
        """As `TakenTask.keep`."""
        return await asyncio.to_thread(self._taken.keep, lease_seconds)

    async def complete(self, result: dict[str, Any] | None = None) -> None:
        """As `TakenTask.complete`."""
        await asyncio.to_thread(self._taken.complete, result)

    async def fail(self, message: str, *, code: str = "agent_failed", retryable: bool = False) -> None:
        """As `TakenTask.fail`."""
        await asyncio.to_thread(lambda: self._taken.fail(message, code=code, retryable=retryable))

    async def hand_back(self) -> None:
        """As `TakenTask.hand_back`."""
        await asyncio.to_thread(self._taken.hand_back)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._taken.__exit__, kind, error, trace)


async def _in_own_thread(wait: Callable[[], T]) -> T:
    """Run what may wait for ever: in the loop's few threads, some of these would keep all others from running."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="bitinglip-wait")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, wait)
    finally:
        executor.shutdown(wait=False)
