"""A stream outlives its worker: the text goes on where it stopped, and a reader notices nothing but the pause."""

import json
import threading
from typing import Any

import pytest

from bitinglip.client import Client, Handle
from bitinglip.store.database import Database
from bitinglip.streams.events import EventName
from tests.conftest import System, eventually, wait_for_workers
from tests.engine.tiny_models import END_ID, make_model, make_tokenizer
from tests.factories import read_outcomes
from tests.worker.test_deaths import engine_of

TEXT = '[pools.default]\nkinds = ["text", "echo"]\ngpus = []\nslots = 4\n'

SCHEMA = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 40}},
    "required": ["words"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with random weights that goes on for as long as it may."""
    folder = tmp_path_factory.mktemp("model")
    made = make_model("llama", max_position_embeddings=4_096)
    # Never the likeliest token.
    made.lm_head.weight.data[END_ID] = 0
    made.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


class Follower:
    """Reads a stream in a thread, from its beginning to its end."""

    def __init__(self, handle: Handle) -> None:
        self.names: list[str] = []
        self.text = ""
        self._thread = threading.Thread(target=self._follow, args=(handle,))
        self._thread.start()

    def _follow(self, handle: Handle) -> None:
        for event in handle.stream():
            self.names.append(event.name)
            if event.name is EventName.TEXT:
                self.text += event.data["text"]

    def wait(self) -> str:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.text


@pytest.fixture
def text_system(processes: System, database: Database) -> System:
    """A worker with the demo model, and slow enough to be killed in the middle of a text."""
    processes.start_dispatcher()
    processes.start_worker("first", pools=TEXT)
    wait_for_workers(database, 1)
    return processes


def kill_in_the_middle(system: System, follower: Follower, victim: str) -> None:
    eventually(lambda: len(follower.text) > 20 or "finished" in follower.names, within=60)
    assert "finished" not in follower.names, "too fast to be killed in the middle"
    if victim == "engine":
        engine_of(system, "first").kill()
    else:
        system.kill("first")


def check_that_it_goes_on(
    system: System, client: Client, database: Database, victim: str, wanted: dict[str, Any]
) -> str:
    """Kill what makes a text in the middle of it; the text is what it would have been."""
    whole = client.submit("text", **wanted).result(timeout=90)["text"]
    handle = client.submit("text", **wanted)
    follower = Follower(handle)
    kill_in_the_middle(system, follower, victim)
    if victim == "worker":
        system.start_worker("second", pools=TEXT)
    assert follower.wait() == whole
    assert handle.result(timeout=1)["text"] == whole
    assert follower.names.count("restart") == 0
    assert [outcome for _, outcome in read_outcomes(database, handle.id)] == ["lost", "completed"]
    return str(whole)


@pytest.mark.parametrize("victim", ["worker", "engine"])
def test_a_greedy_text_goes_on_where_it_stopped(
    text_system: System, client: Client, database: Database, model: str, victim: str
) -> None:
    wanted = {"prompt": "Tell me more.", "temperature": 0, "raw": True, "model": model, "max_tokens": 1_200}
    check_that_it_goes_on(text_system, client, database, victim, wanted)


def test_stop_strings_carry_over(text_system: System, client: Client, database: Database, model: str) -> None:
    wanted = {"prompt": "Stop soon.", "temperature": 0, "raw": True, "model": model, "max_tokens": 1_200}
    whole = client.submit("text", **wanted).result(timeout=90)["text"]
    late = len(whole) * 2 // 3
    stop = whole[late : late + 12]

    text = check_that_it_goes_on(text_system, client, database, "engine", {**wanted, "stop": [stop]})

    assert text == whole[: whole.index(stop)]
    assert len(text) > len(whole) // 2


def test_a_schema_carries_over(text_system: System, client: Client, database: Database) -> None:
    wanted = {"prompt": "Words, please.", "temperature": 0, "model": "demo", "max_tokens": 600, "json_schema": SCHEMA}

    assert set(json.loads(check_that_it_goes_on(text_system, client, database, "worker", wanted))) == {"words"}


def test_an_echo_begins_again_and_says_so(system: System, client: Client) -> None:
    handle = client.submit("echo", text="0123456789" * 10, seconds=3, chunks=100)
    follower = Follower(handle)
    eventually(lambda: len(follower.text) > 10)
    engine_of(system).kill()

    follower.wait()
    assert follower.names.count("restart") == 1
    assert follower.text.endswith("0123456789" * 10)
