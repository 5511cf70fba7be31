"""The way in: requests are checked and tokenised a few at a time, then wait for a place in order of arrival.

Invariant: `waiting` is ordered by arrival, rows that were put back included, so that a row never loses its turn.
"""

from collections import deque
from collections.abc import Callable, Iterable

from bitinglip.engine.base import EngineEvent, EngineRequest, Failed
from bitinglip.engine.text.row import Row
from bitinglip.errors import InvalidRequestError


class Intake:
    """Requests that do not compute yet.

    Args:
        open_row: Checks a request; raises InvalidRequestError for a bad one.
        ahead: How many checked rows to keep ready; the rest stay untouched, so that many prompts at once do not hold a
            step up.
    """

    def __init__(self, open_row: Callable[[EngineRequest, int], Row], ahead: int) -> None:
        self._open_row = open_row
        self._ahead = ahead
        self._inbox: deque[EngineRequest] = deque()
        self._arrived = 0
        self.waiting: deque[Row] = deque()

    def __len__(self) -> int:
        return len(self._inbox) + len(self.waiting)

    def add(self, request: EngineRequest) -> None:
        """Take a request as it is."""
        self._inbox.append(request)

    def check_some(self) -> list[EngineEvent]:
        """Check requests until enough wait; return the failures."""
        events: list[EngineEvent] = []
        while self._inbox and len(self.waiting) < self._ahead:
            request = self._inbox.popleft()
            self._arrived += 1
            try:
                self.waiting.append(self._open_row(request, self._arrived))
            except InvalidRequestError as exc:
                events.append(Failed(request.id, exc.code, str(exc), retryable=False))
            except Exception as exc:  # A tokenizer's Rust side raises anything; it is this request's failure alone.
                message = f"the request cannot be read: {exc}"
                events.append(Failed(request.id, "invalid_request", message, retryable=False))
        return events

    def put_back(self, rows: Iterable[Row]) -> None:
        """Let rows wait again, at the place that their arrival gives them."""
        self.waiting = deque(sorted([*rows, *self.waiting], key=lambda row: row.arrival))

    def drop(self, request_ids: set[str]) -> list[EngineEvent]:
        """Forget cancelled requests; return their ends."""
        message = "cancelled before it ran"
        events: list[EngineEvent] = [
            Failed(request.id, "cancelled", message, retryable=False)
            for request in self._inbox
            if request.id in request_ids
        ]
        events += [row.fail("cancelled", message, retryable=False) for row in self.waiting if row.id in request_ids]
        self._inbox = deque(request for request in self._inbox if request.id not in request_ids)
        self.waiting = deque(row for row in self.waiting if row.id not in request_ids)
        return events
