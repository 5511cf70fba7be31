"""What a picture shows, told by its pixels: the two colours and the shape. No model is asked.

Weakness: it knows the scenes of `scenes` only, and calls anything else by the nearest of them.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bitinglip.demo.images.scenes import COLOURS, SHAPES, Image, Scene, cover

GRID = 32
"""A shape is compared on a grid of so many cells a side, stretched to its own outline."""

CORNER = 4
"""The background is what most pixels of a frame of this width show."""

LEAST_PIXELS = 16
"""Fewer are no shape."""


@dataclass(frozen=True)
class Verdict:
    """What was seen.

    Attributes:
        background: The colour of most of the frame.
        colour: The commonest other colour; None: there is no shape.
        shape: The nearest of the shapes; None: there is none.
        likeness: Of that shape, 0 to 1: the part of both outlines that they share.
    """

    background: str
    colour: str | None = None
    shape: str | None = None
    likeness: float = 0.0

    def has_colours_of(self, scene: Scene) -> bool:
        """Whether both colours are right."""
        return (self.colour, self.background) == (scene.colour, scene.background)


def judge(picture: Image) -> Verdict:
    """Return what a picture of any size shows.

    Args:
        picture: uint8[height, width, 3].
    """
    nearest = _find_nearest(picture)
    frame = np.ones(nearest.shape, dtype=bool)
    frame[CORNER:-CORNER, CORNER:-CORNER] = False
    background = _find_commonest(nearest[frame])
    others = nearest[nearest != background]
    if len(others) < LEAST_PIXELS:
        return Verdict(_name(background))
    colour = _find_commonest(others)
    # By distance to the two colours: at an edge they mix, and a mixture may be nearest to a third.
    mask = _is_nearer(picture, _name(colour), _name(background))
    shape, likeness = _find_shape(mask)
    return Verdict(_name(background), _name(colour), shape, likeness)


def _find_nearest(picture: Image) -> NDArray[np.intp]:
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    distances = ((picture[..., None, :].astype(np.float32) - palette) ** 2).sum(axis=-1)
    nearest: NDArray[np.intp] = distances.argmin(axis=-1)
    return nearest


def _find_commonest(numbers: NDArray[np.intp]) -> int:
    return int(np.bincount(numbers).argmax())


def _name(number: int) -> str:
    return list(COLOURS)[number]


def _is_nearer(picture: Image, colour: str, background: str) -> NDArray[np.bool_]:
    front, behind = (
        ((picture.astype(np.float32) - np.array(COLOURS[name], dtype=np.float32)) ** 2).sum(axis=-1)
        for name in (colour, background)
    )
    nearer: NDArray[np.bool_] = front < behind
    return nearer


def _find_shape(mask: NDArray[np.bool_]) -> tuple[str, float]:
    seen = _stretch(mask)
    likeness = {shape: _share(seen, ideal) for shape, ideal in _list_ideals().items()}
    best = max(likeness, key=lambda shape: likeness[shape])
    return best, likeness[best]


def _stretch(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what lies within the outline's box, on the grid. Rows and columns with hardly a pixel are no outline."""
    rows = np.flatnonzero(mask.sum(axis=1) > 1)
    columns = np.flatnonzero(mask.sum(axis=0) > 1)
    if not len(rows) or not len(columns):
        return np.zeros((GRID, GRID), dtype=bool)
    cells = (np.arange(GRID) + 0.5) / GRID
    down = (rows[0] + cells * (rows[-1] - rows[0] + 1)).astype(int)
    across = (columns[0] + cells * (columns[-1] - columns[0] + 1)).astype(int)
    return mask[np.ix_(down, across)]


def _share(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


@cache
def _list_ideals() -> dict[str, NDArray[np.bool_]]:
    middle = GRID / 2
    return {shape: cover(shape, radius=middle, x=middle, y=middle, size=GRID) >= 1 / 2 for shape in SHAPES}
