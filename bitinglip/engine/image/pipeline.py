"""One loaded pipeline of diffusers: what it takes, learnt from its call's signature, and how to call it for a batch.

Invariant: a batch gets a pipeline object of its own, which shares the weights and nothing that a call changes. So
batches can stand still half-way while others go on.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image
from numpy.typing import NDArray
from torch import nn

from bitinglip.domain.image_payload import Scheduler
from bitinglip.engine.image.schedulers import find_schedulers, make_scheduler, watch_scheduler
from bitinglip.errors import InvalidModelError

_ENOUGH_SIDE = 512
"""Pixels; where a model does not say what it was made for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the pictures of one batch have in common.

    Attributes:
        strength: None: from noise.
        has_negative: Whether they have a negative prompt; to some models an empty one is not the same as none.
    """

    width: int
    height: int
    steps: int
    guidance: float | None
    scheduler: Scheduler | None
    strength: float | None
    has_negative: bool

    @property
    def pixels(self) -> int:
        """Of one picture."""
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to be drawn.

    Attributes:
        start: A PIL image of the right size to start from; None: noise.
    """

    prompt: str
    negative_prompt: str | None
    seed: int
    start: Any = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a call gave.

    Attributes:
        pixels: float32[rows, height, width, 3], 0 to 1.
        flagged: Whether the model's own safety checker blackened it, for each row.
    """

    pixels: NDArray[np.float32]
    flagged: list[bool]


class ImagePipeline:
    """A loaded pipeline.

    Args:
        name: The model's, for messages.
        pipe: A text-to-image pipeline of diffusers.

    Attributes:
        schedulers: Those that it goes with.
        device: Where it computes.

    Raises:
        InvalidModelError: If it draws no pictures from text.
    """

    def __init__(self, name: str, pipe: Any) -> None:
        self._pipe = pipe
        self._accepts = _read_signature(pipe)
        required = {"prompt", "num_inference_steps", "output_type"}
        lacking = required - self._accepts.keys()
        if lacking or "num_frames" in self._accepts or getattr(pipe, "scheduler", None) is None:
            remedy = f"{type(pipe).__name__} draws no pictures from text; name a text-to-image pipeline"
            raise InvalidModelError("model", name, remedy)
        self.schedulers = find_schedulers(pipe.scheduler)
        # Where accelerate has placed parts, too. It looks through all of them: not to be asked at each step.
        self.device = torch.device(pipe._execution_device)
        # Its first weight stands for all: what diffusers calls its dtype goes through them, at each step.
        self._vae_weight = next(self.vae.parameters(), None) if isinstance(self.vae, nn.Module) else None
        self._vae_dtype = None if self._vae_weight is None else self._vae_weight.dtype
        self._from_picture = _find_image_to_image(pipe)
        self._picture_accepts = {} if self._from_picture is None else _read_signature(self._from_picture)

    @property
    def vae(self) -> Any:
        """What makes pixels of latents; None: the pipeline has none, or calls it otherwise."""
        return getattr(self._pipe, "vae", None)

    @property
    def base(self) -> Any:
        """The pipeline as it was loaded; never called."""
        return self._pipe

    @property
    def tokenizers(self) -> list[Any]:
        """Those that read the prompt."""
        names = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
        found = (getattr(self._pipe, name, None) for name in names)
        return [tokenizer for tokenizer in found if tokenizer is not None]

    @property
    def max_sequence_length(self) -> int | None:
        """Tokens of a prompt that the call says it reads; None: it does not say."""
        value = self._default("max_sequence_length")
        return value if isinstance(value, int) else None

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height that the model was made for."""
        sample = getattr(self._pipe, "default_sample_size", None) or _get(self.denoiser, "sample_size")
        height, width = sample if isinstance(sample, Sequence) else (sample, sample)
        factor = self._scale_factor
        sides = [self._default("width"), self._default("height")]
        made_for = [side * factor if isinstance(side, int) else _ENOUGH_SIDE for side in (width, height)]
        chosen = [own if isinstance(own, int) else other for own, other in zip(sides, made_for, strict=True)]
        return chosen[0], chosen[1]

    @property
    def side_step(self) -> int:
        """Sides of pictures are multiples of this."""
        factor = self._scale_factor
        if "use_resolution_binning" in self._accepts:
            return factor
        processor = getattr(self._pipe, "image_processor", None)
        patch = _get(self.denoiser, "patch_size")
        return lcm(factor * (patch if isinstance(patch, int) else 1), _get(processor, "vae_scale_factor") or 1)

    @property
    def max_side(self) -> int | None:
        """The longest side that the denoiser knows places for; None: any."""
        places = _get(self.denoiser, "pos_embed_max_size")
        if not isinstance(places, int):
            return None
        return places * int(_get(self.denoiser, "patch_size") or 1) * self._scale_factor

    @property
    def denoiser(self) -> Any:
        """The network that is called each step."""
        return next(
            (part for name in ("unet", "transformer", "prior") if (part := getattr(self._pipe, name, None))), None
        )

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether a negative prompt changes anything."""
        # Distilled models take one only where true guidance is switched on.
        true_guidance = self._default("true_cfg_scale")
        return "negative_prompt" in self._accepts and (true_guidance is None or true_guidance > 1)

    @property
    def takes_guidance(self) -> bool:
        """Whether guidance can be set."""
        return self._guidance_name in self._accepts

    @property
    def takes_picture(self) -> bool:
        """Whether it can start from a picture."""
        return self._from_picture is not None

    @property
    def default_strength(self) -> float:
        """How much of a picture is redrawn where the request does not say."""
        parameter = self._picture_accepts.get("strength")
        value = None if parameter is None else parameter.default
        return float(value) if isinstance(value, int | float) else 1.0

    def modules(self) -> Iterator[nn.Module]:
        """Its networks."""
        yield from (part for part in self._pipe.components.values() if isinstance(part, nn.Module))

    def restore_vae(self) -> None:
        """Give the VAE the precision back that it was loaded in.

        Some pipelines decode in a higher one, and leave it so if they end on the way.
        """
        if self._vae_weight is not None and self._vae_weight.dtype != self._vae_dtype:
            self.vae.to(self._vae_dtype)

    def open(self, settings: Settings, *, on_ready: Callable[[], None], on_step: Callable[[Any], None]) -> Any:
        """A pipeline object for one batch.

        Args:
            settings: Of the batch.
            on_ready: Called when the prompts are encoded.
            on_step: Called after each step with the latents.
        """
        source = self._pipe if settings.strength is None else self._from_picture
        pipe = copy.copy(source)
        kind = None if settings.scheduler is None else self.schedulers[settings.scheduler]
        pipe.scheduler = make_scheduler(source.scheduler, kind)
        watch_scheduler(pipe.scheduler, on_ready=on_ready, on_step=on_step)
        return pipe

    def call(self, pipe: Any, settings: Settings, pictures: Sequence[Picture]) -> Drawn:
        """Draw a batch, from its prompts to its pixels.

        Args:
            pipe: From `open`.
            settings: Of the batch.
            pictures: Its rows.
        """
        accepts = self._accepts if settings.strength is None else self._picture_accepts
        options: dict[str, Any] = {
            "prompt": [picture.prompt for picture in pictures],
            "num_inference_steps": settings.steps,
            # The CPU's numbers, so that a seed means the same on every device.
            "generator": [torch.Generator().manual_seed(picture.seed) for picture in pictures],
            "output_type": "np",
        }
        if settings.has_negative:
            options["negative_prompt"] = [picture.negative_prompt or "" for picture in pictures]
        if settings.guidance is not None:
            options[self._guidance_name] = settings.guidance
        if settings.strength is not None:
            options |= {"image": [picture.start for picture in pictures], "strength": settings.strength}
        wishes = {"width": settings.width, "height": settings.height, "clean_caption": False}
        options |= {name: value for name, value in wishes.items() if name in accepts}
        made = pipe(**options)
        pixels = np.asarray(made.images, dtype=np.float32)
        flagged = getattr(made, "nsfw_content_detected", None) or [False] * len(pictures)
        return Drawn(pixels, [bool(flag) for flag in flagged])

    @property
    def _guidance_name(self) -> str:
        true_guidance = self._default("true_cfg_scale")
        return "true_cfg_scale" if true_guidance is not None and true_guidance > 1 else "guidance_scale"

    @property
    def _scale_factor(self) -> int:
        return int(getattr(self._pipe, "vae_scale_factor", None) or 8)

    def _default(self, name: str) -> Any:
        parameter = self._accepts.get(name)
        return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _read_signature(pipe: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(pipe.__call__).parameters)


def _find_image_to_image(pipe: Any) -> Any:
    try:
        found = AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError:
        # diffusers has none for this class.
        return None
    accepts = _read_signature(found)
    if not {"image", "strength", "num_inference_steps"} <= accepts.keys():
        return None
    found.set_progress_bar_config(disable=True)
    return found


def _get(part: Any, name: str) -> Any:
    """A value of a part's config, if there are both."""
    config = getattr(part, "config", None)
    return config.get(name) if config is not None else None
