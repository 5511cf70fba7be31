"""The facade does what it says to records, or says why not and leaves them as they are."""

import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import bitinglip
from bitinglip.client import Client, TaskManager
from bitinglip.domain.task import QueueState, Status, Task
from bitinglip.errors import ConflictError, InvalidRequestError, LimitExceededError, TaskNotFoundError
from bitinglip.lifecycle.waiting import settle
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.streams.transitions import Transition, listen_transitions
from tests.conftest import eventually
from tests.factories import execute, finish, make_echo, make_running, make_worker, read
from tests.factories import submit as submit_requests

FAILURE = {"code": "boom", "message": "it broke", "retryable": False}
NOBODY = "01890a5d-ac96-774b-bcce-b302099a8057"
CHANNEL = "1" * 18


@pytest.fixture
def tasks(urls: ServerUrls) -> Iterator[TaskManager]:
    with TaskManager(*urls) as opened:
        yield opened


@pytest.fixture
def told(tasks: TaskManager, monkeypatch: pytest.MonkeyPatch) -> list[tuple[uuid.UUID, str | None]]:
    """What was announced: the task and the transition, None where its status says it."""
    heard: list[tuple[uuid.UUID, str | None]] = []

    def hear(changes: Any, event: str | None = None) -> None:
        heard.extend((change.task_id, event) for change in changes)

    monkeypatch.setattr(tasks._client.events, "announce_changes", hear)
    return heard


def make(tasks: TaskManager, **fields: Any) -> Task:
    return tasks.create("echo", **fields)


def make_ended(database: Database, outcome: str = "completed") -> Task:
    worker = make_worker(database, outcome)
    doorbell = make_running(database, worker)
    finish(database, worker, doorbell, outcome, error=None if outcome == "completed" else FAILURE)
    return read(database, doorbell)


def test_the_package_offers_it() -> None:
    assert bitinglip.TaskManager is TaskManager
    assert bitinglip.TakenTask.__name__ == "TakenTask"


def test_a_task_is_created_read_and_listed(tasks: TaskManager) -> None:
    first = make(tasks, text="a", agent="bot", channel=CHANNEL, priority="high", metadata={"ticket": 17})
    second = make(tasks, text="b", agent="bot")
    third = make(tasks, text="c")

    assert (first.status, first.payload, first.metadata) == (Status.PENDING, {"text": "a"}, {"ticket": 17})
    assert tasks.get(str(first.id)) == first
    assert tasks.list() == [third, second, first]
    assert tasks.list(agent_id="bot") == [second, first]
    assert tasks.list(channel_id=CHANNEL, statuses=["pending"], priorities=["high"]) == [first]
    assert tasks.list(metadata={"ticket": 17}) == [first]
    assert tasks.list(statuses=[Status.FAILED], error_code="boom") == []
    assert tasks.list(since=datetime.now(UTC) + timedelta(hours=1)) == []
    assert tasks.list(limit=1, before_seq=third.seq, type_="echo") == [second]


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"statuses": ["done"]}, "statuses.0: 'done'"),
        ({"statuses": "failed"}, "statuses: 'failed'"),
        ({"agent": "bot"}, "agent: 'bot': no such field"),
        ({"agent_id": "a\x00"}, "agent_id: .*NUL"),
        ({"metadata": {"a": {1, 2}}}, "metadata: .*cannot be written as JSON"),
        ({"since": datetime(2026, 1, 1)}, "since: .*timezone"),  # noqa: DTZ001
        ({"before_seq": 2**63}, "before_seq: "),
        ({"limit": 0}, "limit: 0: 1 to 1,000"),
        ({"limit": 1_001}, "limit: 1001"),
    ],
)
def test_a_bad_filter_is_named(tasks: TaskManager, filters: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        tasks.list(**filters)


def test_an_update_returns_the_record_and_is_told(tasks: TaskManager, told: list[Any]) -> None:
    task = make(tasks, metadata={"a": 1})

    changed = tasks.update(task.id, title="New", priority="critical", metadata={"b": 2})

    assert (changed.title, changed.priority, changed.metadata) == ("New", "critical", {"a": 1, "b": 2})
    assert told == [(task.id, "updated")]


def test_a_refused_update_changes_nothing(tasks: TaskManager, database: Database, told: list[Any]) -> None:
    waiting, ended = make(tasks, agent="bot"), make_ended(database)
    execute(database, "UPDATE agents SET max_priority = 'medium' WHERE id = 'bot'")
    for task, fields, error in (
        (waiting, {"status": "completed", "title": "New"}, InvalidRequestError),
        (waiting, {"result": {}, "title": "New"}, InvalidRequestError),
        (waiting, {"priority": "high", "title": "New"}, LimitExceededError),
        (ended, {"priority": "high", "title": "New"}, ConflictError),
        (ended, {"status": "pending"}, InvalidRequestError),
    ):
        with pytest.raises(error):
            tasks.update(task.id, **fields)
    with pytest.raises(TaskNotFoundError):
        tasks.update(NOBODY, title="New")

    assert [tasks.get(task.id) for task in (waiting, ended)] == [waiting, ended]
    assert told == []


def test_a_soft_delete_cancels_and_keeps_the_record(tasks: TaskManager, told: list[Any]) -> None:
    task = make(tasks)

    tasks.delete(task.id)

    assert tasks.get(task.id).status is Status.CANCELLED
    assert told == [(task.id, None)]


def test_a_running_task_is_cancelled_by_its_worker(tasks: TaskManager, database: Database) -> None:
    worker = make_worker(database)
    doorbell = make_running(database, worker)

    cancelled = tasks.cancel(doorbell.task_id)

    assert cancelled.status is Status.IN_PROGRESS
    assert cancelled.cancel_requested_at is not None


def test_a_hard_delete_leaves_nothing(tasks: TaskManager, database: Database, told: list[Any]) -> None:
    waiting, ended = make(tasks), make_ended(database)

    tasks.delete(waiting.id, hard=True)
    tasks.delete(ended.id, hard=True)

    assert tasks.list() == []
    assert told == [(waiting.id, "deleted"), (ended.id, "deleted")]


@pytest.mark.parametrize("method", ["get", "cancel", "retry", "delete"])
@pytest.mark.parametrize("unknown", [NOBODY, "17"])
def test_a_task_that_nobody_knows_is_not_found(tasks: TaskManager, method: str, unknown: str) -> None:
    with pytest.raises(TaskNotFoundError, match=unknown):
        getattr(tasks, method)(unknown)
    with pytest.raises(TaskNotFoundError, match=unknown):
        tasks.delete(unknown, hard=True)


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
def test_what_has_ended_is_not_cancelled(tasks: TaskManager, database: Database, outcome: str) -> None:
    ended = make_ended(database, outcome)

    for change in (tasks.cancel, tasks.delete):
        with pytest.raises(ConflictError, match=f"it is {outcome} already"):
            change(ended.id)

    assert tasks.get(ended.id) == ended


def test_only_failed_tasks_are_retried(tasks: TaskManager, database: Database, told: list[Any]) -> None:
    waiting, failed = make(tasks), make_ended(database, "failed")
    others = [waiting, make_ended(database, "completed"), make_ended(database, "cancelled")]
    for other in others:
        with pytest.raises(ConflictError, match=f"it is {other.status}; only failed tasks are tried again"):
            tasks.retry(other.id)
    assert [tasks.get(other.id) for other in others] == others
    assert told == []

    retried = tasks.retry(failed.id)

    assert (retried.status, retried.queue_state, retried.attempt) == (Status.PENDING, QueueState.READY, 2)
    assert told == [(failed.id, "ready")]


def test_what_runs_or_is_waited_for_is_not_deleted_for_good(tasks: TaskManager, database: Database) -> None:
    running = read(database, make_running(database, make_worker(database)))
    parent = make(tasks)
    child = make(tasks, depends_on=[parent.id])

    with pytest.raises(ConflictError, match="it runs; cancel it, and delete it when it has ended"):
        tasks.delete(running.id, hard=True)
    with pytest.raises(ConflictError, match="others wait for it; delete them with it, or cancel it and try again"):
        tasks.delete(parent.id, hard=True)
    assert [task.status for task in (tasks.get(running.id), tasks.get(parent.id))] == ["in_progress", "pending"]

    tasks.cancel(parent.id)
    settle(database)
    tasks.delete(parent.id, hard=True)
    assert tasks.get(child.id).status is Status.FAILED


def test_what_matches_is_cancelled_retried_and_deleted(tasks: TaskManager, database: Database, told: list[Any]) -> None:
    ours = [make(tasks, agent="bot").id for _ in range(3)]
    other = make(tasks, agent="other")
    failed = make_ended(database, "failed")
    done = make_ended(database)

    assert {change.task_id for change in tasks.cancel_matching(agent_id="bot")} == set(ours)
    assert tasks.cancel_matching(agent_id="bot") == []
    assert [change.task_id for change in tasks.retry_matching(error_code="boom")] == [failed.id]
    assert {change.task_id for change in tasks.delete_matching(agent_id="default")} == {failed.id, done.id}
    assert {change.task_id for change in tasks.delete_many([*ours, NOBODY])} == set(ours)
    assert tasks.list() == [other]
    assert [event for _, event in told] == [None] * 3 + ["ready"] + ["deleted"] * 5


def test_thousands_are_cancelled_in_batches(tasks: TaskManager, database: Database) -> None:
    submit_requests(database, *(make_echo(agent="bot") for _ in range(2_500)))

    assert len(tasks.cancel_matching(agent_id="bot", statuses=["pending"])) == 2_500
    assert len(tasks.delete_matching(statuses=["cancelled"])) == 2_500


def test_everything_is_never_meant_by_mistake(tasks: TaskManager) -> None:
    task = make(tasks)
    for change in (tasks.cancel_matching, tasks.retry_matching, tasks.delete_matching):
        with pytest.raises(InvalidRequestError, match="would mean every task"):
            change()
        with pytest.raises(InvalidRequestError, match="would mean every task"):
            change(agent_id=None, statuses=[])

    assert tasks.get(task.id) == task


def test_statistics_count(tasks: TaskManager, database: Database) -> None:
    make(tasks, agent="bot")
    make_ended(database)

    found = tasks.statistics()

    assert found["tasks"] == {"pending": 1, "completed": 1}
    assert (found["agents"], found["workers"], found["slots"]) == (2, 1, 8)


def test_health_tells_what_is_away(tasks: TaskManager, urls: ServerUrls, database: Database) -> None:
    assert tasks.check_health() == {"database": True, "redis": True, "workers": False}
    make_worker(database)
    assert tasks.check_health()["workers"]
    with TaskManager(urls.database_url, "redis://127.0.0.1:1/0") as lonely:
        assert lonely.check_health() == {"database": True, "redis": False, "workers": True}
        task = lonely.create("echo")
        lonely.update(task.id, title="New")
        lonely.delete(task.id, hard=True)


def test_a_change_reaches_those_who_listen(tasks: TaskManager, client: Client) -> None:
    stop = threading.Event()
    transitions = listen_transitions(client.redis, agent="bot", stop=stop)
    heard: list[Transition] = []
    thread = threading.Thread(target=lambda: heard.extend(transitions))
    thread.start()
    task = make(tasks, agent="bot")
    tasks.update(task.id, title="New")
    tasks.cancel(task.id)
    tasks.delete(task.id, hard=True)

    eventually(lambda: len(heard) == 4)
    stop.set()
    thread.join()
    assert [(one.event, one.status) for one in heard] == [
        ("queued", "pending"),
        ("updated", "pending"),
        ("finished", "cancelled"),
        ("deleted", "cancelled"),
    ]
