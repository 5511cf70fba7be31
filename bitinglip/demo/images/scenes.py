"""The scenes that the demo model draws: one shape of one colour on another colour."""

from dataclasses import dataclass
from itertools import product
from random import Random

import numpy as np
from numpy.typing import NDArray

SIZE = 64
"""Pixels of a side."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 80, 220),
    "yellow": (245, 210, 50),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")

SMALLEST_RADIUS, LARGEST_RADIUS = 15.0, 21.0
MOST_SHIFT = 8.0
HOLE = 0.55
"""Of a ring's radius."""

_SAMPLES = 3
"""Points across a pixel, so that edges are smooth."""

Image = NDArray[np.uint8]
"""Red, green and blue: uint8[height, width, 3]."""

Coverage = NDArray[np.float32]
"""How much of each pixel a shape covers: float32[height, width], 0 to 1."""


@dataclass(frozen=True)
class Scene:
    """One shape of one colour on another colour."""

    shape: str
    colour: str
    background: str

    @property
    def prompt(self) -> str:
        """What asks for it."""
        return f"a {self.colour} {self.shape} on {self.background}"


ALL_SCENES = tuple(
    Scene(shape, colour, background)
    for shape, colour, background in product(SHAPES, COLOURS, COLOURS)
    if colour != background
)

PHRASINGS = (
    "a {colour} {shape} on {background}",
    "{colour} {shape} on {background}",
    "a {colour} {shape} on a {background} background",
    "{colour} {shape} on {background} background",
    "draw a {colour} {shape} on {background}",
)


def phrase(scene: Scene, rng: Random) -> str:
    """Return one of the ways to ask for a scene."""
    return rng.choice(PHRASINGS).format(colour=scene.colour, shape=scene.shape, background=scene.background)


def cover(shape: str, *, radius: float, x: float, y: float, size: int = SIZE) -> Coverage:
    """Return how much of each pixel a shape covers.

    Args:
        shape: One of `SHAPES`.
        radius: Half of its width, in pixels.
        x: Of its middle, in pixels from the left.
        y: Of its middle, in pixels from above.
        size: Pixels of a side of the picture.
    """
    points = (np.arange(size * _SAMPLES) + 0.5) / _SAMPLES
    across, down = np.meshgrid((points - x) / radius, (points - y) / radius)
    inside = _is_inside(shape, across, down)
    fine: Coverage = inside.reshape(size, _SAMPLES, size, _SAMPLES).mean(axis=(1, 3), dtype=np.float32)
    return fine


def draw(scene: Scene, rng: Random) -> Image:
    """Return a picture of a scene, its shape somewhere near the middle and of some size."""
    coverage = cover(
        scene.shape,
        radius=rng.uniform(SMALLEST_RADIUS, LARGEST_RADIUS),
        x=SIZE / 2 + rng.uniform(-MOST_SHIFT, MOST_SHIFT),
        y=SIZE / 2 + rng.uniform(-MOST_SHIFT, MOST_SHIFT),
    )[..., None]
    front, behind = (np.array(COLOURS[name], dtype=np.float32) for name in (scene.colour, scene.background))
    picture: Image = (coverage * front + (1 - coverage) * behind).round().astype(np.uint8)
    return picture


def _is_inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points lie within a shape that reaches from -1 to 1; y grows downwards."""
    distance = np.hypot(x, y)
    match shape:
        case "circle":
            return distance <= 1
        case "square":
            return np.maximum(abs(x), abs(y)) <= 1
        case "triangle":
            return (abs(y) <= 1) & (abs(x) <= (y + 1) / 2)
        case "diamond":
            return abs(x) + abs(y) <= 1
        case "cross":
            return (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= 1 / 3)
        case _:
            return (distance <= 1) & (distance >= HOLE)
