"""Gather what many threads ask for into one call, as databases gather commits."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class _Cell(Generic[Q, A]):
    __slots__ = ("answer", "done", "error", "question")

    def __init__(self, question: Q) -> None:
        self.question = question
        self.done = False
        self.answer: A
        self.error: Exception | None = None


class Gatherer(Generic[Q, A]):
    """Calls `answer_all` with everything that was asked while its last call ran.

    No thread of its own, and no delay for a lone question: it is answered at once, by the thread that asks. Questions
    that follow each other closely wait `linger_seconds` for company.

    Args:
        answer_all: As many answers as questions, in their order. What it raises, every asker of that call gets.
        linger_seconds: From the end of a call to the next at least.
        max_questions: In one call.
    """

    def __init__(
        self,
        answer_all: Callable[[list[Q]], Sequence[A]],
        *,
        linger_seconds: float = 0.0,
        max_questions: int = 500,
    ) -> None:
        self._answer_all = answer_all
        self._linger_seconds = linger_seconds
        self._ended_at = -math.inf
        self._max_questions = max_questions
        self._waiting: list[_Cell[Q, A]] = []
        self._mutex = threading.Lock()
        self._turn = threading.Lock()

    def ask(self, question: Q) -> A:
        """The answer to one question."""
        cell: _Cell[Q, A] = _Cell(question)
        with self._mutex:
            self._waiting.append(cell)
        with self._turn:
            while not cell.done:
                pause = self._ended_at + self._linger_seconds - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
                with self._mutex:
                    batch = self._waiting[: self._max_questions]
                    del self._waiting[: self._max_questions]
                self._answer(batch)
                self._ended_at = time.monotonic()
        if cell.error is not None:
            raise cell.error
        return cell.answer

    def _answer(self, batch: list[_Cell[Q, A]]) -> None:
        try:
            answers = self._answer_all([cell.question for cell in batch])
            for cell, answer in zip(batch, answers, strict=True):
                cell.answer = answer
        except Exception as exc:
            for cell in batch:
                cell.error = exc
        for cell in batch:
            cell.done = True
