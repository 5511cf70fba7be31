"""The loop: one `step()` advances one batch by one step.

    inbox ──► jobs ──────────────► drawings ──► Finished
    checked   one batch of a kind  whoever had least
              of settings at once  is next

Pictures of equal settings share a batch. What fails goes back with the pictures that are not drawn, or ends with
`Failed`; nothing is lost.
"""

from collections import deque
from itertools import zip_longest
from time import perf_counter

import torch

from bitinglip.engine.base import EngineConfig, EngineEvent, EngineRequest, Failed
from bitinglip.engine.image.capacity import Capacity, find_budget
from bitinglip.engine.image.drawing import Drawing, Row
from bitinglip.engine.image.job import Job
from bitinglip.engine.image.pipeline import ImagePipeline, Settings
from bitinglip.engine.image.preview import Previewer
from bitinglip.engine.image.request import RequestReader
from bitinglip.engine.text.memory import count_bytes, free_memory, is_out_of_memory
from bitinglip.errors import BitingLipError, EngineBrokenError
from bitinglip.telemetry import get_logger

READ_SECONDS = 0.5
"""In one step; what has come in and is not read by then waits for the next."""

BatchKey = tuple[Settings, str | None, bool]


class DiffusionEngine:
    """Batched drawing with one pipeline.

    Args:
        config: Its limits.
        pipeline: Its weights.
    """

    def __init__(self, config: EngineConfig, pipeline: ImagePipeline) -> None:
        self._log = get_logger(model=config.model)
        self._model = config.model
        self._pipeline = pipeline
        modules = list(pipeline.modules())
        weights = count_bytes(tensor for part in modules for tensor in [*part.parameters(), *part.buffers()])
        self._weight_bytes = max(weights.values(), default=0)
        budget = find_budget(config.memory_bytes, self._weight_bytes, pipeline.device)
        self._capacity = Capacity(config.max_rows, budget)
        self._reader = RequestReader(pipeline)
        self._previewer = Previewer(pipeline.vae)
        self._inbox: deque[EngineRequest] = deque()
        self._cancelled: set[str] = set()
        self._jobs: list[Job] = []
        self._drawings: dict[BatchKey, Drawing] = {}

    def add(self, request: EngineRequest) -> None:
        """Take a request; a later step checks it."""
        self._inbox.append(request)

    def cancel(self, request_id: str) -> None:
        """Stop a request at the next step."""
        self._cancelled.add(request_id)

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._inbox or self._jobs)

    @property
    def prefilling(self) -> bool:
        """Whether the next step reads prompts."""
        drawing = self._choose()
        return bool(self._inbox) or drawing is None or not drawing.has_begun

    @property
    def memory_bytes(self) -> int:
        """Weights, and while pictures are drawn what the largest step is known to take beside them."""
        areas = [drawing.area for drawing in self._drawings.values()]
        return self._weight_bytes + self._capacity.estimate_bytes(max(areas, default=0))

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """Check what has come in, and advance the batch whose turn it is.

        Raises:
            EngineBrokenError: If the device cannot go on.
        """
        try:
            events = self._drop_cancelled()
            events += self._read_inbox()
            self._begin_drawings()
            events += self._advance()
        except torch.AcceleratorError as exc:
            raise EngineBrokenError(f"the device cannot go on: {exc}") from exc
        self._jobs = [job for job in self._jobs if not job.ended]
        return events

    def close(self) -> None:
        """Let go of the model and its memory."""
        for drawing in self._drawings.values():
            drawing.stop()
        self._drawings.clear()
        self._jobs.clear()
        self._inbox.clear()
        del self._pipeline, self._reader, self._previewer
        self._weight_bytes = 0
        free_memory()

    # The way in

    def _drop_cancelled(self) -> list[EngineEvent]:
        ids, self._cancelled = self._cancelled, set()
        if not ids:
            return []
        gone = [request.id for request in self._inbox if request.id in ids]
        self._inbox = deque(request for request in self._inbox if request.id not in ids)
        events: list[EngineEvent] = [
            Failed(request_id, "cancelled", "cancelled before it ran", retryable=False) for request_id in gone
        ]
        running = [job for job in self._jobs if job.id in ids]
        events += [job.fail("cancelled", "cancelled while it ran", retryable=False) for job in running]
        for key, drawing in list(self._drawings.items()):
            if not drawing.jobs:
                drawing.stop()
                del self._drawings[key]
        return events

    def _read_inbox(self) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        began = perf_counter()
        while self._inbox:
            request = self._inbox.popleft()
            try:
                self._jobs.append(self._reader.read(request))
            except BitingLipError as exc:
                events.append(Failed(request.id, exc.code, str(exc), retryable=False))
            except Exception as exc:  # A tokenizer's Rust side raises anything; it is this request's failure alone.
                message = f"the request cannot be read: {exc}"
                events.append(Failed(request.id, "invalid_request", message, retryable=False))
            if perf_counter() - began > READ_SECONDS:
                # A large picture to start from takes seconds to decode; the rest come with the next step.
                break
        return events

    def _begin_drawings(self) -> None:
        """Begin a batch for all settings that pictures wait for and that have none in flight."""
        for job in self._jobs:
            if job.ended or not job.waiting or job.batch_key in self._drawings:
                continue
            if self._capacity.exceeds_budget(job.settings.pixels):
                job.thrifty = True
            if job.batch_key not in self._drawings:
                self._drawings[job.batch_key] = self._open_drawing(job.batch_key)

    def _open_drawing(self, key: BatchKey) -> Drawing:
        sharing = [job for job in self._jobs if job.batch_key == key and job.waiting and not job.ended]
        most = 1 if key[2] else self._capacity.count_rows(key[0].pixels)
        # The first of each request, then the second of each: one that wants many holds nobody up.
        rounds = zip_longest(*([Row(job, index) for index in job.waiting] for job in sharing))
        rows = [row for one_of_each in rounds for row in one_of_each if row is not None][:most]
        for row in rows:
            row.job.waiting.remove(row.index)
        turn = min((drawing.turn for drawing in self._drawings.values()), default=0.0)
        return Drawing(self._model, self._pipeline, self._previewer, rows, turn=turn)

    # Drawing

    def _choose(self) -> Drawing | None:
        """Whose turn it is.

        One that decodes goes first, because it may have changed the VAE's precision for it. Then one that ran out of
        memory, to its end: it needs whatever there is.
        """
        return min(
            self._drawings.values(),
            key=lambda drawing: (not drawing.is_decoding, not drawing.is_thrifty, drawing.turn),
            default=None,
        )

    def _advance(self) -> list[EngineEvent]:
        drawing = self._choose()
        if drawing is None:
            return []
        if not drawing.is_decoding:
            self._pipeline.restore_vae()
        try:
            events = drawing.advance()
        except torch.AcceleratorError:
            raise
        except Exception as exc:
            self._forget(drawing)
            failure = exc.with_traceback(None)
        else:
            if drawing.has_ended or not drawing.jobs:
                self._capacity.note_peak(drawing.area, drawing.peak_bytes)
                self._capacity.note_success(drawing.area)
                self._forget(drawing)
            return events
        return self._blame(drawing, failure)

    def _forget(self, drawing: Drawing) -> None:
        drawing.stop()
        self._drawings = {key: other for key, other in self._drawings.items() if other is not drawing}

    # When something fails

    def _blame(self, drawing: Drawing, failure: Exception) -> list[EngineEvent]:
        self._log.warning("batch_failed", rows=len(drawing.rows), step=drawing.step, error=type(failure).__name__)
        jobs = drawing.jobs
        if is_out_of_memory(failure):
            return self._survive_starvation(drawing, failure)
        if len(jobs) > 1:
            for job in jobs:
                job.alone = True
            self._put_back(drawing)
            return []
        # What a pipeline says of its arguments comes before it computes.
        if isinstance(failure, ValueError) and not drawing.has_begun:
            return [job.fail("invalid_request", f"the model refuses it: {failure}", retryable=False) for job in jobs]
        return [job.fail("engine_error", f"the model cannot draw it: {failure}", retryable=False) for job in jobs]

    def _survive_starvation(self, drawing: Drawing, failure: Exception) -> list[EngineEvent]:
        """Memory ran out: half as many at once; one picture in a way that takes less; then it fails."""
        free_memory()
        self._put_back(drawing)
        if len(drawing.rows) > 1:
            self._capacity.lower(drawing.area // 2)
            return []
        if not drawing.is_thrifty:
            for job in drawing.jobs:
                job.thrifty = True
            return []
        settings = drawing.settings
        width, height = self._capacity.suggest_size(settings.width, settings.height, self._pipeline.side_step)
        message = (
            f"not enough memory for {settings.width} x {settings.height}, even alone: {failure}; "
            f"ask for {width} x {height}, or use a larger GPU"
        )
        return [job.fail("out_of_memory", message, retryable=True) for job in drawing.jobs]

    def _put_back(self, drawing: Drawing) -> None:
        """Let pictures wait again. A batch that fails has written none: that comes when its call has ended."""
        for job in drawing.jobs:
            job.put_back([row.index for row in drawing.rows if row.job is job])
