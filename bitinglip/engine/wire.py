"""How commands and events cross the pipe between a worker and its engine: JSON frames, never pickles."""

import json
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from bitinglip.engine.base import Begun, Failed, Finished, Progress, PutOff, Text, Usage

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """Start a request on the engine of a kind and model, loading it first if need be.

    Attributes:
        made_token_ids: Tokens that earlier attempts made and sent; the text continues after them.
        inputs: Local files that the worker has fetched for it, by what they are for.
        spool: A local folder of this attempt's own, for the files that it makes; None: it may make none.
    """

    request_id: str
    kind: str
    model: str | None
    folder: str | None
    payload: JsonObject
    made_token_ids: list[int] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    spool: str | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a request at its engine's next step."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Preload:
    """Load a model before anyone asks for it."""

    kind: str
    model: str
    folder: str


@dataclass(frozen=True, slots=True)
class Loading:
    """The process begins to load a model. Sent before, so that its death on the way can be told from others."""

    model: str | None


@dataclass(frozen=True, slots=True)
class Holding:
    """Which models the process holds now.

    Attributes:
        model_bytes: What each takes now, measured: weights, keys and values; of several devices each counts like the
            fullest.
        memory_bytes: What everything takes on the fullest device.
        loads: How many engines the process has loaded so far.
    """

    model_bytes: dict[str, int] = field(default_factory=dict)
    memory_bytes: int = 0
    loads: int = 0

    @property
    def models(self) -> list[str]:
        """Their names, in order."""
        return sorted(self.model_bytes)


Command = Run | Cancel | Preload
Message = PutOff | Begun | Progress | Text | Finished | Failed | Loading | Holding

_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (Run, Cancel, Preload, Loading, Holding, PutOff, Begun, Progress, Text, Finished, Failed)
}


def send(connection: "Connection[Any, Any]", messages: list[Any]) -> None:
    """Send messages as one frame.

    Raises:
        OSError: If the other end is gone.
    """
    frame = [[type(message).__name__, asdict(message)] for message in messages]
    connection.send_bytes(json.dumps(frame, separators=(",", ":")).encode())


def receive(connection: "Connection[Any, Any]") -> list[Any]:
    """Wait for one frame and return its messages.

    Raises:
        EOFError: If the other end has closed.
        OSError: If the other end is gone.
    """
    return [_decode(name, fields) for name, fields in json.loads(connection.recv_bytes())]


def _decode(name: str, fields: JsonObject) -> Any:
    if "usage" in fields:
        fields["usage"] = Usage(**fields["usage"])
    return _TYPES[name](**fields)
