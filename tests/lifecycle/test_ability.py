"""Why no worker may take a task: the answer of `explain` is the planner's."""

import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.dispatcher.placement import WorkerRoom
from bitinglip.lifecycle.ability import find_obstacle

NAMES = st.sampled_from(["a", "b", "c"])
SOME = st.frozensets(NAMES)
WORKERS = st.fixed_dictionaries(
    {
        "kinds": SOME,
        "allowed_agents": st.none() | SOME,
        "allowed_models": st.none() | SOME,
        "avoids": SOME,
        "memory_bytes": st.none() | st.integers(0, 3),
    }
)


@given(WORKERS, NAMES, st.just("") | NAMES, NAMES, st.integers(0, 4))
def test_there_is_an_obstacle_exactly_where_the_planner_gives_no_task(
    fields: dict[str, Any], type_: str, model: str, agent: str, size: int
) -> None:
    room = WorkerRoom(id=uuid.uuid4(), name="w", slots=1, free=1, **fields)

    obstacle = find_obstacle(room, type_, model, agent_id=agent, size=size)

    assert (obstacle is None) == room.may_take(type_, model, agent, size)
