"""Other planners, for comparison: first in, first out, in three ways of dealing with models.

- `plan_fifo`: the oldest task goes first and is waited for: a model is swapped as soon as a worker has room.
- `plan_fifo_greedy`: a task whose model is held by busy workers is passed over; one whose model is not held swaps once
  a worker has room for it.
- `plan_batches`: a worker keeps its model while tasks for it wait, then takes the model of the oldest task that nobody
  serves. No planner loads less, so this is the most that FIFO can do; agents and waits count for nothing.
"""

import heapq
from collections.abc import Mapping, Sequence

from bitinglip.dispatcher.placement import Fleet, NoPlace, WorkerRoom
from bitinglip.dispatcher.plan import Assignment, Lane, Plan


def plan_fifo(lanes: Sequence[Lane], workers: Sequence[WorkerRoom], **settings: object) -> Plan:
    """The oldest first, and nothing before it."""
    return _plan(lanes, workers, settings, may_swap=True, blocks=True)


def plan_fifo_greedy(lanes: Sequence[Lane], workers: Sequence[WorkerRoom], **settings: object) -> Plan:
    """The oldest that has a place first."""
    return _plan(lanes, workers, settings, may_swap=True, blocks=False)


def plan_batches(lanes: Sequence[Lane], workers: Sequence[WorkerRoom], **settings: object) -> Plan:
    """A model stays while there is a task for it."""
    return _plan(lanes, workers, settings, may_swap=False, blocks=False)


def _plan(
    lanes: Sequence[Lane],
    workers: Sequence[WorkerRoom],
    settings: Mapping[str, object],
    *,
    may_swap: bool,
    blocks: bool,
) -> Plan:
    sizes = settings["sizes"]
    grants = settings["grants"]
    assert isinstance(sizes, Mapping)
    assert isinstance(grants, int)
    fleet = Fleet(workers, sizes)
    assignments: list[Assignment] = []
    # What has its place first, so that no idle worker changes its model while there is a task for it.
    for may_swap_idle in (True,) if blocks else (False, True):
        queue = [(lane.heads[0].seq, number) for number, lane in enumerate(lanes) if lane.heads]
        heapq.heapify(queue)
        while queue and fleet.free:
            lane = lanes[queue[0][1]]
            place = fleet.find_place(
                lane.type, lane.model, lane.agent.id, may_swap_idle=may_swap_idle, may_swap=may_swap and may_swap_idle
            )
            if isinstance(place, NoPlace):
                if blocks:
                    break
                heapq.heappop(queue)
                continue
            worker, placement = place
            fleet.take(worker, lane.model)
            assignments.append(Assignment(lane.heads.popleft(), lane, worker, 0.0, placement))
            if lane.heads:
                heapq.heapreplace(queue, (lane.heads[0].seq, queue[0][1]))
            else:
                heapq.heappop(queue)
    return Plan(assignments, [], grants + len(assignments), [], [], set())
