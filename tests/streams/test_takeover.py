"""A later attempt shuts the earlier ones out and goes on with their text, or says that it begins again."""

import socket
import time
import uuid

import pytest
import redis

from bitinglip.settings import ServerUrls
from bitinglip.streams.events import EventName, stream_key
from bitinglip.streams.reader import connect, read_events
from bitinglip.streams.takeover import MadeText, take_over
from bitinglip.streams.writer import AttemptEvents, EventWriter
from tests.conftest import eventually, flush_redis


@pytest.fixture
def task() -> uuid.UUID:
    return uuid.uuid4()


@pytest.fixture
def first(writer: EventWriter, task: uuid.UUID) -> AttemptEvents:
    """A first attempt that has begun."""
    events, made = writer.begin_attempt(task, 1, "bot", continues=True)
    assert made == []
    return events


def say(events: AttemptEvents, text: str) -> None:
    events.publish(EventName.TEXT, text=text, token_ids=list(map(ord, text)))


def list_ids(connection: "redis.Redis", task: uuid.UUID) -> list[str]:
    return [event.id for event in read_events(connection, task)]


def await_event(connection: "redis.Redis", task: uuid.UUID, event_id: str) -> None:
    eventually(lambda: event_id in list_ids(connection, task))


def take(connection: "redis.Redis", task: uuid.UUID, attempt: int = 2) -> MadeText | None:
    return take_over(connection, task, attempt, started={"attempt": attempt})


def test_the_text_so_far_is_what_readers_have_seen(
    first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID
) -> None:
    say(first, "one ")
    first.publish(EventName.PROGRESS, fraction=0.5)
    say(first, "two")
    await_event(connection, task, "1-4")

    assert take(connection, task) == MadeText(list(map(ord, "one two")), 7)


def test_a_zombies_events_are_refused_once_the_stream_is_taken_over(
    first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID, writer: EventWriter
) -> None:
    say(first, "one ")
    await_event(connection, task, "1-2")

    made = take(connection, task)
    say(first, "late")
    first.publish(EventName.FINISHED, status="completed")
    writer.close()

    assert made == MadeText(list(map(ord, "one ")), 4)
    assert list_ids(connection, task) == ["1-1", "1-2", "2-1"]


def test_the_stream_is_shut_before_it_is_read(
    first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    execute = redis.client.Pipeline.execute

    def spy(pipeline: "redis.client.Pipeline", raise_on_error: bool = True) -> object:
        sent.extend(str(command[0][0]) for command in pipeline.command_stack)
        return execute(pipeline, raise_on_error)

    await_event(connection, task, "1-1")
    monkeypatch.setattr(redis.client.Pipeline, "execute", spy)
    take(connection, task)

    assert sent == ["XADD", "EXPIRE", "XRANGE"]


def test_no_text_yet_is_continued_from_its_beginning(
    first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID
) -> None:
    first.publish(EventName.PROGRESS, fraction=0.5)
    await_event(connection, task, "1-2")

    assert take(connection, task) == MadeText([], 0)


def test_text_without_tokens_cannot_be_continued(
    first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID
) -> None:
    say(first, "one ")
    first.publish(EventName.TEXT, text="two", token_ids=[])
    await_event(connection, task, "1-3")

    assert take(connection, task) is None


def test_text_with_a_hole_cannot_be_continued(first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID) -> None:
    for word in ("one ", "two ", "three"):
        say(first, word)
    await_event(connection, task, "1-4")
    connection.xdel(stream_key(task), "1-3")

    assert take(connection, task) is None


@pytest.mark.parametrize("lost", ["everything", "the beginning"])
def test_text_without_its_beginning_cannot_be_continued(
    first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID, lost: str
) -> None:
    for word in ("one ", "two "):
        say(first, word)
    await_event(connection, task, "1-3")
    connection.xtrim(stream_key(task), maxlen=0 if lost == "everything" else 2, approximate=False)

    assert take(connection, task) is None


def test_a_task_that_ended_and_was_brought_back_begins_again(
    first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID
) -> None:
    say(first, "one ")
    first.publish(EventName.FINISHED, status="failed")
    await_event(connection, task, "1-3")

    assert take(connection, task) is None


def test_a_third_attempt_goes_on_after_both_before_it(
    first: AttemptEvents, writer: EventWriter, connection: "redis.Redis", task: uuid.UUID
) -> None:
    say(first, "one ")
    await_event(connection, task, "1-2")
    second, made = writer.begin_attempt(task, 2, "bot", continues=True)
    assert made == list(map(ord, "one "))
    say(second, "two ")
    await_event(connection, task, "2-3")
    third, made = writer.begin_attempt(task, 3, "bot", continues=True)
    assert made == list(map(ord, "one two "))
    say(third, "three")
    await_event(connection, task, "3-3")

    assert [(event.id, event.name) for event in read_events(connection, task)] == [
        ("1-1", "started"),
        ("1-2", "text"),
        ("2-1", "started"),
        ("2-2", "resumed"),
        ("2-3", "text"),
        ("3-1", "started"),
        ("3-2", "resumed"),
        ("3-3", "text"),
    ]


def test_what_an_attempt_goes_on_after_must_be_what_is_there(
    first: AttemptEvents, writer: EventWriter, connection: "redis.Redis", task: uuid.UUID
) -> None:
    say(first, "one ")
    say(first, "two ")
    await_event(connection, task, "1-3")
    writer.begin_attempt(task, 2, "bot", continues=True)
    await_event(connection, task, "2-2")
    # As a Redis that lost what it wrote last.
    connection.xdel(stream_key(task), "1-3")

    assert take(connection, task, 3) is None


def test_only_the_text_since_the_last_restart_counts(
    first: AttemptEvents, writer: EventWriter, connection: "redis.Redis", task: uuid.UUID
) -> None:
    first.publish(EventName.TEXT, text="no tokens")
    await_event(connection, task, "1-2")
    second, made = writer.begin_attempt(task, 2, "bot", continues=True)
    assert made == []
    say(second, "two ")
    await_event(connection, task, "2-3")

    assert take(connection, task, 3) == MadeText(list(map(ord, "two ")), 4)
    assert [event.name for event in read_events(connection, task, after="2-0")][:3] == ["started", "restart", "text"]


def test_an_engine_that_cannot_continue_begins_again(
    first: AttemptEvents, writer: EventWriter, connection: "redis.Redis", task: uuid.UUID
) -> None:
    say(first, "one ")
    await_event(connection, task, "1-2")

    _, made = writer.begin_attempt(task, 2, "bot", continues=False)

    assert made == []
    await_event(connection, task, "2-2")
    assert read_events(connection, task)[-1].name is EventName.RESTART


def test_an_attempt_that_a_later_one_has_overtaken_takes_nothing(
    first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID
) -> None:
    say(first, "one ")
    await_event(connection, task, "1-2")
    assert take(connection, task, 3) == MadeText(list(map(ord, "one ")), 4)

    assert take(connection, task, 2) is None
    assert list_ids(connection, task) == ["1-1", "1-2", "3-1"]


def test_a_stream_that_was_wiped_expires_after_a_takeover(
    first: AttemptEvents, connection: "redis.Redis", task: uuid.UUID, urls: ServerUrls
) -> None:
    await_event(connection, task, "1-1")
    flush_redis(urls)

    assert take(connection, task) is None
    assert list_ids(connection, task) == ["2-1"]
    assert connection.ttl(stream_key(task)) > 0


def test_a_redis_that_does_not_answer_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        deaf = connect(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_seconds=0.3)
        gone = connect("redis://127.0.0.1:1/0")
        began = time.monotonic()

        assert take(deaf, uuid.uuid4()) is None
        assert take(gone, uuid.uuid4()) is None

        assert time.monotonic() - began < 3
        deaf.close()
        gone.close()
