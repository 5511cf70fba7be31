"""Where a registered model stands follows from its copies, its download task and whether it is to go."""

import uuid
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bitinglip.domain.models import CopyState, Manifest, ModelFile, ModelSource, ModelStatus
from bitinglip.store.copies import Node, delete_copy, delete_lost_copies, note_copy, note_node, use_copies
from bitinglip.store.database import Database
from bitinglip.store.entries import (
    STALE_SECONDS,
    ModelCopy,
    ModelEntry,
    ModelRecord,
    delete_entry,
    delete_removed,
    describe_entry,
    insert_entry,
    is_removing,
    list_entries,
    list_users,
    note_error,
    set_download_task,
    set_pinned,
    set_removing,
)
from bitinglip.store.models import ModelSize, note_sizes
from tests.factories import execute, finish, make_echo, make_running, make_worker, submit

COMMIT = "c" * 40
MANIFEST = Manifest(COMMIT, (ModelFile("model.safetensors", 100, sha256="a" * 64),))
RECORD = ModelRecord("org/name", ModelSource.HUB, "text", "org/name", manifest=MANIFEST, tags=("tiny",))


def register(database: Database, *states: CopyState, task_id: uuid.UUID | None = None) -> None:
    """The model, with a copy of each of these states on a node of its own."""
    with database.transaction() as connection:
        assert insert_entry(connection, RECORD)
        for number, state in enumerate(states):
            note_copy(connection, ModelCopy(RECORD.name, f"node-{number}", state, "/models", COMMIT, 40))
        if task_id is not None:
            set_download_task(connection, RECORD.name, task_id)


def find(database: Database) -> ModelEntry:
    with database.transaction() as connection:
        (entry,) = list_entries(connection, [RECORD.name])
    return entry


def age(database: Database) -> None:
    """Let nobody have said anything of any copy for too long."""
    execute(database, "UPDATE model_copies SET updated_at = now() - make_interval(secs => :age)", age=STALE_SECONDS + 1)


def end_task(database: Database, worker: uuid.UUID, outcome: str) -> uuid.UUID:
    doorbell = make_running(database, worker)
    error = {"code": "e", "message": "m", "retryable": False} if outcome == "failed" else None
    assert finish(database, worker, doorbell, outcome, error=error)
    return doorbell.task_id


def need_model(database: Database, *tasks: uuid.UUID) -> None:
    """Let tasks need the model."""
    execute(database, "UPDATE tasks SET model = :model WHERE id = ANY(:ids)", model=RECORD.name, ids=list(tasks))


def test_what_a_task_waits_to_fetch_is_queued(database: Database) -> None:
    register(database, task_id=submit(database, make_echo())[0])
    assert find(database).status is ModelStatus.QUEUED


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([], ModelStatus.DOWNLOADING),
        ([CopyState.DOWNLOADING], ModelStatus.DOWNLOADING),
        ([CopyState.DAMAGED], ModelStatus.DOWNLOADING),
        ([CopyState.DOWNLOADING, CopyState.VERIFYING], ModelStatus.VERIFYING),
        ([CopyState.VERIFYING, CopyState.AVAILABLE], ModelStatus.AVAILABLE),
    ],
)
def test_what_a_task_fetches_stands_where_its_furthest_copy_does(
    database: Database, states: Sequence[CopyState], status: ModelStatus
) -> None:
    register(database, *states, task_id=make_running(database, make_worker(database)).task_id)
    assert find(database).status is status


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_what_a_task_could_not_fetch_has_failed(database: Database, outcome: str) -> None:
    register(database, CopyState.DAMAGED, task_id=end_task(database, make_worker(database), outcome))
    assert find(database).status is ModelStatus.FAILED


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (CopyState.DOWNLOADING, ModelStatus.DOWNLOADING),
        (CopyState.VERIFYING, ModelStatus.VERIFYING),
        (CopyState.DAMAGED, ModelStatus.FAILED),
        (CopyState.AVAILABLE, ModelStatus.AVAILABLE),
    ],
)
def test_without_a_task_the_copies_say_where_it_stands(
    database: Database, state: CopyState, status: ModelStatus
) -> None:
    register(database, state)
    assert find(database).status is status


@pytest.mark.parametrize("state", [CopyState.DOWNLOADING, CopyState.VERIFYING])
def test_whoever_was_killed_at_it_leaves_no_model_that_is_fetched_for_ever(
    database: Database, state: CopyState
) -> None:
    register(database, state)
    age(database)
    assert find(database).status is ModelStatus.FAILED


def test_a_copy_is_available_however_long_ago_that_was_said(database: Database) -> None:
    register(database, CopyState.AVAILABLE)
    age(database)
    assert find(database).status is ModelStatus.AVAILABLE


def test_a_task_that_ended_says_nothing_of_a_model_that_is_there(database: Database) -> None:
    register(database, CopyState.AVAILABLE, task_id=end_task(database, make_worker(database), "failed"))
    assert find(database).status is ModelStatus.AVAILABLE


def test_what_is_to_go_is_removing_whatever_there_is_of_it(database: Database) -> None:
    register(database, CopyState.AVAILABLE, task_id=submit(database, make_echo())[0])
    with database.transaction() as connection:
        assert set_removing(connection, RECORD.name)
        assert is_removing(connection, RECORD.name)
        assert not delete_entry(connection, RECORD.name)
    assert find(database).status is ModelStatus.REMOVING
    with database.transaction() as connection:
        delete_copy(connection, RECORD.name, "node-0")
        assert delete_entry(connection, RECORD.name)
        assert list_entries(connection) == []


def test_only_what_is_to_go_and_is_nowhere_is_forgotten(database: Database) -> None:
    with database.transaction() as connection:
        for name, removing, has_copy in (("org/a", True, False), ("org/b", True, True), ("org/c", False, False)):
            insert_entry(connection, replace(RECORD, name=name))
            if removing:
                set_removing(connection, name)
            if has_copy:
                note_copy(connection, ModelCopy(name, "node", CopyState.AVAILABLE, "/models", COMMIT))
        assert delete_removed(connection) == ["org/a"]
        assert [entry.name for entry in list_entries(connection)] == ["org/b", "org/c"]


def test_a_record_is_read_as_it_was_written(database: Database) -> None:
    full = replace(
        RECORD,
        weight_bytes=1,
        parameters=2,
        dtype="BF16",
        architecture="LlamaForCausalLM",
        context_tokens=3,
        kv_bytes_per_token=4,
        licence="mit",
    )
    with database.transaction() as connection:
        assert insert_entry(connection, full)
        assert not insert_entry(connection, replace(full, licence="other"))
    assert find(database).record == full


def test_what_a_worker_knew_before_is_kept_when_the_model_is_registered(database: Database) -> None:
    with database.transaction() as connection:
        note_sizes(connection, [ModelSize(RECORD.name, weight_bytes=7, held_bytes=9)])
        assert list_entries(connection) == []
        assert insert_entry(connection, RECORD)
    entry = find(database)
    assert (entry.record.weight_bytes, entry.held_bytes) == (7, 9)


def test_what_becomes_known_is_added_and_nothing_is_forgotten_but_the_error(database: Database) -> None:
    register(database)
    with database.transaction() as connection:
        set_pinned(connection, RECORD.name, pinned=True)
        note_error(connection, RECORD.name, {"code": "c", "message": "m", "retryable": True})
        assert describe_entry(connection, ModelRecord(RECORD.name, ModelSource.HUB, dtype="F32"))
        assert not describe_entry(connection, ModelRecord("org/unknown", ModelSource.HUB))
    entry = find(database)
    assert entry.record == replace(RECORD, dtype="F32")
    assert entry.pinned
    assert entry.error is None


def test_a_use_is_noted_for_the_copy_and_for_the_model(database: Database) -> None:
    register(database, CopyState.AVAILABLE, CopyState.AVAILABLE)
    before = find(database)
    with database.transaction() as connection:
        use_copies(connection, "node-1", [RECORD.name, "org/unknown"])
    after = find(database)
    assert before.last_used_at is None
    assert after.last_used_at == after.copies[1].last_used_at
    assert after.copies[0] == before.copies[0]


def test_those_who_would_miss_a_model_are_named(database: Database) -> None:
    download = submit(database, make_echo())[0]
    register(database, CopyState.AVAILABLE, task_id=download)
    worker = make_worker(database, "one", models=[RECORD.name])
    make_worker(database, "gone", models=[RECORD.name], lease_seconds=0)
    running = make_running(database, worker, make_echo(agent="bot")).task_id
    waiting = submit(database, *(make_echo(agent=agent) for agent in ("bot", "bot", "other")))
    need_model(database, end_task(database, worker, "completed"), running, *waiting)

    with database.transaction() as connection:
        users = [tuple(user) for user in list_users(connection, RECORD.name)]

    assert users == [
        ("download", str(download), False, 1),
        ("task", "bot", False, 2),
        ("task", "bot", True, 1),
        ("task", "other", False, 1),
        ("worker", "one on node", True, 1),
    ]


def test_only_copies_on_nodes_that_are_gone_are_given_up(database: Database) -> None:
    register(database, *[CopyState.AVAILABLE] * 4)
    with database.transaction() as connection:
        for name in ("node-1", "node-2"):
            note_node(connection, Node(name, uuid.uuid4(), "/models", None, 1, 1))
    execute(database, "UPDATE nodes SET seen_at = now() - interval '1 hour' WHERE name = 'node-2'")
    with database.transaction() as connection:
        lost = delete_lost_copies(connection, RECORD.name, but="node-0")
    assert sorted(lost) == ["node-2", "node-3"]
    assert [copy.node for copy in find(database).copies] == ["node-0", "node-1"]
