"""Every transition is told on one channel; nobody waits for it, and a listener outlives Redis' absences."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from bitinglip.domain.task import Status
from bitinglip.errors import RedisUnreachableError
from bitinglip.store.tasks import Change
from bitinglip.streams.events import EventName
from bitinglip.streams.reader import connect
from bitinglip.streams.transitions import (
    CHANNEL,
    Transition,
    TransitionName,
    decode_transitions,
    encode_queued,
    listen_transitions,
)
from bitinglip.streams.writer import EventWriter
from tests.conftest import eventually
from tests.worker.test_servers_away import OwnRedis

TASK = uuid.uuid4()


class Heard:
    """What a listener hears, in a thread of its own."""

    def __init__(self, client: "redis.Redis", *, agent: str | None) -> None:
        self.transitions: list[Transition] = []
        self.connections: list[bool] = []
        self._stop = threading.Event()
        stream = listen_transitions(client, agent=agent, stop=self._stop, on_connection=self.connections.append)
        self._thread = threading.Thread(target=lambda: self.transitions.extend(stream), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        assert not self._thread.is_alive()

    def names(self) -> list[str]:
        return [transition.event.value for transition in self.transitions]


Listen = Callable[..., Heard]


@pytest.fixture
def listen(connection: "redis.Redis") -> Iterator[Listen]:
    with open_listeners(connection) as opened:
        yield opened


@contextmanager
def open_listeners(client: "redis.Redis") -> Iterator[Listen]:
    heard: list[Heard] = []

    def start(*, agent: str | None = None) -> Heard:
        heard.append(Heard(client, agent=agent))
        return heard[-1]

    yield start
    for one in heard:
        one.stop()


def make_transition(agent: str = "bot", event: TransitionName = TransitionName.UPDATED) -> Transition:
    return Transition(event, TASK, agent, Status.PENDING, 1)


def test_an_attempts_transitions_are_told_with_its_events(listen: Listen, writer: EventWriter) -> None:
    heard = listen()
    error = {"code": "boom", "message": "it broke", "retryable": True}
    first, _ = writer.begin_attempt(TASK, 1, "bot", continues=True)
    first.publish(EventName.TEXT, text="one ")
    first.publish(EventName.PROGRESS, fraction=0.5)
    first.publish(EventName.RETRIED, attempt=1, error=error)
    second, _ = writer.begin_attempt(TASK, 2, "bot", continues=True)
    second.publish(EventName.RELEASED, attempt=2, error=None)
    third, _ = writer.begin_attempt(TASK, 3, "bot", continues=True)
    third.publish(EventName.FINISHED, status="failed", error=error)
    eventually(lambda: len(heard.transitions) == 6)

    assert heard.transitions == [
        Transition(TransitionName.STARTED, TASK, "bot", Status.IN_PROGRESS, 1),
        Transition(TransitionName.RETRIED, TASK, "bot", Status.PENDING, 1, "boom"),
        Transition(TransitionName.STARTED, TASK, "bot", Status.IN_PROGRESS, 2),
        Transition(TransitionName.RELEASED, TASK, "bot", Status.PENDING, 2),
        Transition(TransitionName.STARTED, TASK, "bot", Status.IN_PROGRESS, 3),
        Transition(TransitionName.FINISHED, TASK, "bot", Status.FAILED, 3, "boom"),
    ]


def test_many_queued_tasks_are_told_in_few_messages_and_heard_one_by_one(listen: Listen, writer: EventWriter) -> None:
    heard = listen()
    tasks = [uuid.uuid4() for _ in range(2_500)]

    messages = list(encode_queued("bot", tasks))
    assert len(messages) == 3
    assert max(map(len, messages)) < 100_000
    writer.announce_queued("bot", tasks)
    eventually(lambda: len(heard.transitions) == 2_500)

    assert [transition.task_id for transition in heard.transitions] == tasks
    assert heard.transitions[0] == Transition(TransitionName.QUEUED, tasks[0], "bot", Status.PENDING, 1)


@pytest.mark.parametrize(
    ("status", "attempt", "name"),
    [
        ("cancelled", 1, "finished"),
        ("failed", 1, "finished"),
        ("in_progress", 1, "cancelling"),
        ("pending", 1, "ready"),
        ("pending", 2, "released"),
    ],
)
def test_a_change_is_named_by_what_became_of_the_task(
    listen: Listen, writer: EventWriter, status: str, attempt: int, name: str
) -> None:
    heard = listen()
    writer.announce_changes([Change(TASK, "bot", status, attempt, "why")])
    writer.announce_changes([Change(TASK, "bot", status, attempt)], TransitionName.DELETED)
    eventually(lambda: len(heard.transitions) == 2)

    assert heard.transitions[0] == Transition(TransitionName(name), TASK, "bot", Status(status), attempt, "why")
    assert heard.transitions[1].event is TransitionName.DELETED


def test_a_listener_hears_one_agents(listen: Listen, writer: EventWriter) -> None:
    heard = listen(agent="bot")
    writer.announce(make_transition("other"))
    writer.announce(make_transition("bot"))
    eventually(lambda: heard.transitions)

    assert [transition.agent_id for transition in heard.transitions] == ["bot"]


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        b"[]",
        b"{}",
        b'{"event": "queued"}',
        b'{"event": "sang", "task_id": "01890a5d-ac96-774b-bcce-b302099a8057", "agent_id": "a", "status": "pending"}',
        b'{"event": "queued", "task_id": 1, "agent_id": "a", "status": "pending", "attempt": 1}',
    ],
)
def test_a_message_that_is_none_of_ours_is_skipped(message: bytes) -> None:
    assert decode_transitions(message) == []


def test_a_listener_goes_on_when_its_connection_is_cut(
    listen: Listen, writer: EventWriter, connection: "redis.Redis"
) -> None:
    heard = listen()
    connection.client_kill_filter(_type="pubsub")
    eventually(lambda: heard.connections == [False, True])
    writer.announce(make_transition())
    eventually(lambda: heard.transitions)

    assert heard.names() == ["updated"]


def test_a_listener_outlives_a_restart_of_redis(own_redis: OwnRedis) -> None:
    client = connect(own_redis.url)
    writer = EventWriter(client, keep_seconds=60)
    with open_listeners(client) as listen:
        heard = listen()
        own_redis.kill()
        eventually(lambda: heard.connections == [False])
        own_redis.start()
        eventually(lambda: heard.connections == [False, True])
        writer.announce(make_transition())
        eventually(lambda: heard.transitions)
    writer.close()
    client.close()


def test_a_listener_that_cannot_begin_says_so() -> None:
    client = connect("redis://:hunter2@127.0.0.1:1/0")
    with pytest.raises(RedisUnreachableError, match=r"127.0.0.1:1/0") as e:
        listen_transitions(client)

    assert "hunter2" not in str(e.value)
    client.close()


def test_a_listener_that_ends_leaves_no_subscription(listen: Listen, connection: "redis.Redis") -> None:
    heard = listen()
    assert connection.pubsub_numsub(CHANNEL)[0][1] == 1
    heard.stop()

    eventually(lambda: connection.pubsub_numsub(CHANNEL)[0][1] == 0)
