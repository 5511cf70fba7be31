"""The loop: one `step()` tokenises some texts and gives one batch of them its vectors.

    inbox ──► unread ──────► queue ──────► batch ──► Progress, Finished
    checked   tokenised,     sorted by     one forward pass
              cut            length

Texts of all requests share a batch. What fails goes back to the queue, or ends its request with `Failed`.
"""

from collections import deque
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from bitinglip.engine.base import EngineConfig, EngineEvent, EngineRequest, Failed
from bitinglip.engine.embedding.batching import StepSize, TextQueue, WaitingText
from bitinglip.engine.embedding.encoder import measure_encoder
from bitinglip.engine.embedding.loading import LoadedEncoder
from bitinglip.engine.embedding.reading import TextReader
from bitinglip.engine.embedding.request import EmbeddingRequest, open_request
from bitinglip.engine.text.memory import (
    count_others_bytes,
    count_weights,
    free_memory,
    is_out_of_memory,
    plan_kv_bytes,
)
from bitinglip.engine.text.request import PromptTooLongError
from bitinglip.errors import EngineBrokenError, InvalidRequestError
from bitinglip.telemetry import get_logger

READ_CHARS = 200_000
"""Tokenised in one step: some tenths of a second."""

# Tokens: two cores read some hundred of a small encoder in a quarter of a second, a GPU some ten thousand.
FIRST_STEP = {"cpu": 256}
LARGEST_STEP = {"cpu": 16_384}


class EmbeddingEngine:
    """Vectors for the texts of many requests at once.

    Args:
        config: Its limits.
        loaded: The model and its tokenizer.
    """

    @torch.inference_mode()
    def __init__(self, config: EngineConfig, loaded: LoadedEncoder) -> None:
        self._log = get_logger(model=config.model)
        self._encoder = loaded.encoder
        self._traits = measure_encoder(self._encoder)
        self._weights = count_weights(loaded.model)
        self._free_bytes = plan_kv_bytes(config, self._weights, vocabulary=0)
        self._others_bytes = count_others_bytes(config)
        self._reader = TextReader(loaded.tokenizer, self._encoder.vocabulary, loaded.context)
        kind = self._encoder.device.type
        self._size = StepSize(FIRST_STEP.get(kind, 4_096), LARGEST_STEP.get(kind, 131_072))
        self._inbox: deque[EngineRequest] = deque()
        self._requests: dict[str, EmbeddingRequest] = {}
        self._cancelled: set[str] = set()
        self._unread: deque[tuple[EmbeddingRequest, int]] = deque()
        self._queue = TextQueue()
        self._arrived = 0

    def add(self, request: EngineRequest) -> None:
        """Take a request; a later step checks it."""
        self._inbox.append(request)

    def cancel(self, request_id: str) -> None:
        """Stop a request at the next step."""
        self._cancelled.add(request_id)

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._inbox or self._requests)

    @property
    def prefilling(self) -> bool:
        """Always when there is anything to do: reading is all that it does."""
        return self.busy

    @property
    def memory_bytes(self) -> int:
        """Weights on the fullest device; a pass leaves nothing behind."""
        return max(self._weights.values(), default=0)

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """Tokenise some texts, compute one batch.

        Raises:
            EngineBrokenError: If the device cannot go on.
        """
        try:
            events = self._open() + self._drop_cancelled() + self._read()
            return events + self._encode()
        except torch.AcceleratorError as exc:
            raise EngineBrokenError(f"the device cannot go on: {exc}") from exc

    def close(self) -> None:
        """Let go of the model and its memory."""
        self._requests.clear()
        self._unread.clear()
        del self._encoder, self._reader, self._queue
        self._weights.clear()
        free_memory()

    # The way in

    def _open(self) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        while self._inbox:
            request = self._inbox.popleft()
            try:
                opened = open_request(request, self._traits.dimensions)
            except InvalidRequestError as exc:
                events.append(Failed(request.id, exc.code, str(exc), retryable=False))
                continue
            self._requests[request.id] = opened
            self._unread.extend((opened, index) for index in range(len(opened.vectors)))
        return events

    def _drop_cancelled(self) -> list[EngineEvent]:
        ids, self._cancelled = self._cancelled, set()
        gone = [self._requests[request_id] for request_id in ids if request_id in self._requests]
        return [self._fail(request, "cancelled", "cancelled while it ran") for request in gone]

    def _read(self) -> list[EngineEvent]:
        """Tokenise texts in order of arrival."""
        events: list[EngineEvent] = []
        chars = 0
        while self._unread and chars < READ_CHARS:
            request, index = self._unread.popleft()
            text = request.payload.input[index]
            chars += len(text)
            try:
                self._add(request, index, text)
            except InvalidRequestError as exc:
                events.append(self._fail(request, exc.code, str(exc)))
            except Exception as exc:  # A tokenizer's Rust side raises anything; it is this request's failure alone.
                events.append(self._fail(request, "invalid_request", f"input.{index} cannot be read: {exc}"))
        return events

    def _add(self, request: EmbeddingRequest, index: int, text: str) -> None:
        read = self._reader.read(index, text)
        room, needed = self._free_bytes + self._others_bytes, self._encoder.shape.count_bytes(1, len(read.ids))
        if needed > room:
            remedy = f"its {len(read.ids):,} tokens need {needed:,} bytes, of {room:,}; split it, or give more memory"
            raise PromptTooLongError(f"input.{index}", text, remedy)
        request.truncated += read.truncated
        self._arrived += 1
        self._queue.add(WaitingText(request, index, read.ids, self._arrived))

    # Computing

    def _encode(self) -> list[EngineEvent]:
        if not self._queue:
            return []
        batch = self._queue.take_batch(self._fits, pads=self._traits.pads)
        began = perf_counter()
        try:
            vectors = self._encoder.encode([text.ids for text in batch]).cpu().numpy()
        except torch.AcceleratorError:
            raise
        except Exception as exc:
            failure = exc.with_traceback(None)
        else:
            self._note(batch, perf_counter() - began)
            return self._deliver(batch, vectors)
        return self._blame(batch, failure)

    def _fits(self, rows: int, width: int) -> bool:
        needed = self._encoder.shape.count_bytes(rows, width)
        return rows * width <= self._size.tokens and needed <= self._free_bytes

    def _note(self, batch: list[WaitingText], seconds: float) -> None:
        """Share the cost of a batch by tokens."""
        self._size.note(_count_computed(batch), seconds)
        real = sum(len(text.ids) for text in batch)
        for text in batch:
            text.request.engine_seconds += seconds * len(text.ids) / real

    def _deliver(self, batch: list[WaitingText], vectors: NDArray[np.float32]) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        for text, vector in zip(batch, vectors, strict=True):
            if text.request.ended:
                continue
            if np.isfinite(vector).all():
                text.request.take(text.index, vector, tokens=len(text.ids))
            else:
                message = f"the model's numbers are not finite for input.{text.index}; try float32"
                events.append(self._fail(text.request, "engine_error", message))
        touched = {text.request.id: text.request for text in batch if not text.request.ended}
        for request in touched.values():
            events.append(request.tell())
            if request.ended:
                del self._requests[request.id]
        return events

    # When something fails

    def _blame(self, batch: list[WaitingText], failure: Exception) -> list[EngineEvent]:
        starved = is_out_of_memory(failure)
        self._log.info("batch_failed", texts=len(batch), error=type(failure).__name__, out_of_memory=starved)
        if starved:
            self._size.halve(_count_computed(batch))
            free_memory()
        if len(batch) == 1:
            return [self._fail_alone(batch[0], failure, starved=starved)]
        for text in batch:
            text.alone = text.alone or not starved
            self._queue.add(text)
        return []

    def _fail_alone(self, text: WaitingText, failure: Exception, *, starved: bool) -> Failed:
        tokens = f"input.{text.index} of {len(text.ids):,} tokens"
        if starved:
            message = f"not enough memory for {tokens}, even alone: {failure}; shorten it or use a larger GPU"
            return self._fail(text.request, "out_of_memory", message, retryable=True)
        return self._fail(text.request, "engine_error", f"the model cannot read {tokens}: {failure}")

    def _fail(self, request: EmbeddingRequest, code: str, message: str, *, retryable: bool = False) -> Failed:
        """End a request; nothing of it is read or computed any more."""
        failed = request.fail(code, message, retryable=retryable)
        del self._requests[request.id]
        self._unread = deque(item for item in self._unread if item[0] is not request)
        self._queue.drop_ended()
        return failed


def _count_computed(batch: list[WaitingText]) -> int:
    """Tokens of a batch, padding included."""
    return len(batch) * max(len(text.ids) for text in batch)
