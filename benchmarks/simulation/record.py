"""What happened in a simulation, and what follows from it."""

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

from benchmarks.simulation.traces import Scenario


@dataclass(slots=True)
class Record:
    """One simulation's events, by time.

    Attributes:
        service: (time, agent, cost) when a task has ended and was charged.
        ends: (time, GPU) when a slot came free.
        starts: (time, agent, model, priority, seconds waited since it came).
        loads: (time, GPU, model) when a load began.
        evictions: (time, GPU, model).
        passed: Seconds from the first turn of a lane whose model nobody holds to the end of that model's load.
        backlogged: For each agent, from when to when it had tasks waiting.
        wasted: Rounds that left room beside a task that had its place there.
        capacity: Most tasks that were ever in flight by the rules: the fleet's room.
        largest: The largest cost or guess.
    """

    scenario: Scenario
    service: list[tuple[float, str, float]] = field(default_factory=list)
    ends: list[tuple[float, str]] = field(default_factory=list)
    starts: list[tuple[float, str, str, str, float]] = field(default_factory=list)
    loads: list[tuple[float, str, str]] = field(default_factory=list)
    evictions: list[tuple[float, str, str]] = field(default_factory=list)
    passed: list[float] = field(default_factory=list)
    backlogged: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    wasted: int = 0
    rounds: int = 0
    grants: int = 0
    handed_back: int = 0
    failures: int = 0
    capacity: int = 0
    largest: float = 0.0
    ended_at: float = 0.0

    def sum_service(self, *, until: float | None = None) -> dict[str, float]:
        """Each agent's cost, up to a time."""
        sums: dict[str, float] = defaultdict(float)
        for at, agent, cost in self.service:
            if until is None or at <= until:
                sums[agent] += cost
        return dict(sums)

    def summarize(self) -> dict[str, Any]:
        """The numbers of a single simulation."""
        service = self.sum_service()
        waits = sorted(wait for *_, wait in self.starts)
        shares = [cost / self.scenario.weights.get(agent, 1.0) for agent, cost in service.items()]
        cuts = quantiles(waits, n=100) if len(waits) > 1 else [0.0] * 99
        return {
            "tasks": len(self.starts),
            "seconds": round(self.ended_at, 3),
            "slot_seconds": round(sum(service.values()), 3),
            "rounds": self.rounds,
            "wait_p50_s": round(cuts[49], 3),
            "wait_p99_s": round(cuts[98], 3),
            "wait_max_s": round(waits[-1], 3) if waits else 0.0,
            "loads": len(self.loads),
            "passed_over_max_s": round(max(self.passed, default=0.0), 3),
            "handed_back": self.handed_back,
            "failed_runs": self.failures,
            "rounds_with_wasted_room": self.wasted,
            "jain": round(find_jain(shares), 4),
            "service_by_agent": {agent: round(service[agent], 3) for agent in sorted(service)},
        }


def find_jain(shares: list[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has everything."""
    squares = len(shares) * sum(share * share for share in shares)
    return sum(shares) ** 2 / squares if squares else 1.0
