"""Downloads and tasks that need a model, and what is registered of it."""

import uuid
from typing import Any

from bitinglip.domain.models import CopyState, Manifest, ModelFile, ModelSource
from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.settings import TaskSettings
from bitinglip.store.copies import note_copy
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelCopy, ModelEntry, ModelRecord, describe_entry, insert_entry, list_entries
from bitinglip.store.queues import Reservation, reserve_tasks
from bitinglip.store.tasks import Doorbell
from tests.factories import execute, make_worker

MODEL = "org/name"
COMMIT = "ab" * 20
FILE = ModelFile("model.safetensors", 1_000, sha256="cd" * 32)
ERROR = {"code": "gated_model", "message": "model 'org/name' is gated: ask for access", "retryable": False}
SETTINGS = TaskSettings()


def make_download(model: str = MODEL, **fields: Any) -> TaskRequest:
    return make_request("download", {"model": model}, **fields)


def make_text(model: str = MODEL, **fields: Any) -> TaskRequest:
    return make_request("text", {"prompt": "Hello"}, model=model, **fields)


def submit(database: Database, *requests: TaskRequest) -> list[uuid.UUID]:
    return submit_tasks(database, requests, SETTINGS)


def make_puller(database: Database, *patterns: str, name: str = "gpu", **fields: Any) -> uuid.UUID:
    """A worker that does texts and may have models fetched."""
    return make_worker(database, name, kinds=["text"], pool=name, pulls=patterns, **fields)


def make_fetcher(database: Database) -> uuid.UUID:
    return make_worker(database, "io", kinds=["download"], pool="io", slots=3)


def store(database: Database, name: str = MODEL, state: CopyState = CopyState.AVAILABLE, done: int = 1_000) -> None:
    """Let a node have, or fetch, a copy of a model."""
    with database.transaction() as connection:
        insert_entry(connection, ModelRecord(name, ModelSource.HUB, repo=name))
        record = ModelRecord(name, ModelSource.HUB, manifest=Manifest(COMMIT, (FILE,)), context_tokens=128)
        describe_entry(connection, record)
        note_copy(connection, ModelCopy(name, "node", state, "/models", COMMIT, done))


def entry_of(database: Database, name: str = MODEL) -> ModelEntry:
    with database.transaction() as connection:
        (entry,) = list_entries(connection, [name])
    return entry


def begin(database: Database, worker: uuid.UUID, task: uuid.UUID) -> Doorbell:
    """Let a worker run a task that is recorded."""
    bell = Doorbell(task, 1)
    with database.transaction() as connection:
        assert reserve_tasks(connection, [Reservation(task, worker, 0.0)]) == {task}
    assert claim_reserved(database, [bell], worker)[0] is not None
    return bell


def list_downloads(database: Database) -> list[uuid.UUID]:
    return [row.id for row in execute(database, "SELECT id FROM tasks WHERE type = 'download' ORDER BY seq")]
