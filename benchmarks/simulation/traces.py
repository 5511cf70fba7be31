"""Who asks for what, and when. A trace is a list of arrivals by time; everything in it comes from one seed."""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Arrival:
    """One task.

    Attributes:
        at: Seconds from the start.
        cost: Seconds that it keeps one slot of a GPU of speed 1.
    """

    at: float
    agent: str
    model: str
    cost: float
    priority: str = "medium"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One worker and its engine.

    Attributes:
        models: How many it holds at once.
        load_seconds: To load one.
        preloaded: What it holds when it starts.
    """

    name: str
    slots: int = 2
    speed: float = 1.0
    models: int = 1
    load_seconds: float = 3.0
    preloaded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outage:
    """A worker that is gone; its tasks are rescued when its lease ends."""

    gpu: str
    at: float
    seconds: float


@dataclass(slots=True)
class Scenario:
    """What a simulation is given.

    Attributes:
        weights: Of agents; 1 where not named.
        guesses: What the store knows already of (agent, model), where it knows something.
        failure_rate: Of runs: part of them fail on the way, cost nobody anything and are tried again.
        until: Stop here; None: when all is done.
    """

    arrivals: list[Arrival]
    gpus: list[Gpu]
    weights: Mapping[str, float] = field(default_factory=dict)
    guesses: Mapping[tuple[str, str], float] = field(default_factory=dict)
    outages: list[Outage] = field(default_factory=list)
    failure_rate: float = 0.0
    swap_seconds: float = 10.0
    until: float | None = None
    seed: int = 0


def list_gpus(count: int, *, slots: int = 2, models: int = 1, spread: float = 0.0, seed: int = 0) -> list[Gpu]:
    """GPUs whose speeds lie within `spread` of 1, on either side."""
    pick = random.Random(seed)
    return [Gpu(f"gpu-{n:02}", slots, round(1 + pick.uniform(-spread, spread), 3), models) for n in range(count)]


def make_poisson(
    seed: int,
    *,
    agents: int = 20,
    models: int = 5,
    seconds: float = 300,
    per_second: float = 8,
    mean_cost: float = 1.0,
    zipf: float = 1.0,
    burst: int = 1,
    greedy: float = 0.0,
) -> list[Arrival]:
    """Tasks that come at random; their costs are exponential, and no more than ten times the mean.

    Args:
        seed: Of everything in it.
        agents: Each has its own mean cost, within a factor of two.
        models: By popularity.
        seconds: How long tasks come.
        per_second: How many, together.
        mean_cost: In seconds of a slot.
        zipf: Exponent of the models' popularity; 0: all are asked for alike.
        burst: Tasks of one agent and model that come at once.
        greedy: Part of the tasks that comes from the first agent.
    """
    pick = random.Random(seed)
    scale = [mean_cost * 2 ** pick.uniform(-1, 1) for _ in range(agents)]
    popularity = [1 / (rank + 1) ** zipf for rank in range(models)]
    arrivals: list[Arrival] = []
    at = 0.0
    while (at := at + pick.expovariate(per_second / burst)) < seconds:
        agent = 0 if pick.random() < greedy else pick.randrange(agents)
        (model,) = pick.choices(range(models), popularity)
        arrivals += [
            Arrival(at, f"agent-{agent:02}", f"model-{model}", draw_cost(pick, scale[agent])) for _ in range(burst)
        ]
    return arrivals


def make_backlog(
    seed: int,
    *,
    agents: int = 20,
    models: int = 5,
    each: int = 200,
    costs: tuple[float, float] = (0.25, 1.0),
    own_model: bool = False,
) -> list[Arrival]:
    """Every agent has all its tasks from the start: of one model of its own, or of all. Costs are uniform."""
    pick = random.Random(seed)
    return [
        Arrival(
            0.0,
            f"agent-{agent:02}",
            f"model-{(agent if own_model else pick.randrange(models)) % models}",
            pick.uniform(*costs),
        )
        for _ in range(each)
        for agent in range(agents)
    ]


def draw_cost(pick: random.Random, mean: float) -> float:
    """An exponential cost, neither nothing nor endless."""
    return min(10 * mean, max(0.05 * mean, pick.expovariate(1 / mean)))


def read_trace(path: Path) -> list[Arrival]:
    """Read a recorded trace: one JSON object a line, with at, agent, model, cost and priority.

    Raises:
        ValueError: If a line is not such an object; names the line.
    """
    return sorted(_read_lines(path), key=lambda arrival: arrival.at)


def _read_lines(path: Path) -> Iterator[Arrival]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            arrival = Arrival(
                float(given["at"]),
                str(given["agent"]),
                str(given.get("model") or ""),
                float(given["cost"]),
                str(given.get("priority", "medium")),
            )
        except (TypeError, ValueError, KeyError) as exc:
            raise ValueError(f"{path}:{number}: not an arrival (at, agent, model, cost, priority): {exc!r}") from exc
        if arrival.cost <= 0 or arrival.at < 0 or arrival.priority not in PRIORITIES:
            raise ValueError(f"{path}:{number}: cost must be above 0, at not below 0, priority of {PRIORITIES}")
        yield arrival


PRIORITIES = ("critical", "high", "medium", "low")
