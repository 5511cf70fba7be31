"""Who goes before a task, and how long that takes: the dispatcher's order, foretold.

A task with older ones of its agent before it, of whatever types, has its turn when the agent's virtual time has come to

    start = virtual_time + their cost / weight

Until then another agent of the band, which is at `v` now, is served as many tasks as bring it there, at most all that
it has:

    min(depth, (start - v) * its weight / its cost)

and every task of a more urgent band is served as well. Their running seconds over the slots that serve them is how long
it takes.

Bounded: depths are counted up to 1,000 a lane, 10,000 in all, and of more than 60 lanes the others are taken to be
like those that are counted. It is a forecast: what comes later, the tenth grants to lower bands, and models that must
be loaded are not in it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from bitinglip.lifecycle.ability import find_obstacle
from bitinglip.store.explaining import DEPTH_BOUND, PAIRS_BOUND, RIVALS_BOUND, get_turn, list_open_pairs, list_rivals
from bitinglip.store.lanes import LaneKey, list_arrivals
from bitinglip.store.queues import DEPTH

LAST_SEQ = 2**63 - 1
"""In place of the sequence number of a task that is not recorded: after all that are."""

_LEAST_COST = 1e-9


@dataclass(frozen=True, slots=True)
class Line:
    """What goes before a task in one pool.

    Attributes:
        urgent: Tasks of more urgent bands.
        rivals: Tasks of other agents in its own band.
        agents: How many other agents these are of: those in its own band, or the more urgent ones if they are more.
        own: Older tasks of its own agent in its band.
        is_exact: False where something was counted up to a bound, or a sample taken.
        running_seconds: What such a task runs, as those before it did.
        seconds_before: What all that go before it run, together.
        measured: Whether such a task was ever measured; else its cost is a guess.
        cost: What it is expected to be charged, in the pool's unit.
        virtual_time: The agent's.
        least: The least one of the other agents in the band; None: no other waits.
        slots: Of the workers that hold its model, or else of all that may take it.
        running: Tasks that these run now.
        reserved: Tasks that these have been given and not begun.
        room: Tasks that these can be given now.
    """

    pool: str
    urgent: int
    rivals: int
    agents: int
    own: int
    is_exact: bool
    running_seconds: float
    seconds_before: float
    measured: bool
    cost: float
    virtual_time: float
    least: float | None
    slots: int
    running: int
    reserved: int
    room: int

    @property
    def position(self) -> int:
        """Tasks that go before it."""
        return self.urgent + self.rivals + self.own


def read_line(
    connection: Connection, key: LaneKey, able: Sequence[Row[Any]], *, seq: int = LAST_SEQ, weight: float = 1.0
) -> Line:
    """The line before a task in a pool.

    Args:
        connection: In a transaction.
        key: The task's lane.
        able: The pool's workers that may take it; at least one.
        seq: The task's; the last one for a task that is not recorded.
        weight: Of its agent.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away.
    """
    pool = able[0].pool
    serving = find_holders(able, key.model) or able
    found = list_open_pairs(connection, pool)
    pairs = sorted(
        {(key.type, key.model), *(pair for pair in found if _compete(pair, serving, are_holders=serving is not able))}
    )
    turn = get_turn(connection, pool, key, seq, pairs)
    virtual_time = _find_virtual_time(list_arrivals(connection, pool, [key.agent_id])[0])
    start = virtual_time + turn.own_cost / weight
    rows = list_rivals(connection, pool, key, start, pairs)
    served = _Served(key.agent_id, seq, start)
    for urgent in (True, False):
        served.add([row for row in rows if row.is_urgent == urgent])
    return Line(
        pool,
        urgent=round(served.urgent),
        rivals=round(served.rivals),
        agents=round(served.agents),
        own=turn.own,
        is_exact=served.is_exact and turn.own < DEPTH_BOUND and len(found) < PAIRS_BOUND,
        running_seconds=turn.running_seconds,
        seconds_before=served.seconds + turn.own_seconds,
        measured=turn.measured,
        cost=turn.cost,
        virtual_time=virtual_time,
        least=next((row.least for row in rows if not row.is_urgent), None),
        slots=sum(worker.slots for worker in serving),
        running=sum(worker.held - worker.unclaimed for worker in serving),
        reserved=sum(worker.unclaimed for worker in serving),
        room=count_room(serving),
    )


def find_holders(workers: Iterable[Row[Any]], model: str) -> list[Row[Any]]:
    """Those of the workers that hold a model, or have been given tasks of it."""
    return [worker for worker in workers if model and (model in worker.models or model in worker.in_use)]


def count_room(workers: Iterable[Row[Any]]) -> int:
    """Tasks that workers can be given now."""
    return sum(max(0, DEPTH * worker.slots - worker.held) for worker in workers)


def _compete(pair: tuple[str, str], workers: Sequence[Row[Any]], *, are_holders: bool) -> bool:
    """Whether tasks of a type and model may go to one of the workers; where these hold a model, only of what they hold.

    Sizes were asked when lanes were opened.
    """
    type_, model = pair
    if are_holders and model and not find_holders(workers, model):
        return False
    return any(find_obstacle(worker, type_, model, agent_id=None, size=0) is None for worker in workers)


def _find_virtual_time(arrival: Row[Any]) -> float:
    """The agent's; one that returns from idle begins where the least active one is."""
    own = float(arrival.virtual_time)
    # Where nobody waits, nobody is compared with it.
    return own if arrival.is_active or arrival.least is None else max(own, arrival.least)


class _Served:
    """What is served before a task, added up lane by lane."""

    def __init__(self, agent_id: str, seq: int, start: float) -> None:
        self._agent_id = agent_id
        self._seq = seq
        self._start = start
        self.urgent = 0.0
        self.rivals = 0.0
        self.seconds = 0.0
        self.agents = 0.0
        self.is_exact = True

    def add(self, lanes: Sequence[Row[Any]]) -> None:
        """Count lanes that are all more urgent, or none."""
        if not lanes:
            return
        # The others are like those that were counted.
        scale = lanes[0].lanes / len(lanes)
        spent: dict[str, float] = {}
        agents: set[str] = set()
        for lane in lanes:
            number = self._count(lane, spent)
            if lane.is_urgent:
                self.urgent += number * scale
            else:
                self.rivals += number * scale
            self.seconds += number * lane.running_seconds * scale
            if number:
                agents.add(lane.agent_id)
        self.agents = max(self.agents, len(agents - {self._agent_id}) * scale)
        self.is_exact = self.is_exact and scale == 1 and len(lanes) < RIVALS_BOUND

    def _count(self, lane: Row[Any], spent: dict[str, float]) -> int:
        if lane.is_urgent:
            self.is_exact = self.is_exact and lane.depth < lane.bound
            return int(lane.depth)
        # All lanes of an agent share one virtual time.
        before = spent.get(lane.agent_id, 0.0)
        turns = round(((self._start - lane.virtual_time) * lane.weight - before) / max(lane.cost, _LEAST_COST), 6)
        # At the same virtual time the older task goes first.
        is_first = turns == int(turns) and lane.head_seq is not None and lane.head_seq < self._seq
        number: int = max(0, min(int(lane.depth), math.ceil(turns) + is_first))
        spent[lane.agent_id] = before + number * lane.cost
        self.is_exact = self.is_exact and not lane.bound <= number < turns
        return number
