"""Celery's own ways: a Celery task for each kind, and a result backend that reads the record.

`generate_text.delay("Hello", model="demo", agent="bot")` submits a task like any client, and returns an `AsyncResult`
whose id is the task's. In a worker the same Celery task is what a doorbell calls: id in, one lifecycle call.
"""

import uuid
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from celery import Task as CeleryTask
from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import Ignore, Reject, Retry
from celery.result import AsyncResult

from bitinglip.celery_app import DOORBELL_VERSION, app, task_name
from bitinglip.client import Client
from bitinglip.domain.catalogue import find_kinds, get_kind
from bitinglip.domain.task import Status, Task
from bitinglip.errors import InvalidRequestError, TaskEndedError, TaskNotFoundError
from bitinglip.lifecycle.outcome import Outcome
from bitinglip.store.tasks import Doorbell
from bitinglip.worker.celery import get_runtime, send_revoked_event


class GenerationFailedError(Exception):
    """A task failed; Flower shows it as FAILURE. The record holds why."""


class GenerationTask(CeleryTask):
    """A kind of task, as Celery sees it."""

    abstract = True
    kind: str
    acks_late = True
    ignore_result = True
    throws = (GenerationFailedError,)

    def apply_async(
        self,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        *,
        countdown: float | None = None,
        eta: datetime | None = None,
        **_: Any,
    ) -> AsyncResult:
        """Submit a task. A lone argument is the prompt or text; the rest as for `Client.submit`.

        Args:
            args: One at most.
            kwargs: Fields of the task and of its payload.
            countdown: Seconds before it may start.
            eta: When it may start; with a time zone.

        Raises:
            InvalidRequestError: Naming the field that is wrong.
        """
        fields = dict(kwargs or {})
        if args:
            if len(args) > 1:
                raise InvalidRequestError("arguments", args, "one at most; name the others")
            fields[get_kind(self.kind).payload.MAIN_FIELD] = args[0]
        if countdown is not None:
            eta = datetime.now(UTC) + timedelta(seconds=countdown)
        if eta is not None:
            fields["not_before"] = eta
        handle = _get_client().submit(self.kind, **fields)
        return app.AsyncResult(str(handle.id), task_name=self.name)

    def run(self, version: int, task_id: str, attempt: int) -> str:
        """Run what a doorbell stands for, in a worker.

        Raises:
            Reject: If the doorbell is of a version that this worker does not know; the heartbeat delivers it.
            Ignore: If there is nothing to do, or the task was cancelled.
            Retry: If the task failed and is tried again.
            GenerationFailedError: If it failed for good.
        """
        if version != DOORBELL_VERSION:
            raise Reject(f"doorbell version {version}", requeue=False)
        report = get_runtime().run(Doorbell(uuid.UUID(task_id), attempt))
        match report.outcome:
            case Outcome.COMPLETED:
                return report.outcome
            case Outcome.FAILED:
                raise GenerationFailedError(report.error)
            case Outcome.RETRIED | Outcome.RELEASED:
                raise Retry(report.error)
            case Outcome.CANCELLED:
                send_revoked_event(task_id)
                raise Ignore
            case Outcome.NOT_OURS:
                raise Ignore


class RecordBackend(BaseBackend):
    """Results are read from PostgreSQL. Nothing is stored here: the worker has recorded the task already."""

    def store_result(self, task_id: str, result: Any, state: str, **_: Any) -> Any:
        """Do nothing; Celery calls it."""
        return result

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        try:
            task = _get_client().get(task_id)
        except TaskNotFoundError:
            return {"task_id": task_id, "status": states.PENDING, "result": None, "traceback": None}
        return {"task_id": task_id, "status": _celery_state(task), "result": _celery_result(task), "traceback": None}


@cache
def _get_client() -> Client:
    return Client()


def _celery_state(task: Task) -> str:
    match task.status:
        case Status.PENDING:
            return str(states.RETRY if task.failures else states.PENDING)
        case Status.IN_PROGRESS:
            return str(states.STARTED)
        case Status.COMPLETED:
            return str(states.SUCCESS)
        case Status.FAILED:
            return str(states.FAILURE)
        case Status.CANCELLED:
            return str(states.REVOKED)


def _celery_result(task: Task) -> Any:
    if task.status in {Status.FAILED, Status.CANCELLED}:
        code, message = (task.error.code, task.error.message) if task.error else (task.status, "cancelled")
        return TaskEndedError(task.id, task.status, code, message)
    return task.result


def _register(kind: str) -> CeleryTask:
    # Lazy, where register_task would read the configuration: importing this needs no running system.
    task = app.task(name=task_name(kind), base=GenerationTask, bind=True, shared=False, kind=kind)
    return task(GenerationTask.run)


_registered = {kind: _register(kind) for kind in find_kinds()}

generate_text = _registered["text"]
create_embedding = _registered["embedding"]
generate_image = _registered["image"]
echo = _registered["echo"]
download_model = _registered["download"]
