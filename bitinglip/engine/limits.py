"""How long an engine may take over one thing, and whether it has.

Weakness: it looks from outside. A step that is slow and one that never ends look the same until the limit has passed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from bitinglip.engine.activity import Activity, ActivityBoard

LONGEST_LOOK_SECONDS = 1.0
"""More than this between two looks, and the watcher itself was held up (a frozen machine): it counts as this much."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How long an engine may take over one thing before it counts as stuck.

    Attributes:
        load_seconds: Starting the process, or loading a model.
        prefill_seconds: A step that reads prompts.
        step_seconds: Any other step.
    """

    load_seconds: float = 900.0
    prefill_seconds: float = 300.0
    step_seconds: float = 120.0


class Watchdog:
    """Watches the board of one engine process.

    Args:
        board: What the process writes on.
        limits: What it is held to.
        clock: Monotonic, in seconds.
    """

    def __init__(self, board: ActivityBoard, limits: EngineLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = board
        self._limits = limits
        self._clock = clock
        self._seen = board.read()
        self._looked_at = clock()
        self._seconds = 0.0

    def find_overrun(self) -> str | None:
        """What has taken too long, as a sentence; None if nothing has. To be asked several times a second."""
        seen, now = self._board.read(), self._clock()
        # What was watched, not what the clock says: an engine that was frozen together with its worker is not stuck.
        watched = min(now - self._looked_at, LONGEST_LOOK_SECONDS)
        self._seconds = self._seconds + watched if seen == self._seen else 0.0
        self._seen, self._looked_at = seen, now
        return self._describe_overrun(seen[0])

    def _describe_overrun(self, activity: Activity) -> str | None:
        match activity:
            case Activity.IDLE:
                return None
            case Activity.START:
                what, name, limit = "did not start", "LOAD", self._limits.load_seconds
            case Activity.PRELOAD | Activity.LOAD:
                what, name, limit = "did not finish loading a model", "LOAD", self._limits.load_seconds
            case Activity.PREFILL:
                what, name, limit = "read a prompt and made no step", "PREFILL", self._limits.prefill_seconds
            case Activity.STEP:
                what, name, limit = "made no step", "STEP", self._limits.step_seconds
            case _:
                assert_never(activity)
        if self._seconds <= limit:
            return None
        remedy = f"raise BITINGLIP_{name}_SECONDS if it was only slow"
        return f"the engine {what} for {round(self._seconds, 1):g} s (limit {limit:g} s); {remedy}"
