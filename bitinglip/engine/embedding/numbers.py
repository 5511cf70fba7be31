"""float32 as JSON writes it: the shortest decimals that give the same float32 back.

A float32 that is widened prints some 17 digits, most of them noise; the shortest take half the room.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FLOAT32_DIGITS: Sequence[int] = (6, 7, 8, 9)
"""Six always survive float32, nine always identify it."""

_MOST_EXACT_POWER = 22
"""10**22 is the largest power of ten that a float64 holds exactly."""


def to_shortest(values: NDArray[np.float32]) -> list[float]:
    """Return the numbers with as few digits as tell each float32 from its neighbours.

    Args:
        values: Finite.
    """
    wide = values.astype(np.float64)
    magnitudes = np.floor(np.log10(np.abs(wide), where=wide != 0, out=np.zeros_like(wide)))
    shortest, undecided = wide.copy(), np.ones(wide.shape, dtype=np.bool_)
    for digits in FLOAT32_DIGITS:
        # An integer divided by an exact power of ten is the float64 nearest to that decimal.
        scale = 10.0 ** np.clip(digits - 1 - magnitudes, 0, _MOST_EXACT_POWER)
        rounded = np.rint(wide * scale) / scale
        found = undecided & (rounded.astype(np.float32) == values)
        shortest[found] = rounded[found]
        undecided &= ~found
    numbers: list[float] = shortest.tolist()
    return numbers
