"""What becomes of tasks is written as it happens, for people and for programs."""

import json
import signal
import subprocess
import uuid

import pytest

from bitinglip.client import Client
from bitinglip.domain.task import Status
from bitinglip.settings import ServerUrls
from bitinglip.streams.reader import connect
from bitinglip.streams.transitions import CHANNEL, Transition, TransitionName
from bitinglip.streams.writer import EventWriter
from tests.cli.conftest import Run, Start
from tests.conftest import eventually


def announce(urls: ServerUrls, *transitions: Transition) -> None:
    """Tell listeners, once there is one."""
    client = connect(urls.redis_url)
    eventually(lambda: client.pubsub_numsub(CHANNEL)[0][1] == 1, within=20)
    writer = EventWriter(client, keep_seconds=60)
    for transition in transitions:
        writer.announce(transition)
    writer.close()
    client.close()


def make_transition(agent: str = "bot", **fields: object) -> Transition:
    return Transition(
        **{  # type: ignore[arg-type]
            "event": TransitionName.FINISHED,
            "task_id": uuid.uuid4(),
            "agent_id": agent,
            "status": Status.FAILED,
            "attempt": 2,
            "error_code": "boom",
            **fields,
        }
    )


def interrupt(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_events_are_written_until_it_is_interrupted(start: Start, urls: ServerUrls) -> None:
    process = start("events")
    transition = make_transition()
    announce(urls, transition)
    assert process.stdout is not None
    cells = process.stdout.readline().split()

    assert cells[1:] == ["finished", "failed", "bot", str(transition.task_id), "2", "boom"]
    interrupt(process)


def test_events_are_json_of_one_agent(start: Start, urls: ServerUrls) -> None:
    process = start("events", "--agent", "bot", "--json")
    wanted = make_transition()
    announce(urls, make_transition("other"))
    with connect(urls.redis_url) as client:
        client.publish(CHANNEL, "no transition of ours")
    announce(urls, wanted)
    assert process.stdout is not None
    document = json.loads(process.stdout.readline())

    assert document.pop("time")
    assert document == {
        "event": "finished",
        "task_id": str(wanted.task_id),
        "agent_id": "bot",
        "status": "failed",
        "attempt": 2,
        "error_code": "boom",
    }
    interrupt(process)


def test_events_of_one_task(start: Start, urls: ServerUrls) -> None:
    wanted = make_transition()
    process = start("events", "--task", str(wanted.task_id), "--json")
    announce(urls, make_transition(), wanted)
    assert process.stdout is not None

    assert json.loads(process.stdout.readline())["task_id"] == str(wanted.task_id)
    interrupt(process)


def test_without_redis_there_are_no_events(run: Run, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITINGLIP_REDIS_URL", "redis://:wr0ng-secret@127.0.0.1:1/0")
    result = run("events")

    assert result.exit_code == 5
    assert "BITINGLIP_REDIS_URL" in result.stderr
    assert "wr0ng-secret" not in result.output
