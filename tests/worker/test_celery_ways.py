"""Celery's own ways work: delay, AsyncResult, revoke, and the events that colour Flower's pages."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery

from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.errors import TaskEndedError
from bitinglip.store.database import Database
from tests.conftest import REPOSITORY, System, eventually
from tests.factories import read_outcomes
from tests.worker.conftest import CeleryEvents


def run_python(program: str) -> Any:
    """What a program of a Celery user prints, as JSON."""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_delay_submits_a_task_and_its_result_is_read_from_the_record(running_client: Client) -> None:
    said = run_python(
        """
import json
from bitinglip.tasks import echo
result = echo.delay("hello", agent="celery-user", priority="high")
print(json.dumps([result.id, result.get(timeout=20), result.state, result.successful()]))
"""
    )

    task = running_client.get(said[0])
    assert said[1:] == [{"text": "hello"}, "SUCCESS", True]
    assert (task.agent_id, task.priority, task.status) == ("celery-user", "high", Status.COMPLETED)


def test_pictures_are_asked_for_in_celerys_way(client: Client) -> None:
    said = run_python(
        """
import json
from bitinglip.tasks import generate_image
print(json.dumps(generate_image.delay("a red circle", model="org/name", steps=7).id))
"""
    )

    task = client.get(said)
    assert (task.type, task.model, task.payload) == ("image", "org/name", {"prompt": "a red circle", "steps": 7})


def test_an_async_result_raises_what_went_wrong(running: System) -> None:
    said = run_python(
        """
import json
from bitinglip.errors import TaskEndedError
from bitinglip.tasks import echo
result = echo.apply_async(("x",), {"fail": "error"})
try:
    result.get(timeout=20)
except TaskEndedError as exc:
    print(json.dumps([exc.error_code, result.state]))
"""
    )

    assert said == ["echo_error", "FAILURE"]


def test_a_signature_is_submitted_like_any_task(running: System) -> None:
    said = run_python(
        """
import json
from bitinglip.tasks import echo
print(json.dumps(echo.s("chained", agent="a").apply_async().get(timeout=20)))
"""
    )

    assert said == {"text": "chained"}


def test_delay_names_the_field_that_is_wrong(running: System) -> None:
    said = run_python(
        """
import json
from bitinglip.errors import InvalidRequestError
from bitinglip.tasks import generate_text
try:
    generate_text.delay("hello", model="demo", temperature=3)
except InvalidRequestError as exc:
    print(json.dumps(exc.field))
"""
    )

    assert said == "temperature"


def test_delay_takes_one_argument_without_a_name(running: System) -> None:
    said = run_python(
        """
import json
from bitinglip.errors import InvalidRequestError
from bitinglip.tasks import echo
try:
    echo.delay("one", "two")
except InvalidRequestError as exc:
    print(json.dumps(str(exc)))
"""
    )

    assert said == "arguments: ('one', 'two'): one at most; name the others"


def test_flower_sees_a_task_come_start_and_succeed(running_client: Client, celery_events: CeleryEvents) -> None:
    handle = running_client.submit("echo", text="hi", agent="bot", priority="high")
    handle.result(timeout=20)

    celery_events.get(handle.id, "task-succeeded")
    assert celery_events.of(handle.id) == ["task-received", "task-started", "task-succeeded"]
    received = celery_events.get(handle.id, "task-received")
    assert received["args"].startswith("agent=bot priority=high model=")
    assert received["name"] == "bitinglip.echo"


def test_flower_sees_a_failure(running_client: Client, celery_events: CeleryEvents, running_database: Database) -> None:
    handle = running_client.submit("echo", fail="error")
    with pytest.raises(TaskEndedError, match="echo_error"):
        handle.result(timeout=20)

    failed = celery_events.get(handle.id, "task-failed")
    assert "was asked for" in failed["exception"]
    assert read_outcomes(running_database, handle.id) == [(1, "failed")]


def test_flower_sees_a_retry_and_the_success_after_it(
    running_client: Client, celery_events: CeleryEvents, running_database: Database
) -> None:
    handle = running_client.submit("echo", text="again", fail="retryable", fail_attempts=1)

    assert handle.result(timeout=30) == {"text": "again"}
    celery_events.get(handle.id, "task-succeeded")
    assert celery_events.of(handle.id).count("task-retried") == 1
    assert celery_events.of(handle.id).count("task-started") == 2
    assert read_outcomes(running_database, handle.id) == [(1, "retried"), (2, "completed")]
    assert [event.name for event in handle.stream() if event.name != "text"] == [
        "queued",
        "started",
        "retried",
        "started",
        "resumed",
        "finished",
    ]


def test_revoking_a_running_task_cancels_it(
    running_client: Client, celery_events: CeleryEvents, celery_app: Celery, running_database: Database
) -> None:
    handle = running_client.submit("echo", seconds=60)
    celery_events.get(handle.id, "task-started")

    celery_app.control.revoke(str(handle.id), terminate=True)

    eventually(lambda: handle.status is Status.CANCELLED)
    assert read_outcomes(running_database, handle.id) == [(1, "cancelled")]
    celery_events.get(handle.id, "task-revoked")
    assert [event.data["status"] for event in handle.stream() if event.name == "finished"] == ["cancelled"]


def test_revoking_a_waiting_task_cancels_it(
    running_client: Client, celery_events: CeleryEvents, celery_app: Celery
) -> None:
    blockers = [running_client.submit("echo", seconds=60, priority="critical") for _ in range(8)]
    eventually(lambda: all(blocker.status is Status.IN_PROGRESS for blocker in blockers))
    handle = running_client.submit("echo", text="never", priority="low")

    celery_app.control.revoke(str(handle.id))

    eventually(lambda: handle.status is Status.CANCELLED)
    celery_events.get(handle.id, "task-revoked")
    for blocker in blockers:
        assert blocker.cancel()
    eventually(lambda: all(blocker.status is Status.CANCELLED for blocker in blockers))
    assert handle.task().started_at is None


def test_revoking_what_is_no_task_harms_nobody(running_client: Client, celery_app: Celery) -> None:
    celery_app.control.revoke("no-task")
    celery_app.control.revoke("01a1fdb0-48fd-74fe-81e4-d5db68d6a6fe")

    assert running_client.submit("echo", text="fine").result(timeout=20) == {"text": "fine"}


def test_an_async_result_of_a_cancelled_task_is_revoked(running_client: Client) -> None:
    handle = running_client.submit("echo", seconds=60)
    handle.cancel()
    eventually(lambda: handle.status is Status.CANCELLED)

    said = run_python(
        f"""
import json
from bitinglip.celery_app import app
import bitinglip.tasks
print(json.dumps([app.AsyncResult("{handle.id}").state, app.AsyncResult("{handle.id}").ready()]))
"""
    )
    assert said == ["REVOKED", True]


def test_a_countdown_and_an_eta_schedule_the_task(running_client: Client) -> None:
    from bitinglip.tasks import echo

    later = echo.apply_async(("later",), countdown=60)
    at_nine = echo.apply_async(("at nine",), eta=datetime.now(UTC) + timedelta(hours=9))

    assert [running_client.get(result.id).queue_state for result in (later, at_nine)] == ["scheduled"] * 2
    for result in (later, at_nine):
        running_client.cancel([result.id])
