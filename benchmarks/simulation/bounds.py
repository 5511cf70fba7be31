"""What must hold in every simulation, and why.

The service bound. Let every task have its place on every worker. Take agents i and j that wait for service from the
start to time t; U is what an agent's ended tasks cost, by its weight w; V, its virtual time, is U and the estimates of
its n tasks in flight, by w. Let i be granted something last at t0. Then V_i <= V_j at t0, so U_i <= U_j + n_j e / w_j
there, where e is the largest estimate. Until t, i ends no more than its n_i tasks in flight and the new one, each at
most c; U_j does not fall, as what fails costs nothing. So

    U_i - U_j  <=  n_j e / w_j + (n_i + 1) c / w_i  <=  C c / min(w_i, w_j)  =  B

with C the fleet's room, n_i + n_j + 1 <= C, and e <= c, as a mean of costs. Sheng et al. have the same with a batch's
tokens for C c; over a window of the time it is 2 B. Only the order of grants counts in the proof, so it holds through
failures, rescues and wrong estimates.

An agent without a measured task is held at its part of the slots until the first has ended. That is within 2 c of the
slowest GPU's time, in which others are granted no more than r C c + C c, with r the fastest speed by the slowest: so
(2 + r) B.

Where models do not fit everywhere, an agent also waits for its model, and the gap has no such bound.

The bound of loads. Let M models be wanted all the time, on workers that hold G together. In a time T the models are
away for (M - G) T together. Where no wanted model stays away longer than A, these are at least (M - G) T / A absences,
each but the M - G last of which ends in a load, beside the G first loads: G + (M - G)(T / A - 1). A is what the swap
bound gives: the bound, until a slot frees, until the worker's tasks have ended. A schedule that lets a model stay away
longer while its agents are ahead of the others could load less often; it breaks this wait for their tasks.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import combinations

from benchmarks.simulation.cluster import DEPTH
from benchmarks.simulation.record import Record
from bitinglip.dispatcher.placement import WorkerRoom
from bitinglip.dispatcher.plan import Lane, Plan

TOLERANCE = 1e-9


def find_gap(record: Record, *, cold: bool = False) -> tuple[float, float]:
    """The largest service gap of two agents by its bound: waiting from the start by B, since later by 2 B.

    Args:
        record: Of a scenario in which every task has its place everywhere.
        cold: Whether agents began unmeasured.
    """
    speeds = [gpu.speed for gpu in record.scenario.gpus]
    unit = record.capacity * record.largest * ((2 + max(speeds) / min(speeds)) if cold else 1)
    weights = record.scenario.weights
    first = later = 0.0
    for one, other in combinations(sorted(record.backlogged), 2):
        bound = unit / min(weights.get(one, 1.0), weights.get(other, 1.0))
        for begin, end in _overlap(record.backlogged[one], record.backlogged[other]):
            gap = _measure_gap(record, one, other, begin, end)
            if begin == 0:
                first = max(first, gap / bound)
            else:
                later = max(later, gap / (2 * bound))
    return first, later


def _overlap(ours: list[list[float]], theirs: list[list[float]]) -> Iterator[tuple[float, float]]:
    for begin, end in ours:
        for their_begin, their_end in theirs:
            if max(begin, their_begin) < min(end, their_end):
                yield max(begin, their_begin), min(end, their_end)


def _measure_gap(record: Record, one: str, other: str, begin: float, end: float) -> float:
    weights = record.scenario.weights
    times = [at for at, *_ in record.service]
    gap = largest = 0.0
    for _, agent, cost in record.service[bisect_right(times, begin) if begin else 0 : bisect_left(times, end)]:
        if agent == one:
            gap += cost / weights.get(one, 1.0)
        elif agent == other:
            gap -= cost / weights.get(other, 1.0)
        largest = max(largest, abs(gap))
    return largest


def is_room_wasted(lanes: list[Lane], rooms: list[WorkerRoom], plan: Plan) -> bool:
    """Whether a worker was left with room beside a task that has its place there. All models have size 1.

    An agent without a measured task waits for the first to end, unless a slot were empty.
    """
    is_idle = any(room.held < room.slots for room in rooms)
    waiting = {lane.model for lane in lanes if lane.heads and lane.agent.allowance != 0 and (lane.measured or is_idle)}
    open_rooms = [room for room in rooms if room.free > 0]
    return any(_has_place(room, model, rooms) for model in waiting for room in open_rooms)


def _has_place(room: WorkerRoom, model: str, rooms: list[WorkerRoom]) -> bool:
    if not model or not room.held:
        return True
    is_held = any(_holds(other, model) for other in rooms)
    fits = room.memory_bytes is None or len(room.in_use | room.models.keys() | {model}) <= room.memory_bytes
    return _holds(room, model) or (fits and (room.held < room.slots or not is_held))


def _holds(room: WorkerRoom, model: str) -> bool:
    may_stay = room.memory_bytes is None or len(room.in_use | {model}) <= room.memory_bytes
    return (model in room.models and may_stay) or (model in room.in_use and model not in room.models)


def find_away_bound(record: Record) -> float:
    """A: how long a wanted model may be away; a load comes on top of it."""
    slowest = min(gpu.speed for gpu in record.scenario.gpus)
    longest = max(arrival.cost for arrival in record.scenario.arrivals) / slowest
    return record.scenario.swap_seconds + (1 + DEPTH) * longest


def find_least_loads(record: Record, models: int) -> int:
    """The bound of loads, for models that are wanted from the start to the end."""
    room = sum(gpu.models for gpu in record.scenario.gpus)
    away = max(0, models - room)
    return min(models, room) + max(0, math.ceil(away * (record.ended_at / find_away_bound(record) - 1)))
