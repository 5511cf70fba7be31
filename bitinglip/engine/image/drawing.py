"""One batch in flight: its call stands still between steps, and its pictures are written one a step.

    prompts ──► step 1 ... step N ──► decoding, in pieces ──► writing, one picture a step
    └──────── in the call's thread, one piece at a time ───┘   in the engine's

A row whose request has ended is computed to the end with the others, for its neighbours' sake: taking it out would
change the state of schedulers that remember past steps. It is neither decoded nor written.
"""

import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitinglip.engine.base import EngineEvent, JsonObject
from bitinglip.engine.image.capacity import Peak
from bitinglip.engine.image.decoding import PieceDecoder
from bitinglip.engine.image.files import write_picture
from bitinglip.engine.image.handover import SteppedCall
from bitinglip.engine.image.job import Job
from bitinglip.engine.image.pipeline import Drawn, ImagePipeline, Settings
from bitinglip.engine.image.preview import Previewer
from bitinglip.settings import ImageSettings, load_settings

_FULL = {errno.ENOSPC, errno.EDQUOT}
_PACKED_DIMENSIONS, _VIDEO_DIMENSIONS = 3, 5


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One picture of a request, in a batch."""

    job: Job
    index: int


class Drawing:
    """A batch of pictures with the same settings.

    Args:
        model: The model's name.
        pipeline: What draws.
        previewer: Makes previews of its latents.
        rows: What to draw; at least one.
        turn: The turn to begin with.

    Attributes:
        rows: In the order of the batch.
        turn: What it has had, in seconds for each request that waits for it; who had least is next.
        step: Steps taken.
        peak_bytes: What its largest step so far needed beside what was there; None: less than can be seen.
    """

    def __init__(
        self, model: str, pipeline: ImagePipeline, previewer: Previewer, rows: Sequence[Row], *, turn: float
    ) -> None:
        self.rows = list(rows)
        self.turn = turn
        self.step = 0
        self.peak_bytes: int | None = None
        self._model = model
        self._pipeline = pipeline
        self._previewer = previewer
        self._steps = self.settings.steps
        self._pipe: Any = None
        self._latents: Tensor | None = None
        self._call = SteppedCall(self._compute)
        self._decoder: PieceDecoder | None = None
        self._begun = False
        self._drawn: Drawn | None = None
        self._unwritten: deque[int] = deque()

    @property
    def settings(self) -> Settings:
        """What its pictures have in common."""
        return self.rows[0].job.settings

    @property
    def is_thrifty(self) -> bool:
        """Whether it takes less memory, and longer."""
        return self.rows[0].job.thrifty

    @property
    def area(self) -> int:
        """Pixels of all its rows."""
        return len(self.rows) * self.settings.pixels

    @property
    def jobs(self) -> list[Job]:
        """The requests that still wait for it, in order of arrival."""
        return list({id(row.job): row.job for row in self.rows if not row.job.ended}.values())

    @property
    def has_begun(self) -> bool:
        """Whether its prompts are read."""
        return self._begun

    @property
    def is_decoding(self) -> bool:
        """Whether it stands between two pieces of decoding."""
        return self._drawn is None and self._decoder is not None and self._decoder.has_begun

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to do for it."""
        return self._drawn is not None and not self._unwritten

    def advance(self) -> list[EngineEvent]:
        """Read the prompts, take one step, decode one piece or write one picture; return what happened.

        Raises:
            Exception: Whatever the pipeline raised; the batch is over then.
        """
        return self._draw() if self._drawn is None else self._write()

    def stop(self) -> None:
        """End it where it stands."""
        self._call.stop()
        self._latents = self._pipe = None
        self._unwritten.clear()

    # In the call's thread

    def _compute(self, pause: Callable[[], None]) -> Drawn:
        def pause_when_computed() -> None:
            if self._pipeline.device.type == "cuda":
                torch.cuda.synchronize()
            pause()

        def note_step(latents: Tensor) -> None:
            self.step += 1
            self._steps = getattr(pipe, "_num_timesteps", None) or len(pipe.scheduler.timesteps)
            self._latents = latents
            pause_when_computed()

        pipe = self._pipe = self._pipeline.open(self.settings, on_ready=pause_when_computed, on_step=note_step)
        decoder = self._decoder = PieceDecoder(
            len(self.rows),
            self.settings.pixels,
            is_wanted=lambda number: not self.rows[number].job.ended,
            pause=pause_when_computed,
        )
        if self._pipeline.vae is not None:
            pipe.vae = decoder.attach(pipe.vae)
        if not self.is_thrifty:
            drawn = self._call_pipeline(pipe)
        else:
            decoder.tile(pipe.vae)
            pipe.enable_attention_slicing()
            try:
                drawn = self._call_pipeline(pipe)
            finally:
                # The networks are everybody's.
                pipe.disable_attention_slicing()
        if decoder.is_tiled:
            for job in self.jobs:
                job.notes.append("decoded in tiles, because memory was short; edges of tiles may show")
        return drawn

    def _call_pipeline(self, pipe: Any) -> Drawn:
        pictures = [row.job.picture(row.index) for row in self.rows]
        return self._pipeline.call(pipe, self.settings, pictures)

    # In the engine's thread

    def _draw(self) -> list[EngineEvent]:
        step, began, peak = self.step, perf_counter(), Peak(self._pipeline.device)
        try:
            gave = self._call.advance()
        finally:
            self._charge(perf_counter() - began)
            self._note_peak(peak)
        self._begun = True
        if gave is not None:
            self._drawn = gave[0]
            self._latents = self._pipe = None
            self._unwritten.extend(range(len(self.rows)))
            return []
        return self._report() if self.step > step else []

    def _charge(self, seconds: float) -> None:
        jobs = self.jobs
        self.turn += seconds / max(1, len(jobs))
        for row in self.rows:
            row.job.engine_seconds += seconds / len(self.rows)

    def _note_peak(self, peak: Peak) -> None:
        measured = peak.measure()
        if measured is not None:
            self.peak_bytes = max(measured, self.peak_bytes or 0)

    def _report(self) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        for job in self.jobs:
            numbers = [number for number, row in enumerate(self.rows) if row.job is job]
            job.steps += len(numbers)
            every = job.payload.preview_steps
            preview = self._preview(numbers[0]) if every and self.step % every == 0 else None
            events.append(job.report(self.step, self._steps, len(numbers), preview))
        return events

    def _preview(self, number: int) -> str | None:
        latents, pipe = self._latents, self._pipe
        if latents is None:
            return None
        width, height = self.settings.width, self.settings.height
        one = latents[number : number + 1]
        if one.ndim == _PACKED_DIMENSIONS and hasattr(pipe, "_unpack_latents"):
            # Patches in a row, as Flux's transformer takes them.
            one = pipe._unpack_latents(one, height, width, pipe.vae_scale_factor)
        if one.ndim == _VIDEO_DIMENSIONS:
            one = one[:, :, 0]
        return self._previewer.preview(one[0], width, height)

    def _write(self) -> list[EngineEvent]:
        while self._unwritten:
            number = self._unwritten.popleft()
            if not self.rows[number].job.ended:
                return self._write_row(number)
        return []

    def _write_row(self, number: int) -> list[EngineEvent]:
        row, began = self.rows[number], perf_counter()
        job = row.job
        try:
            entry = self._write_picture(number)
        except OSError as exc:
            code = "disk_full" if exc.errno in _FULL else "engine_error"
            return [job.fail(code, f"picture {row.index} cannot be written to {job.spool}: {exc}", retryable=True)]
        finally:
            seconds = perf_counter() - began
            job.engine_seconds += seconds
            self.turn += seconds / max(1, len(self.jobs))
        if entry is None:
            message = "the model's numbers are not finite for this request; try float32"
            return [job.fail("engine_error", message, retryable=False)]
        job.images.append(entry)
        return [job.finish(self._model, self.step)] if len(job.images) == job.payload.count else []

    def _write_picture(self, number: int) -> JsonObject | None:
        """The result's entry of a picture that is written; None if it is none."""
        if self._drawn is None:
            return None
        row, pixels = self.rows[number], self._drawn.pixels[number]
        if not np.isfinite(pixels).all():
            return None
        job, payload = row.job, row.job.payload
        written = write_picture(
            job.spool,
            row.index,
            pixels,
            payload.format,
            quality=payload.quality,
            parameters=self._describe(row),
            prompts=_find_prompts(job),
        )
        flagged = {"flagged": True} if self._drawn.flagged[number] else {}
        return {
            "index": row.index,
            "file": written.name,
            "media_type": written.media_type,
            "size": written.size,
            "sha256": written.sha256,
            "seed": job.find_seed(row.index),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            **flagged,
        }

    def _describe(self, row: Row) -> JsonObject:
        """How a picture was made, as its file tells."""
        settings = self.settings
        chosen = {
            "guidance": settings.guidance,
            "scheduler": settings.scheduler and settings.scheduler.value,
            "strength": settings.strength,
        }
        return {
            # Of a folder only its name: where it lies is nobody's business who gets the picture.
            "model": Path(self._model).name if Path(self._model).is_absolute() else self._model,
            "seed": row.job.find_seed(row.index),
            "steps": settings.steps,
            "width": settings.width,
            "height": settings.height,
            **{name: value for name, value in chosen.items() if value is not None},
        }


def _find_prompts(job: Job) -> JsonObject:
    if not load_settings(ImageSettings).prompt_in_metadata:
        return {}
    prompts = {"prompt": job.payload.prompt, "negative_prompt": job.payload.negative_prompt}
    return {name: text for name, text in prompts.items() if text is not None}
