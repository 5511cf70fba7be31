"""The demo's pictures: one more agent has them drawn while the questions are answered, and each is looked at.

What a picture shows is told by its pixels; no model is asked.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitinglip.client import Client, Handle
from bitinglip.domain.task import Priority, Status, Task, make_request
from bitinglip.errors import BitingLipError
from bitinglip.streams.events import EventName

if TYPE_CHECKING:
    from bitinglip.artifacts.store import ArtifactStore

PAINTER = "painter"
MODEL = "demo-image"
NEEDED_SHOWN = 3
SEED = 2026
# Shape, colour, background.
WISHES = (
    ("circle", "red", "blue"),
    ("square", "yellow", "purple"),
    ("triangle", "green", "white"),
    ("ring", "white", "red"),
)


@dataclass
class Picture:
    """One picture on its way.

    Attributes:
        wish: Shape, colour and background.
        handle: Of its task, once it is asked for.
        state: `waiting`, `running`, `done` or `failed`, as its events tell.
        step: That was taken last; 0: its model is being loaded.
        task: The record, once it has ended.
        place: Its path or URL, once it is drawn.
        shows: What was seen in it.
    """

    wish: tuple[str, str, str]
    agent: str = PAINTER
    priority: Priority = Priority.MEDIUM
    handle: Handle | None = None
    state: str = "waiting"
    step: int = 0
    task: Task | None = None
    place: str | None = None
    shows: str = "-"

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state in {"done", "failed"}

    @property
    def prompt(self) -> str:
        """What asks for it."""
        shape, colour, background = self.wish
        return f"a {colour} {shape} on {background}"

    @property
    def right(self) -> bool:
        """Whether it shows what was asked for."""
        return self.shows == self.prompt

    def look(self, store: "ArtifactStore") -> None:
        """Read its record, where its file is, and what that shows."""
        self.task = self.handle.task() if self.handle else None
        if self.task is not None and self.task.status is Status.COMPLETED:
            name = (self.task.result or {})["images"][0]["artifact"]
            self.place, self.shows = store.locate(name), _describe(store, name)
        elif self.task is not None and self.task.error is not None:
            self.shows = f"nothing: {self.task.error.code}"

    def to_json(self) -> dict[str, Any]:
        """As `demo --json` gives it."""
        return {
            "id": self.handle and self.handle.id,
            "agent": self.agent,
            "priority": self.priority,
            "prompt": self.prompt,
            "shows": self.shows,
            "right": self.right,
            "place": self.place,
        }


def ask_for_pictures(client: Client, pictures: Sequence[Picture]) -> None:
    """Submit them with one call, and follow them in threads."""
    handles = client.submit_many(
        make_request(
            "image",
            {"prompt": picture.prompt, "seed": SEED},
            model=MODEL,
            agent_id=picture.agent,
            priority=picture.priority,
        )
        for picture in pictures
    )
    for picture, handle in zip(pictures, handles, strict=True):
        picture.handle = handle
        threading.Thread(target=_follow, args=(picture, handle), daemon=True).start()


def _follow(picture: Picture, handle: Handle) -> None:
    """Note what a picture's events tell, to its end, or until the system is stopped."""
    with suppress(BitingLipError):
        for event in handle.stream():
            match event.name:
                case EventName.STARTED:
                    picture.state = "running"
                case EventName.PROGRESS:
                    picture.step = event.data.get("step", 0)
                case EventName.FINISHED:
                    picture.state = "done" if event.data["status"] == Status.COMPLETED else "failed"


def _describe(store: "ArtifactStore", name: str) -> str:
    """What a picture shows, in the words that ask for it."""
    import numpy as np
    from PIL import Image

    from bitinglip.demo.images.judge import judge

    with store.open(name) as file, Image.open(file, formats=("PNG",)) as picture:
        seen = judge(np.asarray(picture.convert("RGB")))
    return f"a {seen.colour} {seen.shape} on {seen.background}" if seen.colour else f"nothing on {seen.background}"
