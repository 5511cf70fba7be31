"""Gather what many threads ask for into one call, as databases gather commits."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class _Cell(Generic[Q, A]):
    __slots__ = ("answer", "answered", "error", "question")

    def __init__(self, question: Q) -> None:
        self.question = question
        self.answered = threading.Lock()
        self.answered.acquire()
        self.answer: A
        self.error: Exception | None = None


class Gatherer(Generic[Q, A]):
    """Calls `answer_all`, in a thread of its own, with everything that was asked since its last call.

    A lone question is answered at once; questions that follow each other closely wait for company.

    Args:
        answer_all: As many answers as questions, in their order. What it raises, every asker of that call gets.
        name: Of the thread.
        linger_seconds: From the end of a call to the next at least.
        max_questions: In one call.
    """

    def __init__(
        self,
        answer_all: Callable[[list[Q]], Sequence[A]],
        *,
        name: str = "gatherer",
        linger_seconds: float = 0.0,
        max_questions: int = 500,
    ) -> None:
        self._answer_all = answer_all
        self._linger_seconds = linger_seconds
        self._max_questions = max_questions
        self._waiting: list[_Cell[Q, A]] = []
        self._asked = threading.Condition()
        threading.Thread(target=self._answer_forever, name=name, daemon=True).start()

    def ask(self, question: Q) -> A:
        """The answer to one question."""
        cell: _Cell[Q, A] = _Cell(question)
        with self._asked:
            self._waiting.append(cell)
            if len(self._waiting) == 1:
                self._asked.notify()
        cell.answered.acquire()
        if cell.error is not None:
            raise cell.error
        return cell.answer

    def _answer_forever(self) -> None:
        ended_at = -math.inf
        while True:
            with self._asked:
                while not self._waiting:
                    self._asked.wait()
            # Others join meanwhile.
            time.sleep(max(0.0, ended_at + self._linger_seconds - time.monotonic()))
            with self._asked:
                batch = self._waiting[: self._max_questions]
                del self._waiting[: self._max_questions]
            self._answer(batch)
            ended_at = time.monotonic()

    def _answer(self, batch: list[_Cell[Q, A]]) -> None:
        try:
            answers = self._answer_all([cell.question for cell in batch])
            for cell, answer in zip(batch, answers, strict=True):
                cell.answer = answer
        except Exception as exc:
            for cell in batch:
                cell.error = exc
        for cell in batch:
            cell.answered.release()
