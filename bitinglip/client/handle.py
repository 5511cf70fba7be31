"""A handle on one task: its status, its result, its events."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitinglip.client.follow import POLL_SECONDS, follow_events
from bitinglip.client.pictures import save_pictures
from bitinglip.domain.catalogue import DOWNLOAD
from bitinglip.domain.task import QueueState, Status, Task
from bitinglip.errors import RedisUnreachableError, ResultTimeoutError, TaskEndedError
from bitinglip.streams.events import Event, EventName
from bitinglip.streams.reader import read_events

if TYPE_CHECKING:
    from bitinglip.client.sync import Client


class Handle:
    """One task, wherever it is."""

    def __init__(self, client: "Client", task_id: uuid.UUID) -> None:
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
        return bool(self._client.cancel([self.id]))

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end and return what the task made.

        Args:
            timeout: Seconds; None waits for ever.

        Raises:
            ResultTimeoutError: If it has not ended in time. It goes on.
            TaskEndedError: If it failed or was cancelled.
        """
        return self._complete(timeout).result or {}

    def save_images(self, folder: Path | str, timeout: float | None = None) -> list[Path]:
        """Wait for the end and save the task's pictures; return their paths, in the task's order.

        A file is called after the task's title and the picture's seed, with a number if there is such a file already.

        Args:
            folder: It is made if need be.
            timeout: Seconds; None waits for ever.

        Raises:
            ResultTimeoutError: If it has not ended in time. It goes on.
            TaskEndedError: If it failed or was cancelled.
            InvalidRequestError: If it makes no pictures.
            ArtifactNotFoundError: If one is gone. Those before it are saved.
            ArtifactDamagedError: If one has other bytes than the record says. Try again.
            ArtifactStoreError: If the store cannot be used. Try again.
            OSError: If the folder cannot be written.
        """
        return save_pictures(self._client.artifacts, self._complete(timeout), Path(folder))

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
        return follow_events(self.task, self._read, after)

    def find_download(self) -> "Handle | None":
        """The download of a model that the task waits for now; None if it waits for none."""
        if self.task().queue_state is not QueueState.BLOCKED:
            return None
        parents = self._client.explain(self.id).details.get("parents", [])
        ids = (
            uuid.UUID(parent["id"])
            for parent in parents
            if parent["type"] == DOWNLOAD.name and not Status(parent["status"]).is_final
        )
        found = next(ids, None)
        return None if found is None else Handle(self._client, found)

    def _complete(self, timeout: float | None) -> Task:
        """Wait for the end and return the record, if the task completed."""
        task = self.wait(timeout)
        if task.status is Status.COMPLETED:
            return task
        error = task.error
        raise TaskEndedError(
            task.id, task.status, error.code if error else task.status, error.message if error else "cancelled"
        )

    def _read(self, after: str, wait_seconds: float) -> list[Event]:
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
