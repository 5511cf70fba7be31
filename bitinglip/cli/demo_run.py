"""The demo's work: three agents ask 60 questions whose answers are known, and are timed from outside.

Nothing here is privileged: the questions go through the public client, and each answer is read from its stream, and
for the count from its record.
"""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bitinglip.client import Client, Handle
from bitinglip.demo.questions import Question, held_out_questions, is_right
from bitinglip.domain.task import Priority, Status, Task, make_request
from bitinglip.errors import BitingLipError
from bitinglip.streams.events import EventName

QUESTIONS = 60
NEEDED_RIGHT = 57
SEED = 2026
MODEL = "demo"
AGENTS = ("chat-bot", "researcher", "night-script")
# Each agent asks at each of these: the bands are served in turn, and within a band the agents are.
PRIORITIES = (Priority.HIGH, Priority.MEDIUM, Priority.MEDIUM, Priority.LOW)


@dataclass
class Answer:
    """One question on its way.

    Attributes:
        state: `waiting`, `running` or `done`, as its events tell.
        tokens: Streamed so far.
        first_text_seconds: From submission to the first piece of text.
        task: The record, once it has ended.
    """

    question: Question
    agent: str
    priority: Priority
    state: str = "waiting"
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


@dataclass
class DemoRun:
    """The questions, their answers, and the time they took.

    Args:
        client: Of the system that answers.
    """

    client: Client
    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    _handles: list[Handle] = field(default_factory=list)
    _began: float = 0.0

    def __post_init__(self) -> None:
        for number, question in enumerate(held_out_questions(QUESTIONS, SEED)):
            agent = AGENTS[number % len(AGENTS)]
            priority = PRIORITIES[number // len(AGENTS) % len(PRIORITIES)]
            self.answers.append(Answer(question, agent, priority))

    @property
    def elapsed_seconds(self) -> float:
        """Since the first submission."""
        return time.monotonic() - self._began

    def stream_first(self) -> Iterator[str]:
        """Ask the first question and yield the pieces of its answer as they come."""
        self._began = time.monotonic()
        self._handles += self._submit(self.answers[:1])
        yield from self._follow(self.answers[0], self._handles[0])

    def ask_rest(self) -> None:
        """Submit all other questions at once; their answers are followed in threads."""
        rest = self.answers[1:]
        handles = self._submit(rest)
        self._handles += handles
        for answer, handle in zip(rest, handles, strict=True):
            threading.Thread(target=self._drain, args=(answer, handle), daemon=True).start()

    def is_done(self) -> bool:
        """Whether every answer has ended."""
        return all(answer.state == "done" for answer in self.answers)

    def collect(self) -> None:
        """Read every record, and stop the clock."""
        self.seconds = self.elapsed_seconds
        for answer, handle in zip(self.answers, self._handles, strict=True):
            answer.task = handle.task()

    def count(self, agent: str) -> Counter[str]:
        """An agent's questions: how many wait at each priority, run, are done."""
        mine = [answer for answer in self.answers if answer.agent == agent]
        return Counter(answer.priority if answer.state == "waiting" else answer.state for answer in mine)

    def list_served(self) -> list[Answer]:
        """The answers in the order in which they were begun."""
        begun = [(answer.task.started_at, answer) for answer in self.answers if answer.task and answer.task.started_at]
        return [answer for _, answer in sorted(begun, key=lambda pair: pair[0])]

    def summarise(self) -> dict[str, Any]:
        """The outcome as one JSON document."""
        waits = [answer.first_text_seconds for answer in self.answers if answer.first_text_seconds is not None]
        tokens = sum(((answer.task and answer.task.usage) or {}).get("completion_tokens", 0) for answer in self.answers)
        return {
            "tasks": len(self.answers),
            "completed": sum(
                answer.task is not None and answer.task.status is Status.COMPLETED for answer in self.answers
            ),
            "right": sum(answer.right for answer in self.answers),
            "ttft_p50_s": round(statistics.median(waits), 4) if waits else None,
            "tokens_per_s": round(tokens / self.seconds, 1) if self.seconds else None,
            "seconds": round(self.seconds, 3),
            "tokens": tokens,
            "served": [answer.agent for answer in self.list_served()],
        }

    def _submit(self, answers: list[Answer]) -> list[Handle]:
        return self.client.submit_many(
            make_request(
                "text",
                {"prompt": answer.question.text, "temperature": 0},
                model=MODEL,
                agent_id=answer.agent,
                priority=answer.priority,
            )
            for answer in answers
        )

    def _follow(self, answer: Answer, handle: Handle) -> Iterator[str]:
        submitted = time.monotonic()
        for event in handle.stream():
            if event.name is EventName.STARTED:
                answer.state = "running"
            elif event.name is EventName.TEXT:
                if answer.first_text_seconds is None:
                    answer.first_text_seconds = time.monotonic() - submitted
                answer.tokens += len(event.data.get("token_ids", []))
                yield event.data["text"]
        answer.state = "done"

    def _drain(self, answer: Answer, handle: Handle) -> None:
        try:
            for _ in self._follow(answer, handle):
                pass
        except BitingLipError:
            # The system stops: the demo was interrupted, or has given up.
            answer.state = "waiting"
