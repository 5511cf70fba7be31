"""From latents to pixels a few rows at a time: the step of a batch that needs most memory.

Weakness: only what a pipeline calls `vae` is split; the few that call theirs otherwise decode in one step.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitinglip.engine.text.memory import free_memory, is_out_of_memory
from bitinglip.telemetry import get_logger

PIXELS_AT_ONCE = 512 * 512
"""Decoded in one step: on a GPU one row of this size keeps it busy, on a CPU many small ones take long enough."""

log = get_logger()


class PieceDecoder:
    """Decodes the rows of one batch that somebody still waits for.

    Args:
        rows: In the batch.
        pixels: Of a row.
        is_wanted: Whether somebody waits for the row of that number.
        pause: Called between two pieces.

    Attributes:
        has_begun: Whether decoding has.
        is_tiled: Whether rows are decoded in tiles.
    """

    def __init__(self, rows: int, pixels: int, *, is_wanted: Callable[[int], bool], pause: Callable[[], None]) -> None:
        self._rows = rows
        self._size = max(1, PIXELS_AT_ONCE // pixels)
        self._is_wanted = is_wanted
        self._pause = pause
        self.has_begun = False
        self.is_tiled = False

    def attach(self, vae: Any) -> Any:
        """A VAE that decodes this way, and shares its weights with the one given."""
        own = copy.copy(vae)
        decode = own.decode

        def decode_in_pieces(latents: Tensor, *arguments: Any, **options: Any) -> Any:
            self.has_begun = True
            if latents.shape[0] != self._rows:
                return decode(latents, *arguments, **options)
            return self._decode(own, decode, latents, arguments, options)

        own.decode = decode_in_pieces
        return own

    def _decode(
        self, vae: Any, decode: Callable[..., Any], latents: Tensor, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        waiting = list(range(self._rows))
        images: Tensor | None = None
        made: Any = None
        while True:
            waiting = [row for row in waiting if self._is_wanted(row)]
            if not waiting:
                break
            piece = waiting[: self._size]
            own = {name: _pick(value, piece, self._rows) for name, value in options.items()}
            failure: RuntimeError | None = None
            try:
                made = decode(latents[piece], *arguments, **own)
            except RuntimeError as exc:
                if not is_out_of_memory(exc):
                    raise
                failure = exc.with_traceback(None)
            if failure is not None:
                self._do_with_less(vae, len(piece), failure)
            else:
                if images is None:
                    images = made[0].new_zeros((self._rows, *made[0].shape[1:]))
                images[piece] = made[0]
                waiting = waiting[len(piece) :]
            if waiting:
                self._pause()
        return (images,) if isinstance(made, tuple) else type(made)(sample=images)

    def _do_with_less(self, vae: Any, rows: int, failure: RuntimeError) -> None:
        """Decode half as many rows at once; one row in tiles; raise the failure if that was so already."""
        free_memory()
        if rows > 1:
            self._size = rows // 2
        elif not self.tile(vae):
            raise failure
        log.info("decoding_with_less_memory", rows=self._size, is_tiled=self.is_tiled)

    def tile(self, vae: Any) -> bool:
        """Have a row decoded in tiles from now on; whether that is new and possible."""
        if self.is_tiled or not hasattr(vae, "enable_tiling"):
            return False
        vae.enable_tiling()
        self.is_tiled = True
        return True


def _pick(value: Any, piece: list[int], rows: int) -> Any:
    """What of an argument belongs to these rows."""
    if isinstance(value, list) and len(value) == rows:
        return [value[row] for row in piece]
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == rows:
        return value[piece]
    return value
