"""A request for embeddings on its way: its texts, and the vectors that have come back so far.

A result is JSON in PostgreSQL and crosses a pipe on the way, hence `MAX_FLOATS`; how many numbers a task's vectors have
only the model knows, so that the bound is checked here and not where the task is submitted.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from bitinglip.domain.embedding_payload import EmbeddingPayload
from bitinglip.domain.task import describe_first_error
from bitinglip.engine.base import EngineRequest, Failed, Finished, JsonObject, Progress, Usage
from bitinglip.engine.embedding.numbers import to_shortest
from bitinglip.errors import InvalidRequestError

MAX_FLOATS = 262_144
"""Some 3.5 MB of JSON. Reading and writing it keeps the worker's other threads from Python for half a second or so, its
heartbeat among them; its lease is to outlast several at once on a busy machine."""

SMALLEST_NORM = 1e-12
"""A vector of zeros stays one."""


@dataclass(slots=True, eq=False)
class EmbeddingRequest:
    """A validated request and what it has got.

    Attributes:
        dimensions: Of each of its vectors.
        vectors: In the order of its texts; None where one is still to come.
        truncated: Texts that were longer than the model's context.
        ended: Whether its end has been told.
    """

    id: str
    payload: EmbeddingPayload
    dimensions: int
    vectors: list[list[float] | None] = field(init=False)
    done: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    engine_seconds: float = 0.0
    ended: bool = False

    def __post_init__(self) -> None:
        self.vectors = [None] * len(self.payload.input)

    def take(self, index: int, vector: NDArray[np.float32], *, tokens: int) -> None:
        """Keep the vector of one text.

        Args:
            index: Of the text.
            vector: As pooled, whole and not normalised.
            tokens: That were read for it.
        """
        kept = vector[: self.dimensions]
        if self.payload.normalize:
            kept = kept / max(float(np.linalg.norm(kept)), SMALLEST_NORM)
        self.vectors[index] = to_shortest(kept.astype(np.float32))
        self.done += 1
        self.prompt_tokens += tokens

    def tell(self) -> Finished | Progress:
        """Return the event that says how far it is."""
        if self.done < len(self.vectors):
            return Progress(self.id, self.done / len(self.vectors))
        self.ended = True
        result: JsonObject = {
            "embeddings": self.vectors,
            "dimensions": self.dimensions,
            "truncated": self.truncated,
        }
        return Finished(self.id, result, self._usage)

    def fail(self, code: str, message: str, *, retryable: bool = False) -> Failed:
        """Return the event that ends it without a result."""
        self.ended = True
        return Failed(self.id, code, message, retryable, self._usage)

    @property
    def _usage(self) -> Usage:
        return Usage(self.engine_seconds, self.prompt_tokens)


def open_request(request: EngineRequest, dimensions: int) -> EmbeddingRequest:
    """Validate a request.

    Args:
        request: As it came.
        dimensions: Of the model's vectors.

    Raises:
        InvalidRequestError: With the field, its value and what would be right.
    """
    try:
        payload = EmbeddingPayload.model_validate(request.payload)
    except ValidationError as exc:
        raise describe_first_error(exc) from exc
    wanted = payload.dimensions or dimensions
    if wanted > dimensions:
        raise InvalidRequestError("dimensions", wanted, f"the model's vectors have {dimensions:,}; ask for no more")
    most = MAX_FLOATS // wanted
    if len(payload.input) > most:
        remedy = f"with {wanted:,} dimensions a task may have {most:,}; split it, or ask for fewer dimensions"
        raise InvalidRequestError("input", f"{len(payload.input):,} texts", remedy)
    return EmbeddingRequest(request.id, payload, wanted)
