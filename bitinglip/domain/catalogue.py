"""The kinds of task there are: a name, what a task of it asks for, and which engine does it.

A kind is found by the entry point group `bitinglip.kinds`, so that another package adds its own by one line in its
pyproject.toml. The engine is named, not imported: only the engine process may import torch.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from bitinglip.domain.embedding_payload import EmbeddingPayload
from bitinglip.domain.image_payload import ImagePayload
from bitinglip.domain.payloads import AgentPayload, DownloadPayload, EchoPayload, Payload, TextPayload
from bitinglip.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of task.

    Attributes:
        name: What `tasks.type` holds and pools.toml lists.
        payload: What a task of this kind asks for.
        engine: `module:function`, called as `load(config: EngineConfig) -> Engine` in the engine process; None: no
            worker does it, the agent takes it itself.
        needs_model: Whether a task of this kind names a model.
        continues: Whether its engine goes on from the tokens that an earlier attempt made.
        timed: Whether `TASK_TIMEOUT` bounds an attempt; otherwise its engine sees to it that it goes on.
        max_attempts: Attempts that a task of it may spend; None: as the settings say.
        base_retry_seconds: Before its first retry; None: as the settings say.
        files: The key of its result that lists the files it makes: objects with `file`, a name in the spool folder,
            `size` and `sha256`; in the record an artifact's name takes the file's place. None: it makes none.
        inputs: Fields of its payload that name artifacts, which its engine is given as local files.
    """

    name: str
    payload: type[Payload]
    engine: str | None
    needs_model: bool = True
    continues: bool = False
    timed: bool = True
    max_attempts: int | None = None
    base_retry_seconds: float | None = None
    files: str | None = None
    inputs: tuple[str, ...] = ()

    def import_engine(self) -> "Callable[..., Any]":
        """The engine's `load`; imports whatever it needs, torch included.

        Raises:
            InvalidRequestError: If no engine does this kind.
        """
        if self.engine is None:
            raise InvalidRequestError("type", self.name, "agents take it themselves, no engine does it")
        module, _, function = self.engine.partition(":")
        load: Callable[..., Any] = getattr(import_module(module), function)
        return load


TEXT = Kind("text", TextPayload, "bitinglip.engine.text:load", continues=True)
EMBEDDING = Kind("embedding", EmbeddingPayload, "bitinglip.engine.embedding:load")
IMAGE = Kind("image", ImagePayload, "bitinglip.engine.image:load", files="images", inputs=("image",))
ECHO = Kind("echo", EchoPayload, "bitinglip.engine.fake:load", needs_model=False)
DOWNLOAD = Kind(
    "download",
    DownloadPayload,
    "bitinglip.registry.engine:load",
    needs_model=False,
    timed=False,
    max_attempts=5,
    base_retry_seconds=5.0,
)
AGENT = Kind("agent", AgentPayload, engine=None, needs_model=False)


@cache
def find_kinds() -> dict[str, Kind]:
    """Every kind installed, by name."""
    return {point.name: point.load() for point in entry_points(group="bitinglip.kinds")}


def get_kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        InvalidRequestError: If no installed package brings it.
    """
    kinds = find_kinds()
    if name not in kinds:
        raise InvalidRequestError("type", name, f"choose one of {', '.join(sorted(kinds))}")
    return kinds[name]
