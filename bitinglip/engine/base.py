"""What every engine is: one loaded model that advances many requests, a step at a time.

The process that holds the GPU (`engine.host`) owns one thread that calls `step()` on each of its busy engines in
turn, so that engines of different kinds share a GPU without locks. An engine therefore never blocks for longer than one
step and is never called from two threads.

Invariant: for every request that `add` accepted, exactly one `Finished` or `Failed` is returned by a later `step()` or
`cancel()`, and nothing for that request after it. A bad request fails alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One attempt at one task, as the engine sees it.

    Attributes:
        id: Unique within the process (`task_id:attempt`).
        payload: The kind's validated payload, as JSON.
        made_token_ids: Tokens that earlier attempts made and sent as `Text`; the text continues after them.
        inputs: Local files that the worker has fetched for it, by what they are for.
        spool: A local folder of this attempt's own, for the files that it makes; None: it may make none.
    """

    id: str
    payload: JsonObject
    made_token_ids: Sequence[int] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    spool: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request has cost.

    Attributes:
        engine_seconds: Its share of every step that it took part in, prefill and decode; and the load that it caused.
        prompt_tokens: Tokens read.
        completion_tokens: Tokens made.
        load_seconds: Of these engine seconds, what loading its model took; 0 where others had caused the load.
        steps: Steps taken, over all its pictures.
        pixels: Of all its pictures.
    """

    engine_seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    load_seconds: float = 0.0
    steps: int = 0
    pixels: int = 0


@dataclass(frozen=True, slots=True)
class PutOff:
    """The request waits: there is no room for its model until those in use have ended. `Begun` follows."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that was put off has begun."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A fraction of the work, 0 to 1.

    Attributes:
        detail: What else the kind says of it, as JSON.
    """

    request_id: str
    fraction: float
    detail: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Text:
    """New text, whole characters only, held-back stop strings excluded.

    Attributes:
        token_ids: The tokens made since the last `Text`; a new attempt continues from them.
        last: `Finished` follows. Nobody sees it before the ending is recorded: there is nothing to continue after it.
    """

    request_id: str
    text: str
    token_ids: list[int] = field(default_factory=list)
    last: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is done; `result` is the kind's result as JSON."""

    request_id: str
    result: JsonObject
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without a result.

    Attributes:
        code: Stable, snake_case: `invalid_request`, `prompt_too_long`, `out_of_memory`, `cancelled`, ...
        message: What, which, remedy; for a person.
        retryable: Whether another attempt may succeed.
    """

    request_id: str
    code: str
    message: str
    retryable: bool
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine process ended under the request; made by the link, never by an engine.

    Attributes:
        message: What happened, with the process's exit status and last words; at most some 2,000 characters.
        companions: How many other requests the process held.
        blameless: Whether no request in it can be to blame: it was killed on purpose, or had not begun to take any, or
            loaded a model.
        loading: The model that it died of while it loaded it.
    """

    request_id: str
    message: str
    companions: int
    blameless: bool
    loading: str | None = None


EngineEvent = PutOff | Begun | Progress | Text | Finished | Failed | EngineLost


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to load one model.

    Attributes:
        model: The model's name, as tasks name it.
        folder: Where its files are; None for a kind that needs no model.
        devices: Torch devices, `cpu` or `cuda:N` counted within the process. More than one: spread by accelerate.
        max_rows: Requests that compute at once.
        memory_bytes: Budget on each device for weights, KV cache and working space; None leaves it to the engine.
        whole_bytes: What that would be without the other engines of the process, which may leave; None: the same. A
            request that fits into it is not refused, though it may have to run alone.
        dtype: `auto` (the checkpoint's), `float32`, `bfloat16` or `float16`.
    """

    model: str
    folder: Path | None
    devices: Sequence[str] = ("cpu",)
    max_rows: int = 16
    memory_bytes: int | None = None
    whole_bytes: int | None = None
    dtype: str = "auto"


class Engine(Protocol):
    """One loaded model. Made by a kind's `load(config: EngineConfig) -> Engine`, in the engine thread."""

    def add(self, request: EngineRequest) -> None:
        """Take a request. Never raises for a bad one: the next `step()` returns its `Failed`."""

    def cancel(self, request_id: str) -> None:
        """Stop a request at the next step, which returns `Failed(code='cancelled')`; an unknown id is ignored."""

    def step(self) -> list[EngineEvent]:
        """Advance every running request once and return what happened, in order.

        Raises:
            EngineBrokenError: If the engine cannot go on (a poisoned CUDA context). The process must end.
        """

    @property
    def busy(self) -> bool:
        """Whether `step()` has anything to do now."""

    @property
    def prefilling(self) -> bool:
        """Whether the next step reads a prompt, which takes longer."""

    @property
    def memory_bytes(self) -> int:
        """Bytes held now on the fullest device: weights and KV cache."""

    def close(self) -> None:
        """Let go of the model and its memory."""
