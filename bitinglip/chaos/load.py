"""Tasks whose results are known beforehand, and the ledger that remembers them."""

import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bitinglip.chaos.watch import AGENT, count_open
from bitinglip.client import Client
from bitinglip.demo.images.scenes import ALL_SCENES
from bitinglip.demo.questions import held_out_questions
from bitinglip.domain.task import Priority, TaskRequest, make_request
from bitinglip.errors import BitingLipError

MODEL = "demo"
PROMPTS = 12
ANSWER_SECONDS = 60.0
TOP_UP_SECONDS = 0.1
OPEN_PER_SLOT = 1.5
"""Enough that a worker has the next task at hand, few enough that a victim need not wait long for a slot."""

MOST_OPEN = 200
TEXT_SHARE = 0.3
IMAGE_SHARE = 0.2
IMAGE_MODEL = "demo-image"
IMAGE_STEPS = 4
IMAGE_COUNT = 8
ECHO_SECONDS = (0.2, 1.2)
VICTIM_SECONDS = 3.0


@dataclass
class Ledger:
    """What was submitted, and what must come of it.

    Attributes:
        expected: The text that each task's result must hold; of pictures, their seeds.
        unsure: Those of the tasks whose submission was not confirmed.
    """

    expected: dict[uuid.UUID, str] = field(default_factory=dict)
    unsure: set[uuid.UUID] = field(default_factory=set)


class Submitter:
    """Submits tasks and enters them in the ledger. Threads may share it.

    Args:
        client: Of the system.
        ledger: Takes every task.
        seed: Of everything that varies.
    """

    def __init__(self, client: Client, ledger: Ledger, seed: int) -> None:
        self.client = client
        self.ledger = ledger
        self._random = Random(seed)  # noqa: S311 - a repeatable load, no secret
        self._prompts = [question.text for question in held_out_questions(PROMPTS, seed)]
        self._answers: Mapping[str, str] = {}
        self._draws = False
        self._lock = threading.Lock()

    def learn_answers(self) -> None:
        """Ask every prompt once while nothing is broken: what the model says then is right.

        Raises:
            TaskEndedError: If an answer fails.
            ResultTimeoutError: If one takes longer than a minute.
        """
        requests = [self._make_text(prompt) for prompt in self._prompts]
        handles = self.client.submit_many(requests)
        answers = [str(handle.result(timeout=ANSWER_SECONDS)["text"]) for handle in handles]
        self._answers = dict(zip(self._prompts, answers, strict=True))

    def learn_to_draw(self) -> None:
        """Draw once while nothing is broken; pictures are part of the load from then on.

        Raises:
            TaskEndedError: If the picture fails.
            ResultTimeoutError: If it takes longer than a minute.
        """
        [handle] = self.client.submit_many([self._make_image()])
        handle.result(timeout=ANSWER_SECONDS)
        self._draws = True

    def submit_burst(self, count: int) -> Sequence[uuid.UUID]:
        """Submit echoes that take no time, with one call."""
        requests = [make_request("echo", {"text": f"burst {number}"}, agent_id=AGENT) for number in range(count)]
        self._submit(requests)
        return [request.id for request in requests]

    def submit_victim(self) -> uuid.UUID:
        """Submit an echo that starts as soon as it can, and takes long enough to be hit."""
        payload = {"text": "victim", "seconds": VICTIM_SECONDS, "chunks": 10}
        request = make_request("echo", payload, agent_id=AGENT, priority=Priority.CRITICAL)
        self._submit([request])
        return request.id

    def submit_mixed(self, count: int) -> None:
        """Submit echoes that take a while, texts if answers were learnt, and pictures if drawing was."""
        self._submit([self._make_any() for _ in range(count)])

    def _make_any(self) -> TaskRequest:
        with self._lock:
            if self._answers and self._random.random() < TEXT_SHARE:
                return self._make_text(self._random.choice(self._prompts))
            if self._draws and self._random.random() < IMAGE_SHARE:
                return self._make_image()
            seconds = round(self._random.uniform(*ECHO_SECONDS), 2)
            payload = {"text": f"echo {self._random.getrandbits(32):08x}", "seconds": seconds, "chunks": 4}
            return make_request("echo", payload, agent_id=AGENT)

    def _make_text(self, prompt: str) -> TaskRequest:
        return make_request("text", {"prompt": prompt, "temperature": 0}, model=MODEL, agent_id=AGENT)

    def _make_image(self) -> TaskRequest:
        scene = self._random.choice(ALL_SCENES)
        payload = {
            "prompt": scene.prompt,
            "steps": IMAGE_STEPS,
            "count": IMAGE_COUNT,
            "seed": self._random.getrandbits(32),
        }
        return make_request("image", payload, model=IMAGE_MODEL, agent_id=AGENT)

    def _submit(self, requests: Sequence[TaskRequest]) -> None:
        """Enter the tasks before they are submitted: what becomes of a submission that fails is not known."""
        ids = [request.id for request in requests]
        with self._lock:
            self.ledger.expected.update(self._expect(requests))
            self.ledger.unsure.update(ids)
        self.client.submit_many(requests)
        with self._lock:
            self.ledger.unsure.difference_update(ids)

    def _expect(self, requests: Iterable[TaskRequest]) -> dict[uuid.UUID, str]:
        return {request.id: self._find_expected(request.type, request.payload.model_dump()) for request in requests}

    def _find_expected(self, kind: str, payload: Mapping[str, Any]) -> str:
        match kind:
            case "echo":
                return str(payload["text"])
            case "image":
                return " ".join(str(payload["seed"] + number) for number in range(payload["count"]))
            case _:
                return self._answers[payload["prompt"]]


class SteadyLoad:
    """Keeps so many tasks open, in a thread, whatever breaks.

    Args:
        submitter: Makes the tasks.
        slots: Of all workers together.

    Attributes:
        fills_every_slot: Whether every worker gets some of it.
    """

    def __init__(self, submitter: Submitter, slots: int) -> None:
        self._submitter = submitter
        self._open = min(MOST_OPEN, round(OPEN_PER_SLOT * slots))
        self.fills_every_slot = self._open >= slots
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._top_up_until_stopped, name="chaos-load", daemon=True)

    def __enter__(self) -> "SteadyLoad":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _top_up_until_stopped(self) -> None:
        while not self._stop.wait(TOP_UP_SECONDS):
            try:
                with self._submitter.client.database.transaction() as connection:
                    waiting, _ = count_open(connection)
                if waiting < self._open:
                    self._submitter.submit_mixed(self._open - waiting)
            except BitingLipError:
                # The system is broken at the moment, on purpose.
                continue
