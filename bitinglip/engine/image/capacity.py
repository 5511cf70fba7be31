"""How many pictures fit into memory at once, learnt from those that were drawn.

What a step needs beside the weights grows with the pixels that it computes. The largest batch so far says how much a
pixel takes, because what does not grow counts least there. Before the first batch nothing is known, so that it has one
row where there is a budget to keep to.

Weakness: on a CPU the peak of a step shows only where it raises the process's peak; what stayed below is not learnt.
Attention that is written out grows with the square of the pixels; then a batch runs out of memory, and is halved.
"""

import resource
import sys
from dataclasses import dataclass
from functools import cache
from time import monotonic

import psutil
import torch

from bitinglip.engine.text.memory import free_bytes

CALM_BATCHES = 16

UNMEASURED_PIXELS = 4_194_304
"""At once, where there is no budget and nothing is known yet: sixteen pictures of 512 x 512."""

RESIDENT_SECONDS = 0.05
"""How long the process's resident memory counts as read: asking for it takes a hundredth of a tiny model's step."""

_PEAK_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


class Peak:
    """Measures what a step takes beside what was there before.

    Args:
        device: Where it computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            self._peak_before = _read_peak_bytes()
            self._before = _find_resident().read_bytes()

    def measure(self) -> int | None:
        """Bytes that were needed at most since then; None: fewer than can be seen."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        peak = _read_peak_bytes()
        return peak - self._before if peak > self._peak_before else None


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a batch took."""

    area: int
    peak_bytes: int


class Capacity:
    """Rows that may compute at once.

    Args:
        most: Rows of a batch, whatever their size.
        budget_bytes: For what a step needs beside the weights; None: no limit known.
    """

    def __init__(self, most: int, budget_bytes: int | None) -> None:
        self._most = most
        self._budget = budget_bytes
        self._measured: _Measured | None = None
        self._limit_area: int | None = None
        self._calm = 0
        self.largest_area = 0

    def count_rows(self, pixels: int) -> int:
        """How many rows of so many pixels a batch may have; at least one."""
        rows = self._most
        if self._limit_area is not None:
            rows = min(rows, self._limit_area // pixels)
        if self._budget is None and self._measured is None:
            rows = min(rows, UNMEASURED_PIXELS // pixels)
        if self._budget is not None:
            rows = min(rows, 1 if self._measured is None else self._budget // max(1, self.estimate_bytes(pixels)))
        return max(1, rows)

    def estimate_bytes(self, area: int) -> int:
        """What so many pixels at once take beside the weights; 0 before the first batch."""
        if self._measured is None:
            return 0
        return self._measured.peak_bytes * area // self._measured.area

    def exceeds_budget(self, pixels: int) -> bool:
        """Whether even one row is known to need more than there is."""
        return self._budget is not None and self.estimate_bytes(pixels) > self._budget

    def note_peak(self, area: int, peak_bytes: int | None) -> None:
        """A step of a batch of so many pixels needed so much."""
        if peak_bytes is None or peak_bytes <= 0:
            return
        known = self._measured
        if known is None or area > known.area or (area == known.area and peak_bytes > known.peak_bytes):
            self._measured = _Measured(area, peak_bytes)

    def note_success(self, area: int) -> None:
        """A batch went well; after enough of them more is tried again than had fitted last."""
        self.largest_area = max(self.largest_area, area)
        if self._limit_area is None:
            return
        self._calm += 1
        if self._calm >= CALM_BATCHES:
            self._limit_area, self._calm = self._limit_area * 2, 0

    def lower(self, area: int) -> None:
        """Memory ran out; allow no more than so many pixels at once."""
        self._limit_area, self._calm = max(1, area), 0

    def suggest_size(self, width: int, height: int, step: int) -> tuple[int, int]:
        """A size of that shape that fits: as many pixels as were drawn at once before, or half as many as now."""
        area = self.largest_area if 0 < self.largest_area < width * height else width * height // 2
        scale = (area / (width * height)) ** 0.5
        return max(step, int(width * scale) // step * step), max(step, int(height * scale) // step * step)


def find_budget(memory_bytes: int | None, weight_bytes: int, device: torch.device) -> int | None:
    """What is left beside the weights; None: no limit is known.

    Args:
        memory_bytes: The budget of the device, weights included.
        weight_bytes: Of the weights, which are loaded.
        device: Where they are.
    """
    if memory_bytes is not None:
        return memory_bytes - weight_bytes
    return None if device.type == "cpu" else int(free_bytes(device))


def _read_peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT_BYTES


class _Resident:
    """The resident memory of this process, read now and then."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._bytes = 0
        self._read_at = -RESIDENT_SECONDS

    def read_bytes(self) -> int:
        if monotonic() - self._read_at >= RESIDENT_SECONDS:
            self._bytes, self._read_at = int(self._process.memory_info().rss), monotonic()
        return self._bytes


@cache
def _find_resident() -> _Resident:
    return _Resident()
