"""What it takes to drive any engine by hand: step, collect, and hold it to its contract."""

from collections import defaultdict
from typing import Any

from bitinglip.engine.base import Engine, EngineEvent, Failed, Finished


class Driven:
    """An engine and everything it has said.

    Attributes:
        MOST_STEPS: That any test of it takes.
        engine: Of whatever kind; whoever inherits makes it.
        events: What it has said, by request, in order.
    """

    MOST_STEPS = 2_000
    engine: Engine

    def __init__(self) -> None:
        self.events: dict[str, list[EngineEvent]] = defaultdict(list)

    def step(self, times: int = 1) -> list[EngineEvent]:
        """Step; return the events of all these steps."""
        events: list[EngineEvent] = []
        for _ in range(times):
            events += self.engine.step()
        for event in events:
            self.events[event.request_id].append(event)
        return events

    def run(self) -> None:
        """Step until nothing is left."""
        for _ in range(self.MOST_STEPS):
            if not self.engine.busy:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def result(self, request_id: str) -> dict[str, Any]:
        """The result of a request that has finished."""
        end = self.end(request_id)
        assert isinstance(end, Finished), end
        return end.result

    def failure(self, request_id: str) -> Failed:
        """The failure of a request that has failed."""
        end = self.end(request_id)
        assert isinstance(end, Failed), end
        return end

    def end(self, request_id: str) -> Finished | Failed:
        """The one event that ends a request; nothing may follow it."""
        ends = [event for event in self.events[request_id] if isinstance(event, Finished | Failed)]
        assert len(ends) == 1, f"{len(ends)} ends of {request_id}: {self.events[request_id]}"
        assert self.events[request_id][-1] is ends[0]
        return ends[0]
