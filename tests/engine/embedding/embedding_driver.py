"""Drive an embedding engine by hand: add, step, collect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from driven import Driven
from numpy.typing import NDArray
from torch import Tensor

from bitinglip.engine.base import EngineConfig, EngineRequest, Failed, Finished, Progress
from bitinglip.engine.embedding import load

Vectors = NDArray[np.float64]
Fails = Callable[[list[list[int]]], BaseException | None]


class EmbeddingDriver(Driven):
    """An engine over a model folder, and everything it has said."""

    def __init__(self, folder: Path, *, memory_bytes: int = 10**9, step_tokens: int | None = None, **more: Any) -> None:
        super().__init__()
        config = EngineConfig(model="tiny", folder=folder, memory_bytes=memory_bytes, **more)
        self.engine = load(config)
        self.batches: list[list[list[int]]] = []
        self.fails: Fails = lambda texts: None
        if step_tokens is not None:
            self.engine._size.tokens = self.engine._size._most = self.engine._size._ceiling = step_tokens
        self._encode = self.engine._encoder.encode
        self.engine._encoder.encode = self._watch  # type: ignore[method-assign]

    def add(self, request_id: str, *texts: str, **options: Any) -> None:
        """Add a request."""
        self.engine.add(EngineRequest(request_id, {"input": list(texts), **options}))

    def ask(self, *texts: str, **options: Any) -> Vectors:
        """The vectors of one request alone."""
        name = f"ask-{len(self.events)}"
        self.add(name, *texts, **options)
        self.run()
        return self.vectors(name)

    def finished(self, request_id: str) -> Finished:
        """The end of a request that has finished; progress only grows before it."""
        *before, end = self.events[request_id]
        assert isinstance(end, Finished), end
        fractions = [event.fraction for event in before if isinstance(event, Progress)]
        assert len(fractions) == len(before)
        assert fractions == sorted(fractions)
        assert all(0 < fraction < 1 for fraction in fractions)
        return end

    def vectors(self, request_id: str) -> Vectors:
        """The vectors of a request that has finished."""
        return np.array(self.finished(request_id).result["embeddings"])

    def failure(self, request_id: str) -> Failed:
        """The end of a request that has failed."""
        end = super().failure(request_id)
        assert all(isinstance(event, Progress) for event in self.events[request_id][:-1])
        return end

    def _watch(self, texts: list[list[int]]) -> Tensor:
        self.batches.append(texts)
        if (error := self.fails(texts)) is not None:
            raise error
        return self._encode(texts)


def pool_by_hand(model: Any, ids: list[int], *, normalize: bool = True) -> Vectors:
    """The mean of a text's token vectors, computed as one would at a prompt."""
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
    mean = hidden.mean(dim=0).numpy()
    pooled: Vectors = mean / np.linalg.norm(mean) if normalize else mean
    return pooled
