"""An agent takes its own tasks: the most urgent first, under the same lease, retries and events as for a worker's."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bitinglip.client import Client, TakenTask
from bitinglip.domain.task import QueueState, Status
from bitinglip.errors import InvalidRequestError, LeaseLostError, TaskNotFoundError
from bitinglip.lifecycle.rescue import rescue
from bitinglip.lifecycle.waiting import expire_overdue, wake_due
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.streams.transitions import Transition, listen_transitions
from tests.conftest import eventually
from tests.factories import dispatch, execute, read, read_outcomes

CHANNEL = "1" * 18
SHORT = 0.001
"""A lease that PostgreSQL has outlived."""


def submit(client: Client, title: str = "Minutes", **fields: Any) -> uuid.UUID:
    return client.submit("agent", agent=fields.pop("agent", "bot"), title=title, **fields).id


def take(client: Client, **options: Any) -> TakenTask:
    taken = client.next("bot", 0, **options)
    assert taken is not None
    return taken


def lose(database: Database, taken: TakenTask) -> None:
    """Let the lease run out and the task go to others."""
    execute(database, "UPDATE workers SET lease_expires_at = now() - interval '1 s' WHERE id = :id", id=taken.token)
    assert len(rescue(database, lease_seconds=SHORT)) == 1


def test_tasks_are_taken_by_priority_and_then_in_order(client: Client) -> None:
    tasks = {title: submit(client, title, priority=title.split()[0]) for title in ("low", "high 1", "high 2", "medium")}
    submit(client, "other", agent="other", priority="critical")
    client.submit("echo", agent="bot", priority="critical")

    taken = [take(client) for _ in tasks]

    assert [one.task.title for one in taken] == ["high 1", "high 2", "medium", "low"]
    assert client.next("bot", 0) is None


def test_a_channels_tasks_are_taken_alone(client: Client) -> None:
    submit(client, "elsewhere", priority="critical")
    submit(client, "here", channel=CHANNEL)

    assert take(client, channel=CHANNEL).task.title == "here"
    assert client.next("bot", 0, channel=CHANNEL) is None


def test_a_taken_task_has_its_payload_and_is_completed_once(client: Client, database: Database) -> None:
    task = submit(client, payload={"meeting": 17}, description="As usual")
    taken = take(client)
    assert (taken.id, taken.task.payload, taken.task.description) == (task, {"payload": {"meeting": 17}}, "As usual")
    assert client.get(task).status is Status.IN_PROGRESS

    taken.complete({"text": "done"})

    assert client.handle(task).result(timeout=1) == {"text": "done"}
    assert read_outcomes(database, task) == [(1, "completed")]
    with pytest.raises(LeaseLostError):
        taken.complete({"text": "again"})
    assert client.get(task).result == {"text": "done"}
    assert execute(database, "SELECT state FROM workers") == [("gone",)]


def test_completing_again_after_a_lost_answer_says_that_it_is_recorded(client: Client, database: Database) -> None:
    task = submit(client)
    taken = take(client)
    taken.complete({"text": "done"})

    taken.complete({"text": "done"})

    assert read_outcomes(database, task) == [(1, "completed")]


def test_a_waiting_taker_is_given_nothing(client: Client, database: Database) -> None:
    submit(client)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.next, "other", 0.5)
        eventually(lambda: execute(database, "SELECT FROM workers WHERE state = 'pulling'"))
        assert dispatch(database) == []
        assert waiting.result() is None


def test_ten_takers_at_once_share_the_tasks(urls: ServerUrls, client: Client) -> None:
    tasks = {submit(client, str(n)) for n in range(30)}

    def work(_: int) -> list[uuid.UUID]:
        done = []
        with Client(*urls, connections=1) as own:
            while (taken := own.next("bot", 0)) is not None:
                taken.complete()
                done.append(taken.id)
        return done

    with ThreadPoolExecutor(10) as threads:
        done = [task for some in threads.map(work, range(10)) for task in some]

    assert len(done) == 30
    assert set(done) == tasks


def test_a_waiting_taker_gets_what_comes(client: Client) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.next, "bot", 20)
        task = submit(client)
        taken = waiting.result()

    assert taken is not None
    assert taken.id == task


def test_nothing_within_the_timeout_is_none_and_leaves_no_registration(client: Client, database: Database) -> None:
    began = time.monotonic()

    assert client.next("bot", 0.2) is None

    assert 0.2 <= time.monotonic() - began < 5
    assert execute(database, "SELECT count(*) FROM workers WHERE state <> 'gone'") == [(0,)]


def test_a_lost_lease_is_told_and_nothing_recorded(client: Client, database: Database) -> None:
    task = submit(client)
    first = take(client, lease_seconds=60)
    lose(database, first)
    second = take(client)

    words = "attempt 1 is no longer yours; stop working on it"
    with pytest.raises(LeaseLostError, match=words):
        first.complete({"text": "late"})
    with pytest.raises(LeaseLostError, match=words):
        first.fail("late")
    with pytest.raises(LeaseLostError, match=words):
        first.hand_back()
    with pytest.raises(LeaseLostError, match=words):
        first.keep(10)

    second.complete({"text": "right"})
    assert client.get(task).result == {"text": "right"}
    assert read_outcomes(database, task) == [(1, "lost"), (2, "completed")]


def test_a_task_is_kept_beyond_its_lease_until_its_process_lets_go(client: Client, database: Database) -> None:
    task = submit(client)
    taken = take(client, lease_seconds=1)
    until = time.monotonic() + 2.5

    def renewed_often() -> bool:
        assert rescue(database, lease_seconds=SHORT) == []
        return time.monotonic() > until

    eventually(renewed_often)
    assert client.get(task).status is Status.IN_PROGRESS
    taken.complete()
    assert read_outcomes(database, task) == [(1, "completed")]


def test_a_dead_takers_task_is_ready_again_when_its_lease_is_over(
    client: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = submit(client)
    monkeypatch.setattr(TakenTask, "keep_alive", lambda *_: None)
    take(client, lease_seconds=1)

    eventually(lambda: rescue(database, lease_seconds=SHORT))

    assert (read(database, task).queue_state, read(database, task).attempt) == (QueueState.READY, 2)
    assert read(database, task).failures == 0


def test_a_closed_client_keeps_nothing_alive(urls: ServerUrls, client: Client, database: Database) -> None:
    task = submit(client)
    with Client(*urls) as other:
        take(other, lease_seconds=1)

    eventually(lambda: rescue(database, lease_seconds=SHORT))

    assert read(database, task).queue_state is QueueState.READY


def test_a_block_that_ends_without_an_ending_hands_back(client: Client, database: Database) -> None:
    task = submit(client)
    with pytest.raises(ZeroDivisionError), take(client):
        raise ZeroDivisionError

    assert (read(database, task).queue_state, read(database, task).failures) == (QueueState.READY, 0)
    with take(client) as taken:
        taken.complete()
    assert read_outcomes(database, task) == [(1, "lost"), (2, "completed")]


def test_a_retryable_failure_is_followed_by_another_attempt_until_none_is_left(
    client: Client, database: Database
) -> None:
    task = submit(client)
    attempts = read(database, task).max_attempts
    for attempt in range(1, attempts + 1):
        taken = take(client)
        assert taken.task.attempt == attempt
        taken.fail("no answer", code="busy", retryable=True)
        if attempt < attempts:
            assert read(database, task).queue_state is QueueState.SCHEDULED
            assert client.next("bot", 0) is None
            execute(database, "UPDATE tasks SET not_before = now() - interval '1 s'")
            wake_due(database)

    record = read(database, task)
    assert record.error is not None
    assert (record.status, record.error.code, record.error.message) == (Status.FAILED, "busy", "no answer")
    assert [outcome for _, outcome in read_outcomes(database, task)] == ["retried"] * (attempts - 1) + ["failed"]


def test_a_failure_is_for_good_unless_it_is_said_to_be_retryable(client: Client) -> None:
    task = submit(client)
    take(client).fail("no such meeting")

    assert client.get(task).status is Status.FAILED


def test_a_cancelled_task_is_told_to_its_taker(client: Client) -> None:
    task = submit(client)
    taken = take(client)
    client.cancel([task])

    assert taken.keep(30)
    assert taken.cancelled
    taken.hand_back()
    assert client.get(task).status is Status.CANCELLED


def test_what_expired_scheduled_or_waits_for_others_is_not_taken(client: Client, database: Database) -> None:
    submit(client)
    execute(database, "UPDATE tasks SET expires_at = now() - interval '1 s'")
    assert client.next("bot", 0) is None
    expire_overdue(database)
    parent = client.submit("echo", agent="bot")
    submit(client, depends_on=[parent])
    submit(client, not_before=execute(database, "SELECT now() + interval '1 hour'")[0][0])

    assert client.next("bot", 0) is None


def test_another_process_goes_on_with_the_token(client: Client, urls: ServerUrls, database: Database) -> None:
    task = submit(client)
    token = take(client).token
    with Client(*urls) as other:
        with pytest.raises(LeaseLostError):
            other.taken(task, uuid.uuid4())
        with pytest.raises(InvalidRequestError, match="token: 'secret': is no token"):
            other.taken(task, "secret")
        with pytest.raises(TaskNotFoundError):
            other.taken(uuid.uuid4(), token)
        assert read(database, task).status is Status.IN_PROGRESS
        other.taken(str(task), str(token)).complete({"by": "the other"})

    assert client.get(task).result == {"by": "the other"}


def test_a_taker_that_was_paused_longer_than_its_lease_registers_again(client: Client, database: Database) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.next, "bot", 20, lease_seconds=1)
        (first,) = eventually(lambda: execute(database, "SELECT id FROM workers WHERE state = 'pulling'"))
        execute(database, "UPDATE workers SET state = 'gone'")
        task = submit(client)
        taken = waiting.result()

    assert taken is not None
    assert taken.token != first[0]
    assert rescue(database, lease_seconds=SHORT) == []
    taken.complete()
    assert read_outcomes(database, task) == [(1, "completed")]


@pytest.mark.parametrize(
    ("agent", "options", "words"),
    [
        ("", {}, "agent: '': too short"),
        ("a" * 101, {}, "agent: .*at most 100"),
        ("a\x00", {}, "agent: .*NUL"),
        ("bot", {"channel": "17"}, "channel: '17'"),
        ("bot", {"timeout": -1}, "timeout: -1"),
        ("bot", {"timeout": float("nan")}, "timeout: nan"),
        ("bot", {"lease_seconds": 0.5}, "lease_seconds: 0.5: .*1"),
        ("bot", {"lease_seconds": 86_401}, "lease_seconds: 86401: .*86400"),
    ],
)
def test_a_wish_that_nothing_can_meet_is_refused(
    client: Client, database: Database, agent: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        client.next(agent, **{"timeout": 0, **options})

    assert execute(database, "SELECT count(*) FROM workers") == [(0,)]


def test_an_ending_that_cannot_be_recorded_is_refused_and_the_task_stays_taken(client: Client) -> None:
    task = submit(client)
    taken = take(client)

    with pytest.raises(InvalidRequestError, match=r"result: .*JSON object"):
        taken.complete(["done"])  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=r"result: .*cannot be written as JSON"):
        taken.complete({"at": time})
    with pytest.raises(InvalidRequestError, match="message: 17"):
        taken.fail(17)  # type: ignore[arg-type]
    for seconds in (0.5, float("nan"), 100_000):
        with pytest.raises(InvalidRequestError, match="lease_seconds"):
            taken.keep(seconds)

    assert client.get(task).status is Status.IN_PROGRESS
    taken.complete()


@pytest.fixture
def heard(urls: ServerUrls, client: Client) -> Iterator[list[Transition]]:
    """What listeners hear from now on."""
    stop = threading.Event()
    found: list[Transition] = []
    transitions = listen_transitions(client.redis, stop=stop)
    thread = threading.Thread(target=lambda: found.extend(transitions))
    thread.start()
    yield found
    stop.set()
    thread.join()


def test_listeners_hear_of_each_step(client: Client, database: Database, heard: list[Transition]) -> None:
    task = submit(client)
    take(client).fail("busy", retryable=True)
    execute(database, "UPDATE tasks SET queue_state = 'ready'")
    take(client).complete({"text": "done"})

    eventually(lambda: len(heard) >= 5)
    assert [(one.event, one.status, one.attempt) for one in heard] == [
        ("queued", "pending", 1),
        ("started", "in_progress", 1),
        ("retried", "pending", 1),
        ("started", "in_progress", 2),
        ("finished", "completed", 2),
    ]
    events = [event.name for event in client.handle(task).stream()]
    assert events == ["queued", "started", "retried", "started", "text", "finished"]
