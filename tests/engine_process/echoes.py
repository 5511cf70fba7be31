"""Sends requests to an engine process and collects what comes back."""

import queue
from typing import Any

from bitinglip.engine import wire
from bitinglip.engine.base import EngineEvent, EngineLost, Failed, Finished
from bitinglip.engine.link import EngineLink


class Requests:
    """Echoes, unless another kind is named."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self.events: dict[str, list[EngineEvent]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self, request_id: str, *, kind: str = "echo", **payload: Any) -> None:
        self.events[request_id] = []

        def hear(event: EngineEvent) -> None:
            self.events[request_id].append(event)
            if isinstance(event, Finished | Failed | EngineLost):
                self._ended.put(request_id)

        self._link.start(wire.Run(request_id, kind, None, None, payload), hear)

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            self._ended.get(timeout=30)

    def ending(self, request_id: str) -> EngineEvent:
        """The one event that ended a request."""
        endings = [event for event in self.events[request_id] if isinstance(event, Finished | Failed | EngineLost)]
        assert len(endings) == 1
        return endings[0]

    def loss(self, request_id: str) -> EngineLost:
        """The end of a request whose engine process ended."""
        ending = self.ending(request_id)
        assert isinstance(ending, EngineLost), ending
        return ending

    def warm_up(self) -> None:
        """Return when the process steps."""
        self.start("warm:1")
        self.wait()
        assert isinstance(self.ending("warm:1"), Finished)


def code_of(event: EngineEvent) -> str:
    assert isinstance(event, Failed)
    return event.code
