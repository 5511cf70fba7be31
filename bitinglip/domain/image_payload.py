"""What a task of kind `image` asks for: pictures of a prompt, from noise or from another picture."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bitinglip.domain.artifacts import ArtifactName
from bitinglip.domain.payloads import CleanText, Payload

MAX_PROMPT_CHARS = 10_000
MIN_SIDE, MAX_SIDE, SIDE_STEP = 16, 4_096, 8
"""Pixels. The largest picture has 16.8 megapixels."""

INPUT_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_INPUT_BYTES = 64_000_000
MAX_INPUT_PIXELS = 50_000_000
"""Of a picture to start from. Only these formats are tried, so that no other decoder is ever run."""

MAX_STEPS = 500
MAX_COUNT = 64


class Scheduler(StrEnum):
    """How noise is taken away; not every model goes with each."""

    DDIM = "ddim"
    DDPM = "ddpm"
    DEIS = "deis"
    DPM_MULTISTEP = "dpm_multistep"
    DPM_SINGLESTEP = "dpm_singlestep"
    EULER = "euler"
    EULER_ANCESTRAL = "euler_ancestral"
    HEUN = "heun"
    PNDM = "pndm"
    UNIPC = "unipc"


class ImageFormat(StrEnum):
    """How a picture is written."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


def _check_side(pixels: Any) -> Any:
    """The side as it is, if pixels of it can be drawn; what is no whole number is left to pydantic."""
    if not isinstance(pixels, int) or isinstance(pixels, bool):
        return pixels
    if MIN_SIDE <= pixels <= MAX_SIDE and pixels % SIDE_STEP == 0:
        return pixels
    nearest = min(max(round(pixels / SIDE_STEP) * SIDE_STEP, MIN_SIDE), MAX_SIDE)
    message = f"a side is a multiple of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE:,} pixels; {nearest:,} is nearest"
    raise ValueError(message)


def _check_said(text: str) -> str:
    if not text.strip():
        message = "empty; write what the picture should show"
        raise ValueError(message)
    return text


Side = Annotated[int, BeforeValidator(_check_side)]
Prompt = Annotated[CleanText, AfterValidator(_check_said), Field(min_length=1, max_length=MAX_PROMPT_CHARS)]


class ImagePayload(Payload):
    """Pictures of a prompt.

    A seed gives the same picture again in float32 only. Of several pictures, each has the seed after the last one's.

    Attributes:
        negative_prompt: What the pictures should not show.
        width: In pixels; None: the model's own, or in the shape of the picture to start from, no larger.
        steps: Of taking noise away.
        guidance: How closely the prompt is followed; None: as the model's makers set it.
        scheduler: None: the model's own.
        seed: Of the first picture; None: any, which the result tells.
        count: Pictures.
        image: Name of the artifact to start from, in place of noise.
        strength: How much of that picture is redrawn, above 0 to 1; None: as the model's makers set it.
        quality: Of a format that loses some, 1 to 100.
        preview_steps: Steps from one preview to the next; 0: none.
    """

    prompt: Prompt
    negative_prompt: CleanText | None = Field(default=None, max_length=MAX_PROMPT_CHARS)
    width: Side | None = None
    height: Side | None = None
    steps: int = Field(default=20, ge=1, le=MAX_STEPS)
    guidance: float | None = Field(default=None, ge=0, le=50)
    scheduler: Scheduler | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    image: ArtifactName | None = None
    strength: float | None = Field(default=None, gt=0, le=1)
    format: ImageFormat = ImageFormat.PNG
    quality: int = Field(default=90, ge=1, le=100)
    preview_steps: int = Field(default=0, ge=0, le=MAX_STEPS)

    @model_validator(mode="after")
    def _check_strength(self) -> Self:
        if self.strength is None:
            return self
        if self.image is None:
            message = "strength: name an image to start from, or leave strength out"
            raise ValueError(message)
        if problem := find_strength_problem(self.steps, self.strength):
            message = f"strength: {problem}"
            raise ValueError(message)
        return self

    def make_title(self) -> str:
        """The beginning of the prompt, and how many pictures."""
        more = f" (x{self.count})" if self.count > 1 else ""
        return " ".join(self.prompt.split())[: 200 - len(more)] + more


def find_strength_problem(steps: int, strength: float) -> str | None:
    """What would be right, where so few steps of so little strength redraw nothing; None if they do."""
    if int(steps * strength) >= 1:
        return None
    return f"of {steps} steps it leaves none; at least {1 / steps:.3g}, or more steps"
