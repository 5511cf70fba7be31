"""Decide which task runs where. Pure: lanes and workers in, assignments with reasons out; no clock, no I/O.

Bands are strict, but every tenth grant goes to the oldest task of a lower band. Within a band the agent with the least
virtual time is next; a grant charges it what its tasks cost of late, over its weight, and what the task really cost is
settled when it has ended. An agent has one virtual time, whatever the band. One that returns from idle starts where the
least active one is, so that it neither claims the time it was away nor waits for it.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 1, with the estimate of a
request's cost in place of counting its tokens as they come: tasks are long, and a grant cannot be taken back.

Where a task can go is `placement`'s to say. A lane that has its turn and no place keeps its virtual time: it is passed
over, for a bounded time, so that models stay where they are. One whose model is held by workers that have too much to
do is passed over until its agent is far behind; then a worker that serves those ahead changes to its model.
"""

import heapq
import math
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import assert_never

from bitinglip.dispatcher.placement import Fleet, NoPlace, Placement, WorkerRoom

ELDER_GRANT = 10
"""Every so many grants one goes to the oldest task of a lower band."""

URGENT_RANK = 0


class Closing(StrEnum):
    """Why a lane is not offered again until something changes."""

    PAUSED = "paused"
    MAX_RUNNING = "max_running"
    DAILY_BUDGET = "daily_budget"
    NO_WORKER = "no_worker"


@dataclass(frozen=True, slots=True)
class Head:
    """A ready task near the front of its lane.

    Attributes:
        seq: Its place in the order of all submissions.
    """

    task_id: uuid.UUID
    attempt: int
    seq: int


@dataclass(slots=True)
class Agent:
    """Who asks, as one pool sees it.

    Attributes:
        virtual_time: Cost that it was charged, over its weight.
        in_flight: Its tasks that are reserved or running in this pool.
        allowance: Tasks that it may be given before one of its limits is reached; None: no limit.
        limit: The limit that its allowance comes from.
    """

    id: str
    virtual_time: float
    weight: float = 1.0
    in_flight: int = 0
    allowance: int | None = None
    limit: Closing = Closing.MAX_RUNNING


@dataclass(slots=True)
class Lane:
    """An agent's tasks of one type for one model in one band; `rank` 0 is the most urgent.

    Attributes:
        model: Empty for a type that needs none.
        cost: What one of its tasks is expected to cost, in the pool's unit.
        measured: Whether `cost` is the agent's own recent mean for the model, and not a guess.
        passed_seconds: Since it had its turn and no place; None: it was not passed over since its model was last given
            to a worker.
    """

    type: str
    model: str
    agent: Agent
    priority: str
    rank: int
    cost: float = 1.0
    measured: bool = True
    passed_seconds: float | None = None
    heads: deque[Head] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One task to one worker, and why it goes there.

    Attributes:
        charge: What the agent was charged for it, before weight.
    """

    head: Head
    lane: Lane
    worker: WorkerRoom
    charge: float
    placement: Placement


@dataclass(frozen=True, slots=True)
class Plan:
    """What one round decides for one pool.

    Attributes:
        assignments: In the order they were granted.
        served: The agents that were granted something, with their new virtual times.
        grants: The pool's count of grants, with these.
        passed: Lanes that had their turn and no place, because no worker holds their model.
        closed: Lanes that cannot be served until something changes, and why.
        yielding: Workers whose reservations give way to an urgent task that waits for a slot.
    """

    assignments: list[Assignment]
    served: list[Agent]
    grants: int
    passed: list[Lane]
    closed: list[tuple[Lane, Closing]]
    yielding: set[uuid.UUID]


def lift(virtual_time: float, active: Iterable[float], clock: float) -> float:
    """The virtual time of an agent that returns from idle.

    Args:
        virtual_time: What it had when it left.
        active: Those of the agents that wait for service now.
        clock: That of the agent served last, for when nobody waits.
    """
    return max(virtual_time, min(active, default=clock))


def plan_pool(
    lanes: Sequence[Lane],
    workers: Sequence[WorkerRoom],
    *,
    sizes: Mapping[str, int] | None = None,
    grants: int = 0,
    swap_seconds: float = 10.0,
    copy_lag: float | None = None,
) -> Plan:
    """Give the free room of one pool's workers to its lanes. Consumes heads, room and allowances as it goes.

    Args:
        lanes: In any order; of each agent, model and band at most one.
        workers: All of the pool's.
        sizes: Bytes that models take on a GPU, where they are known.
        grants: Those that the pool has given so far.
        swap_seconds: How long a lane is passed over before a model that others use makes room for its own.
        copy_lag: Virtual time by which an agent is behind another before a model of the other makes room for a second
            copy of its own; None: never. At least what one worker gives in twice `swap_seconds`: agents whose model was
            away are behind by that much anyway.
    """
    fleet = Fleet(workers, sizes or {})
    return _Round(lanes, fleet, grants=grants, swap_seconds=swap_seconds, copy_lag=copy_lag).run()


class _Turns:
    """The lanes of a band by their agents' virtual times, then by age.

    A round reaches as many as it has room for, and the few that have no place: these alone are sorted, and the rest
    when it turns out that there were more. A virtual time only grows within a round, so the one that a lane was sorted
    by is never too great.
    """

    def __init__(self, lanes: Sequence[Lane], times: dict[int, float], room: int) -> None:
        self._lanes = lanes
        self._times = times
        reach = 2 * room + 64
        self._cut = heapq.nsmallest(reach, times.values())[-1] if len(times) > 2 * reach else math.inf
        self._far = self._sort(number for number, time in times.items() if time <= self._cut)
        self._near: list[tuple[float, int, int]] = []

    def first(self) -> int | None:
        """Whose turn it is."""
        while True:
            if not self._far and self._cut < math.inf:
                self._far = self._sort(number for number, time in self._times.items() if time > self._cut)
                self._cut = math.inf
            while self._far and (not self._near or self._times[self._far[-1]] <= self._near[0][0]):
                heapq.heappush(self._near, self._stamp(self._far.pop()))
            if not self._near:
                return None
            time, _, number = self._near[0]
            lane = self._lanes[number]
            if lane.heads and lane.agent.virtual_time == time:
                return number
            self.advance()

    def advance(self) -> None:
        """Put the first one where it belongs after its grant."""
        number = self._near[0][2]
        if self._lanes[number].heads:
            heapq.heapreplace(self._near, self._stamp(number))
        else:
            self.drop()

    def drop(self) -> None:
        """Take the first one out."""
        heapq.heappop(self._near)

    def _sort(self, numbers: Iterable[int]) -> list[int]:
        return sorted(numbers, key=self._times.__getitem__, reverse=True)

    def _stamp(self, number: int) -> tuple[float, int, int]:
        lane = self._lanes[number]
        return lane.agent.virtual_time, lane.heads[0].seq if lane.heads else 0, number


class _Round:
    def __init__(
        self, lanes: Sequence[Lane], fleet: Fleet, *, grants: int, swap_seconds: float, copy_lag: float | None
    ) -> None:
        self._lanes = lanes
        self._fleet = fleet
        self._grants = grants
        self._swap_seconds = swap_seconds
        self._copy_lag = math.inf if copy_lag is None else copy_lag
        self._rank = 0
        self._behind: int | None = None
        self._overdue: set[tuple[str, str]] = set()
        self._assignments: list[Assignment] = []
        self._served: dict[str, Agent] = {}
        self._put_off: dict[int, None] = {}
        self._passed: dict[int, Lane] = {}
        self._closed: dict[int, tuple[Lane, Closing]] = {}
        self._bands: dict[int, dict[int, float]] = {}
        self._elders: list[tuple[int, int]] | None = None

    def run(self) -> Plan:
        """Band by band: first what has its place, in the order of fairness; then what idle workers can load."""
        self._sort_lanes()
        for rank, times in sorted(self._bands.items()):
            self._put_off.clear()
            self._rank = rank
            self._serve(rank, times, leftover=False)
            self._behind = None
            self._serve(rank, {number: times[number] for number in self._put_off if number in times}, leftover=True)
        urgent = [
            ((lane.type, lane.model, lane.agent.id), (lane.type, lane.model) in self._overdue)
            for number in self._bands.get(URGENT_RANK, ())
            if (lane := self._lanes[number]).heads and lane.agent.allowance != 0
        ]
        return Plan(
            self._assignments,
            list(self._served.values()),
            self._grants,
            list(self._passed.values()),
            list(self._closed.values()),
            self._fleet.find_yielding(urgent),
        )

    def _sort_lanes(self) -> None:
        for number, lane in enumerate(self._lanes):
            if lane.heads:
                times = self._bands.get(lane.rank)
                if times is None:
                    times = self._bands[lane.rank] = {}
                times[number] = lane.agent.virtual_time
                if lane.passed_seconds is not None and lane.passed_seconds >= self._swap_seconds:
                    # Whoever of a model's agents has the next turn may swap.
                    self._overdue.add((lane.type, lane.model))

    @cached_property
    def _weights(self) -> dict[str, float]:
        return {lane.agent.id: lane.agent.weight for lane in self._lanes}

    @cached_property
    def _slots_by_weight(self) -> float:
        return self._fleet.slots / sum(self._weights.values())

    def _has_guessed_enough(self, agent: Agent) -> bool:
        """Guessed costs would let one agent fill every slot before the first of its tasks has been measured."""
        return len(self._weights) > 1 and agent.in_flight >= max(1, int(self._slots_by_weight * agent.weight))

    def _serve(self, rank: int, times: dict[int, float], *, leftover: bool) -> None:
        if not (times and self._fleet.free):
            return
        turns = _Turns(self._lanes, times, self._fleet.free)
        while self._fleet.free and (number := turns.first()) is not None:
            if (self._grants + 1) % ELDER_GRANT == 0 and self._serve_elder(rank):
                continue
            if self._serve_lane(number, leftover=leftover):
                turns.advance()
            else:
                turns.drop()

    def _serve_lane(self, number: int, *, leftover: bool) -> bool:
        """Grant the lane's first task; False if the lane is done with for now."""
        lane = self._lanes[number]
        agent = lane.agent
        if agent.allowance == 0:
            self._closed[number] = (lane, agent.limit)
            return False
        if not lane.measured and self._has_guessed_enough(agent) and not (leftover and self._fleet.idle):
            self._put_off[number] = None
            return False
        may_swap = (lane.type, lane.model) in self._overdue
        place = self._fleet.find_place(lane.type, lane.model, agent.id, may_swap_idle=leftover, may_swap=may_swap)
        match place:
            case NoPlace.NEVER:
                self._closed[number] = (lane, Closing.NO_WORKER)
            case NoPlace.FULL:
                pass
            case NoPlace.BUSY:
                self._put_off[number] = None
                if self._behind is None and not leftover and lane.rank == self._rank:
                    # The first in its band is the one furthest behind.
                    self._behind = number
            case NoPlace.NOT_NOW:
                self._passed[number] = lane
                self._put_off[number] = None
            case (worker, placement):
                if not self._copy_for_behind(lane, worker):
                    # It waits anew for what it has left.
                    self._passed.pop(number, None)
                    self._grant(lane, worker, placement)
                return True
            case _:
                assert_never(place)
        return False

    def _copy_for_behind(self, ahead: Lane, worker: WorkerRoom) -> bool:
        """Give the place of an agent that is far ahead to the one that is behind and waits for its model's workers."""
        if self._behind is None:
            return False
        lane = self._lanes[self._behind]
        agent = lane.agent
        if (
            ahead.rank != lane.rank
            or ahead.agent.virtual_time - agent.virtual_time < self._copy_lag
            or not lane.heads
            or agent.allowance == 0
            or not self._fleet.may_copy(worker, lane.type, lane.model, agent.id)
        ):
            return False
        self._behind = None
        self._grant(lane, worker, Placement.BEHIND)
        return True

    def _grant(self, lane: Lane, worker: WorkerRoom, placement: Placement) -> None:
        agent = lane.agent
        self._fleet.take(worker, lane.model, urgent=lane.rank == URGENT_RANK)
        self._assignments.append(Assignment(lane.heads.popleft(), lane, worker, lane.cost, placement))
        self._grants += 1
        agent.virtual_time += lane.cost / agent.weight
        agent.in_flight += 1
        if agent.allowance is not None:
            agent.allowance -= 1
        self._served[agent.id] = agent

    def _serve_elder(self, rank: int) -> bool:
        """Grant the oldest task of the bands below; False if there is none that has a place."""
        if self._elders is None:
            below = [number for band, numbers in self._bands.items() if band > rank for number in numbers]
            self._elders = [(self._lanes[number].heads[0].seq, number) for number in below]
            heapq.heapify(self._elders)
        while self._elders:
            seq, number = self._elders[0]
            lane = self._lanes[number]
            is_below = lane.rank > rank and bool(lane.heads)
            if is_below and lane.heads[0].seq != seq:
                # Served since.
                heapq.heapreplace(self._elders, (lane.heads[0].seq, number))
            elif is_below and self._serve_lane(number, leftover=False):
                return True
            else:
                heapq.heappop(self._elders)
        return False
