"""Queues that turned from empty to non-empty become lanes; their agents return from idle."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from bitinglip.dispatcher.plan import lift
from bitinglip.store.lanes import NEW_PER_ROUND, LaneKey, list_arrivals, list_new_lanes, open_lanes
from bitinglip.store.statement import age_plans


def admit_arrivals(connection: Connection, kinds: Mapping[str, Sequence[str]]) -> bool:
    """Open a lane for every new queue in every pool that serves its type, and those that are to be looked at again.

    Args:
        connection: Under the dispatch lock.
        kinds: Types that each pool serves.

    Returns:
        Whether there may be more new queues than were looked at.
    """
    served = sorted({kind for pool_kinds in kinds.values() for kind in pool_kinds})
    new = list_new_lanes(connection, sorted(kinds), served) if served else []
    for pool, pool_kinds in kinds.items():
        ours = [key for of_pool, key in new if of_pool == pool or (of_pool is None and key.type in pool_kinds)]
        if ours:
            open_lanes(connection, pool, ours, _lift_agents(connection, pool, ours))
    age_plans(connection, 1 + len(new))
    return len(new) >= NEW_PER_ROUND


def _lift_agents(connection: Connection, pool: str, keys: Sequence[LaneKey]) -> dict[str, float]:
    """The virtual times with which the agents of new lanes begin."""
    times = {}
    for row in list_arrivals(connection, pool, sorted({key.agent_id for key in keys})):
        # Where nobody else waits, what is still to be settled of its own is not forgotten.
        clock = row.virtual_time if row.in_flight else row.clock
        active = () if row.least is None else (row.least,)
        times[row.agent_id] = row.virtual_time if row.is_active else lift(row.virtual_time, active, clock)
    return times
