"""Small pictures of latents: what a batch looks like half-way, without decoding it.

A pixel of latents is nearly a linear mixture of colours. Which one differs between models, so it is fitted once: some
smooth random latents are decoded, and least squares finds the mixture. A real decode at each preview would take longer
than the step that it shows.

Weakness: latents of an early step are mostly noise, and so is their preview.
"""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

MAX_SIDE = 128
QUALITY = 60
_SAMPLES, _COARSE, _FINE = 16, 3, 8
_COLOURS = 3
_DIMENSIONS = 3


class Previewer:
    """Makes previews of one model's latents; fitted at the first one.

    Args:
        vae: What decodes them; None: they are pixels already.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._mixture: Tensor | None = None
        self._is_fitted = False

    def preview(self, latents: Tensor, width: int, height: int) -> str | None:
        """A JPEG in base64 of at most 128 pixels a side; None: latents of this shape cannot be shown.

        Args:
            latents: float[channels, rows, columns], of one picture.
            width: Of the picture.
            height: Of the picture.
        """
        if not self._is_fitted:
            self._mixture, self._is_fitted = self._fit(), True
        pixels = self._mix(latents.float().cpu())
        if pixels is None:
            return None
        scale = MAX_SIDE / max(width, height)
        size = (max(1, int(height * scale)), max(1, int(width * scale)))
        scaled = interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
        return _encode(scaled)

    def _mix(self, latents: Tensor) -> Tensor | None:
        """Return pixels as float32[3, rows, columns], -1 to 1."""
        channels = latents.shape[0] if latents.ndim == _DIMENSIONS else 0
        if self._vae is None:
            return latents if channels == _COLOURS else None
        if self._mixture is None or channels != len(self._mixture) - 1:
            return None
        # Some schedulers keep noise many times as strong as the picture.
        calm = latents / latents.std().clamp(min=1.0)
        return torch.einsum("chw,cd->dhw", calm, self._mixture[:-1]) + self._mixture[-1][:, None, None]

    def _fit(self) -> Tensor | None:
        """Return float32[channels + 1, 3]: the share of each channel in each colour, and each colour's own."""
        config = getattr(self._vae, "config", {})
        channels = config.get("latent_channels")
        if not isinstance(channels, int):
            return None
        coarse = torch.randn(_SAMPLES, channels, _COARSE, _COARSE, generator=torch.Generator().manual_seed(0))
        latents = interpolate(coarse, (_FINE, _FINE), mode="bilinear")
        scaled = latents / (config.get("scaling_factor") or 1.0) + (config.get("shift_factor") or 0.0)
        weight = next(self._vae.parameters())
        dtype = weight.dtype
        if dtype is torch.float16 and config.get("force_upcast"):
            # Its numbers overflow in half precision.
            self._vae.to(torch.float32)
        try:
            decoded = self._vae.decode(scaled.to(weight.device, weight.dtype), return_dict=False)[0]
        except (RuntimeError, ValueError, TypeError):
            # A VAE of videos wants latents of five dimensions; its pictures have no previews.
            return None
        finally:
            self._vae.to(dtype)
        colours = adaptive_avg_pool2d(decoded.float().cpu(), _FINE)
        known = torch.cat([latents, torch.ones(_SAMPLES, 1, _FINE, _FINE)], dim=1)
        mixture = torch.linalg.lstsq(_flatten(known), _flatten(colours)).solution
        return mixture if bool(torch.isfinite(mixture).all()) else None


def _flatten(pixels: Tensor) -> Tensor:
    """Return one row a pixel: float32[pixels, channels]."""
    return pixels.movedim(1, -1).reshape(-1, pixels.shape[1])


def _encode(pixels: Tensor) -> str:
    """Return a JPEG in base64 of float32[3, rows, columns], -1 to 1."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(0, -1).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode("ascii")
