"""A preview looks like the picture that becomes of it."""

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from image_driver import ImageDriver
from PIL import Image
from tiny_pipelines import FAMILIES

from bitinglip.engine.image.preview import MAX_SIDE, Previewer

Drive = Callable[..., ImageDriver]


def open_preview(driver: ImageDriver, name: str) -> Image.Image:
    shown = [event.detail["preview"] for event in driver.progress(name) if "preview" in event.detail]
    return Image.open(io.BytesIO(base64.b64decode(shown[-1])))


class PlainVae(torch.nn.Module):
    """Decodes each pixel of latents to a field of one colour, bent a little."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, float] = {"latent_channels": 4, "scaling_factor": 0.5}
        self.mixture = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) / 6)

    def decode(self, latents: torch.Tensor, *, return_dict: bool) -> tuple[torch.Tensor]:
        assert not return_dict
        colours = torch.tanh(torch.einsum("bchw,cd->bdhw", latents, self.mixture) + 0.1)
        return (colours.repeat_interleave(8, 2).repeat_interleave(8, 3),)


@torch.inference_mode()
def test_a_preview_shows_what_decoding_would() -> None:
    vae = PlainVae()
    latents = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(2)) * 0.5
    shown = Previewer(vae).preview(latents, 128, 128)
    assert shown is not None
    picture = Image.open(io.BytesIO(base64.b64decode(shown)))
    preview = np.asarray(picture.resize((16, 16), Image.Resampling.BOX), dtype=np.float32)
    decoded = vae.decode(latents[None] / 0.5, return_dict=False)[0][0, :, ::8, ::8].movedim(0, -1).numpy()
    expected = (decoded + 1) * 127.5
    assert np.corrcoef(preview.ravel(), expected.ravel())[0, 1] > 0.9
    assert abs(preview.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() < 10


class OverflowingVae(PlainVae):
    """Gives no numbers in half precision, as some do."""

    def __init__(self) -> None:
        super().__init__()
        self.config["force_upcast"] = True
        self.half()

    def decode(self, latents: torch.Tensor, *, return_dict: bool) -> tuple[torch.Tensor]:
        (decoded,) = super().decode(latents, return_dict=return_dict)
        return (decoded * torch.nan if self.mixture.dtype is torch.float16 else decoded,)


@torch.inference_mode()
def test_a_vae_that_overflows_in_half_precision_has_previews_and_keeps_its_precision() -> None:
    vae = OverflowingVae()
    assert Previewer(vae).preview(torch.zeros(4, 8, 8), 64, 64) is not None
    assert vae.mixture.dtype is torch.float16


@torch.inference_mode()
def test_noise_many_times_as_strong_as_the_picture_stays_within_its_colours() -> None:
    latents = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(2))
    previewer = Previewer(PlainVae())
    assert previewer.preview(latents * 100, 64, 64) == previewer.preview(latents * 200, 64, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_previews(drive: Drive, family: str) -> None:
    driver = drive(family)
    driver.draw(preview_steps=4)
    preview = open_preview(driver, "alone-0")
    assert preview.format == "JPEG"
    assert preview.size == (MAX_SIDE, MAX_SIDE)
    assert np.asarray(preview).std() > 1


def test_a_preview_keeps_the_shape(drive: Drive) -> None:
    driver = drive()
    driver.draw(preview_steps=4, width=64, height=16)
    assert open_preview(driver, "alone-0").size == (MAX_SIDE, MAX_SIDE // 4)


def test_latents_that_cannot_be_shown_have_no_preview() -> None:
    assert Previewer(None).preview(torch.zeros(4, 8, 8), 64, 64) is None
    assert Previewer(None).preview(torch.zeros(16, 8), 64, 64) is None
    assert Previewer(None).preview(torch.zeros(3, 8, 8), 64, 64) is not None
