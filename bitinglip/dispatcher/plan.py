"""Decide which task runs where. Pure: lanes and workers in, assignments out; no clock, no I/O.

Bands are strict. Within a band the agent with the least virtual time is next; each grant advances it by its cost over
its weight. An agent that returns from idle starts at the pool's clock, the virtual time of the latest grant, so that
it neither claims the time it was away nor waits for it.

After Goyal, Vin, Cheng, "Start-time Fair Queueing" (SIGCOMM 1996): the clock is the start tag of the grant in service.
"""

import heapq
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

GRANT_COST = 1.0
"""What a grant is charged, before weight."""


@dataclass(frozen=True, slots=True)
class Head:
    """A ready task near the front of its lane."""

    task_id: uuid.UUID
    attempt: int
    model: str | None


@dataclass(slots=True)
class Lane:
    """One agent's queue of one type in one band; `rank` 0 is the most urgent."""

    type: str
    agent_id: str
    priority: str
    rank: int
    virtual_time: float
    weight: float
    heads: deque[Head] = field(default_factory=deque)


@dataclass(slots=True)
class WorkerRoom:
    """A worker that can be given `free` more tasks; if its engine is not up, they wait until it is."""

    id: uuid.UUID
    name: str
    kinds: frozenset[str]
    models: frozenset[str]
    free: int
    engine_up: bool = True


@dataclass(frozen=True, slots=True)
class Assignment:
    """One task to one worker."""

    head: Head
    lane: Lane
    worker: WorkerRoom


@dataclass(frozen=True, slots=True)
class Plan:
    """What one round decides for one pool.

    Attributes:
        assignments: In the order they were granted.
        virtual_times: New virtual time by agent, of the agents that were served.
        clock: The pool's new clock.
    """

    assignments: list[Assignment]
    virtual_times: dict[str, float]
    clock: float


def plan_pool(lanes: Sequence[Lane], workers: Sequence[WorkerRoom], clock: float) -> Plan:
    """Give the free room of one pool's workers to its lanes. Consumes `heads` and `free` as it goes."""
    times: dict[str, float] = {}
    weights = {lane.agent_id: lane.weight for lane in lanes}
    for lane in lanes:
        times[lane.agent_id] = max(lane.virtual_time, clock)
    waiting = [(lane.rank, times[lane.agent_id], lane.agent_id, number) for number, lane in enumerate(lanes)]
    heapq.heapify(waiting)
    assignments: list[Assignment] = []
    served: set[str] = set()
    room = sum(worker.free for worker in workers)
    while waiting and len(assignments) < room:
        rank, stamp, agent_id, number = heapq.heappop(waiting)
        lane = lanes[number]
        if not lane.heads:
            continue
        if stamp < times[agent_id]:
            heapq.heappush(waiting, (rank, times[agent_id], agent_id, number))
            continue
        worker = _choose_worker(lane, workers)
        if worker is None:
            continue
        assignments.append(Assignment(lane.heads.popleft(), lane, worker))
        worker.free -= 1
        served.add(agent_id)
        clock = max(clock, stamp)
        times[agent_id] = stamp + GRANT_COST / weights[agent_id]
        heapq.heappush(waiting, (rank, times[agent_id], agent_id, number))
    return Plan(assignments, {agent_id: times[agent_id] for agent_id in served}, clock)


def _choose_worker(lane: Lane, workers: Sequence[WorkerRoom]) -> WorkerRoom | None:
    """The worker for a lane's first task: one whose engine is up, then one that holds its model, then the freest."""
    able = [worker for worker in workers if worker.free > 0 and lane.type in worker.kinds]
    model = lane.heads[0].model
    return max(able, key=lambda worker: (worker.engine_up, model in worker.models, worker.free), default=None)
