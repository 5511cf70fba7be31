"""One request on its way: which of its pictures are drawn, what they have cost, and how it ends."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitinglip.domain.image_payload import ImagePayload
from bitinglip.engine.base import Failed, Finished, JsonObject, Progress, Usage
from bitinglip.engine.image.pipeline import Picture, Settings

MAX_SEED = 2**63


@dataclass(slots=True, eq=False)
class Job:
    """The state of one request from its admission to its end.

    Attributes:
        spool: Where its pictures go.
        start: A PIL image to start from.
        seed: Of its first picture.
        notes: What the result tells besides.
        waiting: Numbers of the pictures that no batch has taken yet.
        images: The result's entries of those that are written.
        alone: It was in a batch that failed, and shares none any more.
        thrifty: Even one of its pictures ran out of memory, and takes less from now on.
        ended: Whether its last event has been made.
    """

    id: str
    payload: ImagePayload
    settings: Settings
    spool: Path
    start: Any
    seed: int
    notes: list[str]
    waiting: deque[int] = field(init=False)
    images: list[JsonObject] = field(default_factory=list)
    alone: bool = False
    thrifty: bool = False
    ended: bool = False
    engine_seconds: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        self.waiting = deque(range(self.payload.count))

    @property
    def batch_key(self) -> tuple[Settings, str | None, bool]:
        """Jobs of the same key may share a batch."""
        return self.settings, self.id if self.alone else None, self.thrifty

    def picture(self, index: int) -> Picture:
        """What a batch needs to know of one picture."""
        return Picture(self.payload.prompt, self.payload.negative_prompt, self.find_seed(index), self.start)

    def find_seed(self, index: int) -> int:
        """The seed of one picture."""
        return (self.seed + index) % MAX_SEED

    def put_back(self, indexes: list[int]) -> None:
        """Let pictures wait again, at their places."""
        self.waiting = deque(sorted([*self.waiting, *indexes]))

    def report(self, step: int, steps: int, rows: int, preview: str | None) -> Progress:
        """How far it is, while so many of its pictures are at one step.

        The detail has also how many pictures are done, are being drawn, and were asked for.

        Args:
            step: Of the batch, counted from 1.
            steps: Of the batch in all.
            rows: Its pictures in the batch.
            preview: A JPEG in base64.
        """
        count = self.payload.count
        detail: JsonObject = {"step": step, "steps": steps, "done": len(self.images), "drawing": rows, "count": count}
        if preview is not None:
            detail["preview"] = preview
        drawn = len(self.images) + rows * min(1.0, step / steps)
        return Progress(self.id, drawn / count, detail)

    def finish(self, model: str, steps: int) -> Finished:
        """Return the event that ends it with its pictures.

        Args:
            model: The model's name.
            steps: Taken for each picture.
        """
        self.ended = True
        images = sorted(self.images, key=lambda image: int(image["index"]))
        notes = {"notes": self.notes} if self.notes else {}
        return Finished(self.id, {"images": images, "steps": steps, "model": model, **notes}, self._count_usage())

    def fail(self, code: str, message: str, *, retryable: bool) -> Failed:
        """Return the event that ends it without a result."""
        self.ended = True
        return Failed(self.id, code, message, retryable, self._count_usage())

    def _count_usage(self) -> Usage:
        pixels = len(self.images) * self.settings.pixels
        return Usage(self.engine_seconds, steps=self.steps, pixels=pixels)
