"""Events are numbered by attempt and sequence; a stream is a view that may be trimmed, wiped or out of reach."""

import threading
import time
import uuid

import pytest
import redis

from bitinglip.errors import RedisUnreachableError
from bitinglip.settings import ServerUrls
from bitinglip.streams.events import EventName, stream_key
from bitinglip.streams.reader import connect, read_events
from bitinglip.streams.writer import MAX_BACKLOG, MAX_EVENTS, EventWriter
from tests.conftest import eventually, flush_redis


def read_ids(connection: "redis.Redis", task: uuid.UUID, after: str = "0-0") -> list[str]:
    return [event.id for event in read_events(connection, task, after=after)]


def test_events_are_read_in_their_order_and_from_any_of_them_on(writer: EventWriter, connection: "redis.Redis") -> None:
    task = uuid.uuid4()
    events = writer.open_attempt(task, 1, "bot")
    events.publish(EventName.STARTED, attempt=1)
    for word in ("a", "b"):
        events.publish(EventName.TEXT, text=word)
    events.publish(EventName.FINISHED, status="completed")
    eventually(lambda: len(read_ids(connection, task)) == 4)

    assert read_ids(connection, task) == ["1-1", "1-2", "1-3", "1-4"]
    rest = read_events(connection, task, after="1-2")
    assert [(event.name, event.data) for event in rest] == [
        (EventName.TEXT, {"text": "b"}),
        (EventName.FINISHED, {"status": "completed"}),
    ]


def test_an_earlier_attempts_late_event_is_refused_by_redis(writer: EventWriter, connection: "redis.Redis") -> None:
    task = uuid.uuid4()
    zombie, heir = writer.open_attempt(task, 1, "bot"), writer.open_attempt(task, 2, "bot")
    zombie.publish(EventName.TEXT, text="early")
    heir.publish(EventName.TEXT, text="right")
    zombie.publish(EventName.TEXT, text="late")
    heir.publish(EventName.FINISHED, status="completed")
    eventually(lambda: "2-2" in read_ids(connection, task))

    assert [event.data.get("text") for event in read_events(connection, task)] == ["early", "right", None]


def test_threads_at_once_lose_no_event(writer: EventWriter, connection: "redis.Redis") -> None:
    tasks = [uuid.uuid4() for _ in range(8)]

    def publish(task: uuid.UUID) -> None:
        events = writer.open_attempt(task, 1, "bot")
        for number in range(300):
            events.publish(EventName.TEXT, text=str(number))

    threads = [threading.Thread(target=publish, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: all(connection.xlen(stream_key(task)) == 300 for task in tasks))

    for task in tasks:
        assert [event.data["text"] for event in read_events(connection, task)] == [str(n) for n in range(300)]


def test_a_stream_is_bounded(writer: EventWriter, connection: "redis.Redis") -> None:
    task = uuid.uuid4()
    events = writer.open_attempt(task, 1, "bot")
    for _ in range(MAX_EVENTS + 2_000):
        events.publish(EventName.PROGRESS, fraction=0)
    events.publish(EventName.FINISHED, status="completed")
    eventually(lambda: connection.xinfo_stream(stream_key(task))["last-generated-id"] == b"1-22001")

    assert MAX_EVENTS <= connection.xlen(stream_key(task)) <= MAX_EVENTS + 200


def test_a_stream_expires(writer: EventWriter, connection: "redis.Redis") -> None:
    running, ended = uuid.uuid4(), uuid.uuid4()
    writer.open_attempt(running, 1, "bot").publish(EventName.STARTED, attempt=1)
    events = writer.open_attempt(ended, 1, "bot")
    events.publish(EventName.STARTED, attempt=1)
    events.publish(EventName.FINISHED, status="completed")
    eventually(lambda: connection.xlen(stream_key(ended)) == 2)

    assert 0 < connection.ttl(stream_key(ended)) <= 77
    assert 77 < connection.ttl(stream_key(running)) <= 86_400


def test_a_stream_that_was_wiped_half_way_expires_too(
    writer: EventWriter, connection: "redis.Redis", urls: ServerUrls
) -> None:
    task = uuid.uuid4()
    events = writer.open_attempt(task, 1, "bot")
    events.publish(EventName.STARTED, attempt=1)
    eventually(lambda: read_ids(connection, task))
    flush_redis(urls)

    events.publish(EventName.TEXT, text="after")

    eventually(lambda: read_ids(connection, task) == ["1-2"])
    assert connection.ttl(stream_key(task)) > 0


def test_a_reader_waits_for_the_first_event(writer: EventWriter, connection: "redis.Redis") -> None:
    task = uuid.uuid4()
    later = threading.Timer(0.2, lambda: writer.open_attempt(task, 1, "bot").publish(EventName.STARTED, attempt=1))
    later.start()

    assert [event.name for event in read_events(connection, task, wait_seconds=5)] == [EventName.STARTED]
    later.join()


def test_without_redis_a_writer_drops_events_and_never_waits() -> None:
    client = connect("redis://127.0.0.1:1/0")
    writer = EventWriter(client, keep_seconds=60)
    events = writer.open_attempt(uuid.uuid4(), 1, "bot")

    began = time.monotonic()
    for _ in range(MAX_BACKLOG + 5_000):
        events.publish(EventName.TEXT, text="unheard")

    assert time.monotonic() - began < 5
    assert writer._thread.is_alive()
    writer._backlog.queue.clear()
    writer.close()
    client.close()


def test_a_writer_reports_lost_events_and_not_lost_announcements(capsys: pytest.CaptureFixture[str]) -> None:
    client = connect("redis://127.0.0.1:1/0")
    announcer, writer = EventWriter(client, keep_seconds=60), EventWriter(client, keep_seconds=60)
    announcer.announce_queued("bot", [uuid.uuid4()])
    announcer.close()
    assert capsys.readouterr() == ("", "")

    writer.open_attempt(uuid.uuid4(), 1, "bot").publish(EventName.STARTED, attempt=1)
    writer.close()
    assert "streams_unreachable" in "".join(capsys.readouterr())
    client.close()


def test_without_redis_a_reader_is_told_so_without_the_password() -> None:
    client = connect("redis://:hunter2@127.0.0.1:1/0")

    with pytest.raises(
        RedisUnreachableError, match=r"Redis at 127.0.0.1:1/0 cannot be used.*check BITINGLIP_REDIS_URL"
    ) as e:
        read_events(client, uuid.uuid4())

    assert "hunter2" not in str(e.value)
    client.close()


def test_a_wrong_password_is_named(urls: ServerUrls) -> None:
    client = connect(f"redis://:hunter2@{urls.redis_url.partition('@')[2]}")

    with pytest.raises(RedisUnreachableError, match="invalid username-password pair"):
        read_events(client, uuid.uuid4())
    client.close()
