"""Drive an image engine by hand: add, step, collect; and what it drew, before it was rounded to bytes."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driven import Driven
from numpy.typing import NDArray

from bitinglip.engine.base import EngineConfig, EngineRequest, Progress
from bitinglip.engine.image import drawing
from bitinglip.engine.image.engine import DiffusionEngine
from bitinglip.engine.image.pipeline import ImagePipeline


class RecordingPipeline(ImagePipeline):
    """Another one's pipeline, that remembers what it drew, by seed."""

    def __init__(self, other: ImagePipeline) -> None:
        self.__dict__.update(other.__dict__)
        self.pixels: dict[int, NDArray[np.float32]] = {}
        self.batches: list[list[int]] = []

    def call(self, pipe: Any, settings: Any, pictures: Any) -> Any:
        """Draw, and remember."""
        self.batches.append([picture.seed for picture in pictures])
        drawn = super().call(pipe, settings, pictures)
        for picture, pixels in zip(pictures, drawn.pixels, strict=True):
            self.pixels[picture.seed] = pixels
        return drawn


class ImageDriver(Driven):
    """An image engine and everything it has said.

    Args:
        pipeline: What draws.
        spool: Where pictures go, in a folder of each request.
    """

    MOST_STEPS = 600

    def __init__(
        self, pipeline: ImagePipeline, spool: Path, *, max_rows: int = 16, memory_bytes: int | None = None
    ) -> None:
        super().__init__()
        self.pipeline = RecordingPipeline(pipeline)
        self.spool = spool
        config = EngineConfig(model="tiny", folder=None, max_rows=max_rows, memory_bytes=memory_bytes)
        self.engine = DiffusionEngine(config, self.pipeline)

    def add(self, request_id: str, *, inputs: Mapping[str, str] | None = None, **options: Any) -> None:
        """Add a request for one small picture in four steps, unless options say otherwise."""
        payload = {"prompt": f"picture {request_id}", "width": 32, "height": 32, "steps": 4, "seed": 7, **options}
        payload = {name: value for name, value in payload.items() if value is not None}
        self.engine.add(EngineRequest(request_id, payload, (), inputs or {}, str(self.spool / request_id)))

    def step_until(self, request_id: str, step: int) -> None:
        """Step until a request reports that step."""
        while not any(event.detail["step"] >= step for event in self.progress(request_id)):
            self.step()

    def draw(self, **options: Any) -> NDArray[np.float32]:
        """Run one request alone; return its first picture's pixels."""
        name = f"alone-{len(self.events)}"
        self.add(name, **options)
        self.run()
        seed: int = self.result(name)["images"][0]["seed"]
        return self.pipeline.pixels[seed]

    def stop(self) -> None:
        """End what still stands half-way."""
        for started in self.engine._drawings.values():
            started.stop()

    def progress(self, request_id: str) -> list[Progress]:
        """What a request has reported."""
        return [event for event in self.events[request_id] if isinstance(event, Progress)]


class Clock:
    """A clock that stands still but between the two looks at it that each step takes.

    Args:
        monkeypatch: Puts it in the real one's place.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step_seconds = 0.0
        self._now = 0.0
        monkeypatch.setattr(drawing, "perf_counter", self)

    def __call__(self) -> float:
        self._now += self.step_seconds
        return self._now


def count_drawing_threads() -> int:
    """Threads in which a batch stands still."""
    return sum(thread.name == "drawing" for thread in threading.enumerate())
