"""A task through the whole path: PostgreSQL, dispatcher, Redis, Celery worker, engine process."""

from bitinglip.client import Client
from bitinglip.domain.task import Status
from tests.conftest import System


def test_an_echo_task_is_answered(system: System, client: Client) -> None:
    handle = client.submit("echo", text="hello")

    assert handle.result(timeout=20) == {"text": "hello"}
    assert handle.status is Status.COMPLETED
