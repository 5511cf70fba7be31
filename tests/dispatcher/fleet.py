"""Lanes and workers, told by what matters."""

import uuid
from collections import deque
from collections.abc import Iterable
from itertools import count

from bitinglip.dispatcher.placement import WorkerRoom
from bitinglip.dispatcher.plan import Agent, Closing, Head, Lane, Plan

BANDS = ("critical", "high", "medium", "low")

_numbers = count(1)


def make_agent(
    name: str = "a",
    time: float = 0.0,
    *,
    weight: float = 1.0,
    in_flight: int = 0,
    allowance: int | None = None,
    limit: Closing = Closing.MAX_RUNNING,
) -> Agent:
    return Agent(name, time, weight, in_flight, allowance, limit)


def make_lane(
    agent: Agent | str = "a",
    tasks: int = 1,
    *,
    model: str = "",
    priority: str = "medium",
    cost: float = 1.0,
    kind: str = "echo",
    measured: bool = True,
    passed: float | None = None,
    seqs: Iterable[int] | None = None,
) -> Lane:
    """A lane whose tasks came after those of all lanes made before it."""
    asks = make_agent(agent) if isinstance(agent, str) else agent
    numbers = [next(_numbers) for _ in range(tasks)] if seqs is None else seqs
    heads = deque(Head(uuid.uuid4(), 1, seq) for seq in numbers)
    return Lane(kind, model, asks, priority, BANDS.index(priority), cost, measured, passed, heads)


def make_worker(
    free: int = 1,
    name: str = "w",
    *,
    slots: int | None = None,
    held: int = 0,
    kinds: Iterable[str] = ("echo",),
    models: Iterable[str] = (),
    in_use: Iterable[str] = (),
    memory: int | None = None,
    up: bool = True,
    avoids: Iterable[str] = (),
    stored: Iterable[str] = (),
    allowed_models: Iterable[str] | None = None,
    allowed_agents: Iterable[str] | None = None,
    unclaimed: int = 0,
    urgent: int = 0,
) -> WorkerRoom:
    """A worker; each of its models has size 1, and it holds `memory` of them."""
    return WorkerRoom(
        uuid.uuid4(),
        name,
        frozenset(kinds),
        max(1, free) if slots is None else slots,
        free,
        held,
        dict.fromkeys(models, 1),
        set(in_use),
        memory,
        up,
        frozenset(avoids),
        frozenset(stored),
        None if allowed_models is None else frozenset(allowed_models),
        None if allowed_agents is None else frozenset(allowed_agents),
        unclaimed,
        urgent,
    )


SIZES = dict.fromkeys("mnop", 1)


def agents_of(plan: Plan) -> list[str]:
    return [item.lane.agent.id for item in plan.assignments]


def places_of(plan: Plan) -> list[tuple[str, str]]:
    """(model, worker) of each assignment."""
    return [(item.lane.model, item.worker.name) for item in plan.assignments]
