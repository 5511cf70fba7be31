"""The demo's work: three agents ask 60 questions whose answers are known, and are timed from outside.

Nothing here is privileged: the questions go through the public client, and each answer is read from its stream, and
for the count from its record. Pictures are drawn meanwhile.
"""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bitinglip.cli.demo_pictures import WISHES, Picture, ask_for_pictures
from bitinglip.client import Client, Handle
from bitinglip.demo.questions import Question, held_out_questions, is_right
from bitinglip.domain.task import Priority, Status, Task, make_request
from bitinglip.errors import BitingLipError
from bitinglip.streams.events import EventName

if TYPE_CHECKING:
    from bitinglip.artifacts.store import ArtifactStore

QUESTIONS = 60
NEEDED_RIGHT = 57
SEED = 2026
MODEL = "demo"
AGENTS = ("chat-bot", "researcher", "night-script")
# Each agent asks at each of these in turn, so that the order of service is not the order of submission.
PRIORITIES = (Priority.MEDIUM, Priority.LOW, Priority.HIGH, Priority.MEDIUM, Priority.CRITICAL)


@dataclass
class Answer:
    """One question on its way.

    Attributes:
        handle: Of its task, once it is asked.
        state: `waiting`, `running` or `done`, as its events tell.
        streamed: The text so far.
        tokens: Of that text.
        first_text_seconds: From submission to the first piece of text.
        task: The record, once it has ended.
    """

    question: Question
    agent: str
    priority: Priority
    handle: Handle | None = None
    state: str = "waiting"
    streamed: str = ""
    tokens: int = 0
    first_text_seconds: float | None = None
    task: Task | None = None

    @property
    def text(self) -> str:
        """What the model said."""
        return str(((self.task and self.task.result) or {}).get("text", ""))

    @property
    def right(self) -> bool:
        """Whether that is the answer."""
        return is_right(self.question, self.text)

    def to_json(self) -> dict[str, Any]:
        """As `demo --json` gives it."""
        return {
            "id": self.handle and self.handle.id,
            "agent": self.agent,
            "priority": self.priority,
            "question": self.question.text,
            "answer": self.text,
            "right": self.right,
        }


@dataclass
class DemoRun:
    """The questions, their answers and the time they took; and the pictures.

    Args:
        client: Of the system that answers.
    """

    client: Client
    answers: list[Answer] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=lambda: [Picture(wish) for wish in WISHES])
    seconds: float = 0.0
    _began: float | None = None

    def __post_init__(self) -> None:
        for number, question in enumerate(held_out_questions(QUESTIONS, SEED)):
            agent = AGENTS[number % len(AGENTS)]
            priority = PRIORITIES[number // len(AGENTS) % len(PRIORITIES)]
            self.answers.append(Answer(question, agent, priority))

    @property
    def tasks(self) -> "list[Answer | Picture]":
        """All that was asked for."""
        return [*self.answers, *self.pictures]

    @property
    def elapsed_seconds(self) -> float:
        """Since the first submission."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def ask(self, answers: Sequence[Answer]) -> None:
        """Submit questions with one call, and follow their answers in threads."""
        submitted = time.monotonic()
        if self._began is None:
            self._began = submitted
        handles = self.client.submit_many(
            make_request(
                "text",
                {"prompt": answer.question.text, "temperature": 0},
                model=MODEL,
                agent_id=answer.agent,
                priority=answer.priority,
            )
            for answer in answers
        )
        for answer, handle in zip(answers, handles, strict=True):
            answer.handle = handle
            threading.Thread(target=_follow, args=(answer, handle, submitted), daemon=True).start()

    def ask_for_pictures(self, pictures: Sequence[Picture]) -> None:
        """Have pictures drawn."""
        ask_for_pictures(self.client, pictures)

    def stop_clock(self) -> None:
        """Keep the time that the answers took."""
        self.seconds = self.elapsed_seconds

    def collect(self, store: "ArtifactStore") -> None:
        """Read every record, and look at every picture.

        Args:
            store: Where the pictures are.
        """
        for answer in self.answers:
            answer.task = answer.handle.task() if answer.handle else None
        for picture in self.pictures:
            picture.look(store)

    def count(self, agent: str) -> Counter[str]:
        """An agent's tasks: how many wait at each priority, run, are done."""
        mine = [task for task in self.tasks if task.agent == agent]
        return Counter(task.priority if task.state == "waiting" else task.state for task in mine)

    def list_served(self) -> list[Answer]:
        """The answers in the order in which they were begun."""
        begun = [(answer.task.started_at, answer) for answer in self.answers if answer.task and answer.task.started_at]
        return [answer for _, answer in sorted(begun, key=lambda pair: pair[0])]

    def summarise(self) -> dict[str, Any]:
        """The outcome as one JSON document."""
        waits = [answer.first_text_seconds for answer in self.answers if answer.first_text_seconds is not None]
        done = [answer.task for answer in self.answers if answer.task and answer.task.status is Status.COMPLETED]
        tokens = sum((task.usage or {}).get("completion_tokens", 0) for task in done)
        return {
            "tasks": len(self.answers),
            "completed": len(done),
            "right": sum(answer.right for answer in self.answers),
            "ttft_p50_s": round(statistics.median(waits), 4) if waits else None,
            "tokens_per_s": round(tokens / self.seconds, 1) if self.seconds else None,
            "seconds": round(self.seconds, 3),
            "tokens": tokens,
            "answers": [answer.to_json() for answer in self.answers],
            "drawn": sum(picture.place is not None for picture in self.pictures),
            "shown": sum(picture.right for picture in self.pictures),
            "pictures": [picture.to_json() for picture in self.pictures],
            "served": [{"agent": answer.agent, "priority": answer.priority} for answer in self.list_served()],
        }


def _follow(answer: Answer, handle: Handle, submitted: float) -> None:
    """Note what an answer's events tell, to its end, or until the system is stopped."""
    with suppress(BitingLipError):
        for event in handle.stream():
            match event.name:
                case EventName.STARTED:
                    answer.state = "running"
                case EventName.RESTART:
                    answer.streamed, answer.tokens = "", 0
                case EventName.TEXT:
                    if answer.first_text_seconds is None:
                        answer.first_text_seconds = time.monotonic() - submitted
                    answer.tokens += len(event.data.get("token_ids", []))
                    answer.streamed += event.data["text"]
        answer.state = "done"
