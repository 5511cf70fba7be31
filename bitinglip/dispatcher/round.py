"""One round: plan every pool that has room, and reserve what was planned. One transaction, under one lock."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from bitinglip.dispatcher.plan import Assignment, Head, Lane, Plan, WorkerRoom, plan_pool
from bitinglip.domain.task import Priority
from bitinglip.store.database import Database
from bitinglip.store.queues import (
    list_heads,
    list_lanes,
    list_open_workers,
    lock_dispatch,
    mark_emptied,
    reserve_tasks,
    set_virtual_times,
)

DEPTH = 2
"""Tasks that a worker is given, per slot."""

_RANKS = {priority.value: priority.rank for priority in Priority}


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a round reserved, and whether another would find room and tasks at once."""

    reserved: list[Assignment]
    more: bool


def run_round(database: Database) -> RoundResult:
    """Plan and reserve once.

    Not durable at once: a reservation that a crash of PostgreSQL forgets is made again.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. Nothing is reserved.
    """
    reserved: list[Assignment] = []
    more = False
    with database.transaction() as connection:
        lock_dispatch(connection)
        pools: dict[str, list[WorkerRoom]] = defaultdict(list)
        for row in list_open_workers(connection):
            free = max(0, DEPTH * row.slots - row.held)
            kinds, models = frozenset(row.kinds), frozenset(row.models)
            pools[row.pool].append(WorkerRoom(row.id, row.name, kinds, models, free, row.engine_up))
        for pool, workers in pools.items():
            if any(worker.free for worker in workers):
                assignments, pool_has_more = _fill_pool(connection, pool, workers)
                reserved += assignments
                more = more or pool_has_more
    return RoundResult(reserved, more)


def _fill_pool(connection: Connection, pool: str, workers: Sequence[WorkerRoom]) -> tuple[list[Assignment], bool]:
    """Reserve for one pool; returns what was reserved and whether there is room left and there may be more lanes."""
    types = sorted({kind for worker in workers if worker.free for kind in worker.kinds})
    rows = list_lanes(connection, pool, types)
    if not rows:
        return [], False
    room = sum(worker.free for worker in workers)
    lanes = [_make_lane(row) for row in rows]
    # Twice an even share: a lane that is served more than its share is read further in the next round.
    depth = -(-2 * room // len(lanes))
    for head in list_heads(connection, [_key(lane) for lane in lanes], depth):
        lanes[head.lane].heads.append(Head(head.id, head.attempt, head.model))
    full = {number for number, lane in enumerate(lanes) if len(lane.heads) == depth}
    plan: Plan = plan_pool(lanes, workers, clock=rows[0].clock)
    reserved: set[Any] = set()
    if plan.assignments:
        reserved = reserve_tasks(connection, [(item.head.task_id, item.worker.id) for item in plan.assignments])
        set_virtual_times(connection, pool, plan.clock, plan.virtual_times)
    emptied = [_key(lane) for number, lane in enumerate(lanes) if number not in full and not lane.heads]
    if emptied:
        mark_emptied(connection, emptied)
    # Lanes that were found empty hid others: a thousand cancelled queues must not take a thousand seconds.
    more = bool(plan.assignments or emptied) and any(worker.free for worker in workers)
    return [item for item in plan.assignments if item.head.task_id in reserved], more


def _make_lane(row: Any) -> Lane:
    return Lane(row.type, row.agent_id, row.priority, _RANKS[row.priority], row.virtual_time, row.weight)


def _key(lane: Lane) -> tuple[str, str, str]:
    return lane.type, lane.agent_id, lane.priority
