"""What chaos has found, as one document."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitinglip.chaos.checks import Verdict
from bitinglip.chaos.kinds import Fault


@dataclass(frozen=True)
class FaultReport:
    """One kind of fault and its recoveries, in seconds."""

    fault: Fault
    seconds: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """As `chaos --json` gives it."""
        return {
            "kind": self.fault.value,
            "times": len(self.seconds),
            "recovery_p50_s": round(statistics.median(self.seconds), 3),
            "recovery_max_s": round(max(self.seconds), 3),
        }


@dataclass(frozen=True)
class Report:
    """All of a run.

    Attributes:
        throughput_before: Echo tasks a second before the first fault.
        throughput_after: The same after the last one.
    """

    verdict: Verdict
    throughput_before: float
    throughput_after: float
    rounds: int
    seed: int
    faults: Sequence[FaultReport]

    def to_json(self) -> dict[str, Any]:
        """As `chaos --json` gives it."""
        before = self.throughput_before
        return {
            "tasks": self.verdict.tasks,
            "completed": self.verdict.completed,
            "lost": self.verdict.count("lost"),
            "double_recorded": self.verdict.count("double_recorded"),
            "stuck": self.verdict.count("stuck"),
            "files": self.verdict.files,
            "files_swept": self.verdict.files_swept,
            "file_missing": self.verdict.count("file_missing"),
            "file_damaged": self.verdict.count("file_damaged"),
            "file_unnamed": self.verdict.count("file_unnamed"),
            "throughput_before": round(before, 1),
            "throughput_after": round(self.throughput_after, 1),
            "throughput_ratio": round(self.throughput_after / before, 3) if before else None,
            "rounds": self.rounds,
            "seed": self.seed,
            "faults": [fault.to_json() for fault in self.faults],
        }
