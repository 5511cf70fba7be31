"""A request checked against the model, before anything is computed for it.

What pydantic cannot know is checked here: sizes that the model has, schedulers that it goes with, whether it takes a
negative prompt, guidance or a picture to start from. Whatever is wrong fails that request alone.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitinglip.domain.image_payload import MAX_SIDE, MIN_SIDE, ImagePayload, find_strength_problem
from bitinglip.domain.task import describe_first_error
from bitinglip.engine.base import EngineRequest, JsonObject
from bitinglip.engine.image.inputs import fit_picture, open_input
from bitinglip.engine.image.job import Job
from bitinglip.engine.image.pipeline import ImagePipeline, Settings
from bitinglip.errors import EngineError, InvalidRequestError

INPUT = "image"
"""Under this name the worker gives the file of the picture to start from."""

_RANDOM_SEEDS = 2**32
_UNLIMITED_TOKENS = 1_000_000
"""A tokenizer that knows no limit says a larger number."""


MOST_TIMES_ITS_SIZE = 8
"""Of a side that the model was made for. What a step takes grows with the pixels, and faster: a model of 64 pixels took
minutes over one step of 2,048."""


class NoSpoolError(EngineError):
    """The worker gave no folder for the pictures."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("the worker gave no folder for the pictures; it is older than its engine: restart it")


class RequestReader:
    """Reads requests for one model.

    Args:
        pipeline: The loaded model.
    """

    def __init__(self, pipeline: ImagePipeline) -> None:
        self._pipeline = pipeline

    def read(self, request: EngineRequest) -> Job:
        """Validate a request, and open the picture that it starts from.

        Raises:
            InvalidRequestError: With the field, its value and what would be right.
            NoSpoolError: If there is nowhere to put pictures.
        """
        payload = read_payload(request.payload)
        if request.spool is None:
            raise NoSpoolError
        self._check_settings(payload)
        picture = self._open_picture(payload, request.inputs)
        width, height = self._choose_size(payload, picture)
        settings = Settings(
            width=width,
            height=height,
            steps=payload.steps,
            guidance=payload.guidance,
            scheduler=payload.scheduler,
            strength=None if picture is None else self._choose_strength(payload),
            has_negative=payload.negative_prompt is not None,
        )
        return Job(
            id=request.id,
            payload=payload,
            settings=settings,
            spool=Path(request.spool),
            start=None if picture is None else fit_picture(picture, width, height),
            seed=secrets.randbelow(_RANDOM_SEEDS) if payload.seed is None else payload.seed,
            notes=self._find_cuts(payload),
        )

    def _check_settings(self, payload: ImagePayload) -> None:
        schedulers = self._pipeline.schedulers
        if payload.scheduler is not None and payload.scheduler not in schedulers:
            names = ", ".join(sorted(schedulers)) or "none but its own"
            raise InvalidRequestError("scheduler", payload.scheduler.value, f"the model goes with {names}")
        if payload.negative_prompt is not None and not self._pipeline.takes_negative_prompt:
            remedy = "the model takes no negative prompt; leave it out"
            raise InvalidRequestError("negative_prompt", payload.negative_prompt, remedy)
        if payload.guidance is not None and not self._pipeline.takes_guidance:
            raise InvalidRequestError("guidance", payload.guidance, "the model takes no guidance; leave it out")

    def _open_picture(self, payload: ImagePayload, inputs: Mapping[str, str]) -> Any:
        if payload.image is None:
            return None
        if not self._pipeline.takes_picture:
            remedy = "the model starts from noise only; leave image and strength out"
            raise InvalidRequestError("image", payload.image, remedy)
        if INPUT not in inputs:
            raise InvalidRequestError("image", payload.image, "the worker has no file of it; submit it again")
        return open_input(Path(inputs[INPUT]))

    def _choose_size(self, payload: ImagePayload, picture: Any) -> tuple[int, int]:
        sides = self._pipeline.default_size
        if picture is not None:
            sides = self._fit_shape(picture.size, sides[0] * sides[1])
        width = self._check_side("width", payload.width or sides[0])
        return width, self._check_side("height", payload.height or sides[1])

    def _fit_shape(self, size: tuple[int, int], pixels: int) -> tuple[int, int]:
        """Sides in the shape of a picture, in its size or in so many pixels."""
        step = self._pipeline.side_step
        longest = self._longest_side
        scale = min(1.0, (pixels / (size[0] * size[1])) ** 0.5)
        width, height = (max(step, MIN_SIDE, min(longest, int(side * scale))) // step * step for side in size)
        return width, height

    @property
    def _longest_side(self) -> int:
        """Pixels that the model can draw, and draws before others have waited too long for its step."""
        made_for = MOST_TIMES_ITS_SIZE * max(self._pipeline.default_size)
        return min(self._pipeline.max_side or made_for, made_for, MAX_SIDE)

    def _check_side(self, field: str, pixels: int) -> int:
        step, longest = self._pipeline.side_step, self._longest_side
        if pixels % step:
            remedy = f"the model draws sides that are multiples of {step}; {max(step, pixels // step * step)} is near"
            raise InvalidRequestError(field, pixels, remedy)
        if pixels > longest:
            raise InvalidRequestError(field, pixels, f"the model draws sides of at most {longest} pixels")
        return pixels

    def _choose_strength(self, payload: ImagePayload) -> float:
        strength = self._pipeline.default_strength if payload.strength is None else payload.strength
        if problem := find_strength_problem(payload.steps, strength):
            raise InvalidRequestError("strength", strength, problem)
        return strength

    def _find_cuts(self, payload: ImagePayload) -> list[str]:
        """What no encoder reads to its end, as sentences for the result."""
        prompts = {"prompt": payload.prompt, "negative_prompt": payload.negative_prompt or ""}
        found = {name: self._find_cut(text) for name, text in prompts.items()}
        return [
            f"{name}: of its {tokens:,} tokens the model reads {limit:,}; the rest had no part in the picture"
            for name, (tokens, limit) in ((name, cut) for name, cut in found.items() if cut is not None)
        ]

    def _find_cut(self, text: str) -> tuple[int, int] | None:
        """Tokens of a text and tokens that are read of it, by the encoder that reads most; None if that is all."""
        whole = self._pipeline.max_sequence_length or _UNLIMITED_TOKENS
        read: list[tuple[int, int]] = []
        for tokenizer in self._pipeline.tokenizers:
            limit = min(tokenizer.model_max_length, whole)
            tokens = len(tokenizer(text, truncation=False, verbose=False).input_ids)
            if tokens <= limit:
                return None
            read.append((tokens, limit))
        return max(read, key=lambda cut: cut[1], default=None)


def read_payload(document: JsonObject) -> ImagePayload:
    """Validate a payload.

    Raises:
        InvalidRequestError: Naming the first field that is wrong.
    """
    try:
        return ImagePayload.model_validate(document)
    except ValidationError as exc:
        raise describe_first_error(exc) from exc
