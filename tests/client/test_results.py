"""A handle waits, streams and ends, whatever becomes of Redis: what the stream lacks is in the record."""

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from bitinglip.client import AsyncClient, Client, Handle
from bitinglip.domain.task import Status, make_request
from bitinglip.errors import DatabaseUnreachableError, ResultTimeoutError, TaskEndedError, TaskNotFoundError
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.streams.events import Event, EventName
from bitinglip.streams.reader import connect
from bitinglip.streams.writer import AttemptEvents, EventWriter
from tests.conftest import System, eventually, flush_redis
from tests.factories import execute, finish, make_echo, make_running, make_worker


@pytest.fixture
def writer(urls: ServerUrls) -> Iterator[EventWriter]:
    client = connect(urls.redis_url)
    opened = EventWriter(client, keep_seconds=60)
    yield opened
    opened.close()
    client.close()


class Attempt:
    """A task that runs until the test ends it."""

    def __init__(self, database: Database, client: Client, writer: EventWriter) -> None:
        self._database = database
        self._worker = make_worker(database)
        self._doorbell = make_running(database, self._worker, make_echo(text="one two"))
        self.handle = Handle(client, self._doorbell.task_id)
        self.events: AttemptEvents = writer.open_attempt(self._doorbell.task_id, 1, "default")
        self.events.publish(EventName.STARTED, attempt=1)

    def complete(self) -> None:
        assert finish(self._database, self._worker, self._doorbell, result={"text": "one two"})


@pytest.fixture
def attempt(database: Database, client: Client, writer: EventWriter) -> Attempt:
    return Attempt(database, client, writer)


def text_of(events: list[Event]) -> str:
    return "".join(event.data.get("text", "") for event in events)


def take(stream: Iterator[Event], name: EventName) -> Event:
    """The next event of that name."""
    return next(event for event in stream if event.name is name)


def test_a_stream_shows_everything_once_and_ends(attempt: Attempt) -> None:
    for word in ("one ", "two"):
        attempt.events.publish(EventName.TEXT, text=word)
    attempt.complete()
    attempt.events.publish(EventName.FINISHED, status="completed")

    events = list(attempt.handle.stream())

    assert [event.name for event in events] == ["queued", "started", "text", "text", "finished"]
    assert text_of(events) == "one two"
    assert [event.id for event in events] == ["0-1", "1-1", "1-2", "1-3", "1-4"]


def test_a_stream_is_resumed_after_the_last_event_seen(attempt: Attempt) -> None:
    for word in ("one ", "two"):
        attempt.events.publish(EventName.TEXT, text=word)
    attempt.complete()
    attempt.events.publish(EventName.FINISHED, status="completed")

    assert [event.id for event in attempt.handle.stream(after="1-2")] == ["1-3", "1-4"]


def test_a_stream_that_was_wiped_ends_from_the_record_without_repeating_text(
    attempt: Attempt, urls: ServerUrls
) -> None:
    attempt.events.publish(EventName.TEXT, text="one ")
    stream = attempt.handle.stream()
    seen = [take(stream, EventName.TEXT)]
    flush_redis(urls)
    attempt.complete()

    rest = list(stream)

    assert text_of(seen + rest) == "one two"
    assert rest[-1].name is EventName.FINISHED
    assert rest[-1].data["status"] == "completed"


def test_text_that_was_wiped_unread_is_read_from_the_record(attempt: Attempt, urls: ServerUrls) -> None:
    stream = attempt.handle.stream()
    take(stream, EventName.STARTED)
    for word in ("one ", "two"):
        attempt.events.publish(EventName.TEXT, text=word)
    eventually(lambda: attempt.handle._client.redis.xlen(f"bitinglip:events:{attempt.handle.id}") == 3)
    flush_redis(urls)
    attempt.complete()
    attempt.events.publish(EventName.FINISHED, status="completed")

    assert text_of(list(stream)) == "one two"


def test_a_stream_without_its_last_event_ends(attempt: Attempt) -> None:
    attempt.events.publish(EventName.TEXT, text="one two")
    attempt.complete()

    events = list(attempt.handle.stream())

    assert text_of(events) == "one two"
    assert events[-1].name is EventName.FINISHED


def test_a_stream_of_a_task_that_was_never_begun_ends_when_it_is_cancelled(client: Client) -> None:
    handle = client.submit("echo", agent="bot", priority="high")
    cancelling = threading.Timer(0.3, handle.cancel)
    cancelling.start()

    events = list(handle.stream())

    assert [(event.name, event.data.get("status")) for event in events] == [("queued", None), ("finished", "cancelled")]
    assert events[0].data == {"agent": "bot", "priority": "high"}
    cancelling.join()


def test_without_redis_a_stream_is_read_from_the_record(attempt: Attempt, urls: ServerUrls) -> None:
    attempt.complete()
    with Client(urls.database_url, "redis://127.0.0.1:1/0") as client:
        events = list(client.handle(attempt.handle.id).stream())

    assert [event.name for event in events] == ["queued", "text", "finished"]


def test_a_result_is_waited_for_no_longer_than_asked(attempt: Attempt) -> None:
    began = time.monotonic()

    with pytest.raises(ResultTimeoutError, match=r"has not ended within 0.3 s; it goes on"):
        attempt.handle.result(timeout=0.3)

    assert time.monotonic() - began < 3


def test_a_failed_task_says_why(client: Client, database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)
    finish(database, worker, doorbell, "failed", error={"code": "boom", "message": "it broke"})

    with pytest.raises(TaskEndedError, match=r"failed \(boom\): it broke"):
        client.handle(doorbell.task_id).result(timeout=1)


def test_a_task_that_nobody_knows_is_not_found(client: Client) -> None:
    for unknown in (uuid.uuid4(), "no-uuid"):
        with pytest.raises(TaskNotFoundError):
            client.handle(unknown)


def test_many_tasks_are_submitted_in_order(client: Client, database: Database) -> None:
    handles = client.submit_many(make_request("echo", {}, agent_id=f"bot-{n % 3}") for n in range(2_500))

    assert [handle.id for handle in handles] == [
        task for (task,) in execute(database, "SELECT id FROM tasks ORDER BY seq")
    ]
    assert client.submit_many([]) == []


def test_the_asyncio_client_does_the_same(system: System) -> None:
    async def use() -> None:
        async with AsyncClient(*system.urls) as client:
            handle = await client.submit("echo", text="hello", chunks=5)
            names = [event.name async for event in handle.stream()]
            assert names[0], names[-1] == (EventName.QUEUED, EventName.FINISHED)
            assert await handle.result(timeout=10) == {"text": "hello"}
            assert await handle.status() is Status.COMPLETED
            many = await client.submit_many(make_request("echo", {"text": str(n)}) for n in range(50))
            results = await asyncio.gather(*(one.result(timeout=20) for one in many))
            assert results == [{"text": str(n)} for n in range(50)]
            assert (await client.get(handle.id)).status is Status.COMPLETED
            cancelled = await (await client.handle((await client.submit("echo", seconds=60)).id)).cancel()
            assert cancelled

    asyncio.run(use())


def test_the_asyncio_client_is_refused_like_the_other() -> None:
    async def use() -> None:
        async with AsyncClient("postgresql://u:p@127.0.0.1:1/x", "redis://127.0.0.1:1/0"):
            pass

    with pytest.raises(DatabaseUnreachableError):
        asyncio.run(use())
