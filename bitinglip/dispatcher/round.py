"""One round: plan every pool that has room, and reserve what was planned. One transaction, under one lock."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from bitinglip.dispatcher.arrivals import admit_arrivals
from bitinglip.dispatcher.placement import WorkerRoom
from bitinglip.dispatcher.plan import ELDER_GRANT, Agent, Assignment, Closing, Head, Lane, Plan, plan_pool
from bitinglip.domain.models import is_hub_name
from bitinglip.domain.task import Priority
from bitinglip.store.charges import settle_charges
from bitinglip.store.copies import list_stored
from bitinglip.store.database import Database
from bitinglip.store.lanes import (
    LANES_PER_ROUND,
    LaneKey,
    list_lanes,
    mark_emptied,
    mark_lanes,
    note_places,
    record_grants,
    reopen_unplaced,
)
from bitinglip.store.queues import (
    DEPTH,
    LOCK_DISPATCH,
    Reservation,
    list_heads,
    list_open_workers,
    list_pools,
    list_sizes,
    reserve_tasks,
    set_pool,
    set_yielding,
)

ELDERS_SPARE = 2

MANY = 1_000_000
"""More tasks than an agent may have in flight."""

_RANKS = {priority.value: priority.rank for priority in Priority}


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a round reserved, and whether another would find room and tasks at once."""

    reserved: list[Assignment]
    more: bool


def run_round(database: Database, *, swap_seconds: float = 10.0) -> RoundResult:
    """Settle, plan and reserve once.

    Not durable at once: a reservation that a crash of PostgreSQL forgets is made again.

    Args:
        database: Where everything is.
        swap_seconds: How long a lane is passed over before a model that others use makes room for its own.

    Raises:
        DatabaseUnreachableError: If PostgreSQL is away. Nothing is reserved.
    """
    reserved: list[Assignment] = []
    more = False
    with database.transaction() as connection:
        settle_charges(connection, before=LOCK_DISPATCH)
        rows = list_open_workers(connection)
        sizes = list_sizes(connection) if any(row.memory_bytes for row in rows) else {}
        pools = list_pools(connection)
        more = admit_arrivals(connection, _follow_workers(connection, pools, rows, sizes))
        for pool in sorted({row.pool for row in rows}):
            ours = [row for row in rows if row.pool == pool]
            grants = pools[pool].grants if pool in pools else 0
            filled, pool_has_more = _fill_pool(connection, pool, ours, sizes, grants=grants, swap_seconds=swap_seconds)
            reserved += filled
            more = more or pool_has_more
    return RoundResult(reserved, more)


def _follow_workers(
    connection: Connection, known: Mapping[str, Any], rows: Sequence[Any], sizes: Mapping[str, int]
) -> dict[str, list[str]]:
    """Note what has changed in the workers, and return the kinds that each pool serves."""
    kinds = {name: list(row.kinds) for name, row in known.items()}
    for name in sorted({row.pool for row in rows}):
        ours = [row for row in rows if row.pool == name]
        before = known.get(name)
        served = {kind for row in ours for kind in row.kinds}
        new = sorted(served.difference(kinds.get(name, ())))
        digest = _digest(ours, sizes)
        if new or before is None or before.workers_digest != digest:
            kinds[name] = sorted(served.union(kinds.get(name, ())))
            set_pool(connection, name, kinds=kinds[name], new_kinds=new, digest=digest)
            reopen_unplaced(connection, name)
    return kinds


def _digest(rows: Sequence[Any], sizes: Mapping[str, int]) -> str:
    """Of everything that decides whether a worker could ever take a task."""
    said = [
        (r.name, sorted(r.kinds), r.memory_bytes, r.allowed_models, r.allowed_agents, sorted(r.avoids)) for r in rows
    ]
    return hashlib.sha256(repr((said, sorted(sizes.items()))).encode()).hexdigest()[:16]


def _fill_pool(
    connection: Connection,
    pool: str,
    rows: Sequence[Any],
    sizes: Mapping[str, int],
    *,
    grants: int,
    swap_seconds: float,
) -> tuple[list[Assignment], bool]:
    """Reserve for one pool; returns what was reserved and whether there is room left and there may be more lanes."""
    workers = [_make_room(row) for row in rows]
    room = sum(worker.free for worker in workers)
    marked = {row.id for row in rows if row.yields}
    if not room and not marked and all(worker.unclaimed == worker.urgent for worker in workers):
        return [], False
    kinds = sorted({kind for worker in workers for kind in worker.kinds})
    # Without room there may still be urgent tasks, which make others give way.
    depth = min(LANES_PER_ROUND, 2 * room + 4) if room else 1
    due = (grants % ELDER_GRANT + room) // ELDER_GRANT
    # A few more than are due: one may have no place.
    elders = due + ELDERS_SPARE if room and due else 0
    lanes = _read_lanes(list_lanes(connection, pool, kinds, depth=depth, elders=elders))
    _note_stored(connection, workers, rows, lanes)
    # Twice an even share: a lane that is served more than its share is read further in the next round.
    depth = -(-2 * room // len(lanes)) if room and lanes else 1
    keys = [_key(lane) for lane in lanes]
    for head in list_heads(connection, keys, depth) if lanes else ():
        lanes[head.lane].heads.append(Head(head.id, head.attempt, head.seq))
    ran_out = [len(lane.heads) < depth for lane in lanes]
    lag = _find_copy_lag(rows, swap_seconds)
    plan = plan_pool(lanes, workers, sizes=sizes, grants=grants, swap_seconds=swap_seconds, copy_lag=lag)
    reserved = _reserve(connection, pool, plan)
    # One whose tasks somebody held is not empty.
    missed = {_key(item.lane) for item in plan.assignments}.difference(_key(item.lane) for item in reserved)
    emptied = [
        key for key, lane, out in zip(keys, lanes, ran_out, strict=True) if out and not lane.heads and key not in missed
    ]
    if emptied:
        mark_emptied(connection, emptied)
    _record_places(connection, pool, plan, lanes)
    if plan.yielding != marked:
        set_yielding(connection, plan.yielding, plan.yielding ^ marked)
    changed = bool(reserved or emptied or plan.closed)
    return reserved, changed and any(worker.free > 0 for worker in workers)


def _find_copy_lag(rows: Sequence[Any], swap_seconds: float) -> float | None:
    """Virtual time by which an agent must be behind before another's model makes room for a second copy of its own.

    Twice what one worker gives while a lane may be passed over. In tokens or tasks nobody knows what that is: never.
    """
    if any(row.charge != "seconds" for row in rows):
        return None
    return 2 * swap_seconds * max(float(row.speed) for row in rows)


def _make_room(row: Any) -> WorkerRoom:
    return WorkerRoom(
        id=row.id,
        name=row.name,
        kinds=frozenset(row.kinds),
        slots=row.slots,
        free=max(0, DEPTH * row.slots - row.held),
        held=row.held,
        models={model: row.model_bytes.get(model, 0) for model in row.models},
        in_use=set(row.in_use),
        memory_bytes=row.memory_bytes,
        engine_up=row.engine_up,
        avoids=frozenset(row.avoids),
        allowed_models=None if row.allowed_models is None else frozenset(row.allowed_models),
        allowed_agents=None if row.allowed_agents is None else frozenset(row.allowed_agents),
        unclaimed=row.unclaimed,
        urgent=row.urgent,
    )


def _note_stored(
    connection: Connection, workers: Sequence[WorkerRoom], rows: Sequence[Any], lanes: Sequence[Lane]
) -> None:
    """Say which workers have the files of a model that is waited for, if it is one that they may or may not have."""
    models = {lane.model for lane in lanes}
    wanted = sorted(filter(is_hub_name, models))
    if not wanted:
        return
    stored = list_stored(connection, wanted)
    for worker, row in zip(workers, rows, strict=True):
        worker.stored = stored.get(row.node, frozenset())


def _read_lanes(rows: Sequence[Any]) -> list[Lane]:
    agents: dict[str, Agent] = {}
    lanes = []
    for row in rows:
        agent = agents.get(row.agent_id)
        if agent is None:
            agent = agents[row.agent_id] = Agent(row.agent_id, row.virtual_time, row.weight, row.in_flight)
        _limit(agent, row)
        lanes.append(
            Lane(
                row.type,
                row.model,
                agent,
                row.priority,
                _RANKS[row.priority],
                cost=row.cost,
                measured=row.measured,
                passed_seconds=row.passed_seconds,
            )
        )
    return lanes


def _limit(agent: Agent, row: Any) -> None:
    """Narrow an agent's allowance by what its limits leave it, counting each task by the dearest of late."""
    in_flight = int(row.in_flight_anywhere or 0)
    bounds = [(0, Closing.PAUSED)] if row.paused else []
    if row.max_running is not None:
        bounds.append((row.max_running - in_flight, Closing.MAX_RUNNING))
    for budget, spent, peak in (
        (row.daily_seconds, row.spent_seconds, row.peak_seconds),
        (row.daily_tokens, row.spent_tokens, row.peak_tokens),
    ):
        if budget is not None:
            # Before the first is measured: one at a time.
            left = min((budget - spent) / peak, MANY) - in_flight if peak else (spent < budget) - in_flight
            # The first of a day always: else a peak greater than the budget would never be forgotten.
            first = not spent and not in_flight
            bounds.append((max(int(left), first), Closing.DAILY_BUDGET))
    for allowance, limit in bounds:
        if agent.allowance is None or allowance < agent.allowance:
            agent.allowance, agent.limit = max(0, allowance), limit


def _reserve(connection: Connection, pool: str, plan: Plan) -> list[Assignment]:
    """Reserve what was planned, and charge the agents for what was still ready."""
    if not plan.assignments:
        return []
    planned = [Reservation(item.head.task_id, item.worker.id, item.charge) for item in plan.assignments]
    done = reserve_tasks(connection, planned)
    reserved = [item for item in plan.assignments if item.head.task_id in done]
    for item in plan.assignments:
        if item.head.task_id not in done:
            item.lane.agent.virtual_time -= item.charge / item.lane.agent.weight
    counts = Counter(item.lane.agent.id for item in reserved)
    record_grants(
        connection,
        pool,
        clock=plan.assignments[-1].lane.agent.virtual_time,
        grants=plan.grants,
        served={agent.id: (agent.virtual_time, counts[agent.id]) for agent in plan.served},
    )
    return reserved


def _record_places(connection: Connection, pool: str, plan: Plan, lanes: Sequence[Lane]) -> None:
    """Write down which lanes are closed or passed over, and which are no more because their model has a place."""
    placed = {(item.lane.type, item.lane.model) for item in plan.assignments}
    waited = {(lane.type, lane.model) for lane in lanes if lane.passed_seconds is not None}
    if placed & waited:
        note_places(connection, pool, placed & waited)
    reasons: dict[LaneKey, str | None] = {
        _key(lane): None
        for lane in plan.passed
        if lane.passed_seconds is None and (lane.type, lane.model) not in placed
    }
    reasons |= {_key(lane): reason for lane, reason in plan.closed}
    if reasons:
        mark_lanes(connection, pool, reasons)


def _key(lane: Lane) -> LaneKey:
    return LaneKey(lane.type, lane.model, lane.agent.id, lane.priority)
