"""The plan is a pure function: what it promises holds for every queue and every set of workers."""

import uuid
from collections import Counter, deque
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.dispatcher.plan import Head, Lane, Plan, WorkerRoom, plan_pool

BANDS = ("critical", "high", "medium", "low")


def make_head(model: str | None = None) -> Head:
    return Head(uuid.uuid4(), 1, model)


def make_lane(
    agent: str = "a",
    tasks: int | Sequence[str | None] = 1,
    *,
    priority: str = "medium",
    time: float = 0.0,
    weight: float = 1.0,
    kind: str = "echo",
) -> Lane:
    models = [None] * tasks if isinstance(tasks, int) else tasks
    return Lane(kind, agent, priority, BANDS.index(priority), time, weight, deque(make_head(model) for model in models))


def make_room(
    free: int, name: str = "w", *, kinds: tuple[str, ...] = ("echo",), models: Sequence[str] = ()
) -> WorkerRoom:
    return WorkerRoom(uuid.uuid4(), name, frozenset(kinds), frozenset(models), free)


def agents_of(plan: Plan) -> list[str]:
    return [item.lane.agent_id for item in plan.assignments]


lanes = st.lists(
    st.builds(
        make_lane,
        agent=st.sampled_from("abcdef"),
        tasks=st.lists(st.sampled_from([None, "m", "n"]), max_size=6),
        priority=st.sampled_from(BANDS),
        time=st.floats(0, 100),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        kind=st.sampled_from(["echo", "text"]),
    ),
    max_size=12,
    unique_by=lambda lane: (lane.type, lane.agent_id, lane.priority),
)
workers = st.lists(
    st.builds(
        make_room,
        st.integers(0, 6),
        kinds=st.sampled_from([("echo",), ("text",), ("echo", "text")]),
        models=st.lists(st.sampled_from("mn")),
    ),
    max_size=5,
)


@given(lanes, workers)
def test_no_worker_is_given_more_than_its_room_or_another_kind(lanes: list[Lane], workers: list[WorkerRoom]) -> None:
    free = {worker.id: worker.free for worker in workers}

    plan = plan_pool(lanes, workers, clock=10)

    given_to = Counter(item.worker.id for item in plan.assignments)
    assert all(given_to[worker] <= room for worker, room in free.items())
    assert all(item.lane.type in item.worker.kinds for item in plan.assignments)


@given(lanes, workers)
def test_no_task_is_given_twice(lanes: list[Lane], workers: list[WorkerRoom]) -> None:
    plan = plan_pool(lanes, workers, clock=10)

    assert len({item.head.task_id for item in plan.assignments}) == len(plan.assignments)


@given(lanes, workers)
def test_no_task_waits_beside_room_for_it(lanes: list[Lane], workers: list[WorkerRoom]) -> None:
    plan_pool(lanes, workers, clock=10)

    open_kinds = {kind for worker in workers if worker.free for kind in worker.kinds}
    assert not any(lane.heads and lane.type in open_kinds for lane in lanes)


@given(lanes, st.integers(0, 40))
def test_bands_are_strict(lanes: list[Lane], room: int) -> None:
    plan = plan_pool(lanes, [make_room(room, kinds=("echo", "text"))], clock=10)

    ranks = [item.lane.rank for item in plan.assignments]
    assert ranks == sorted(ranks)


@given(lanes, workers)
def test_a_lane_is_served_first_in_first_out(lanes: list[Lane], workers: list[WorkerRoom]) -> None:
    before = {id(lane): [head.task_id for head in lane.heads] for lane in lanes}

    plan = plan_pool(lanes, workers, clock=10)

    for lane in lanes:
        served = [item.head.task_id for item in plan.assignments if item.lane is lane]
        assert served == before[id(lane)][: len(served)]


@given(lanes, workers)
def test_virtual_time_never_runs_backwards(lanes: list[Lane], workers: list[WorkerRoom]) -> None:
    times = {lane.agent_id: lane.virtual_time for lane in lanes}

    plan = plan_pool(lanes, workers, clock=10)

    assert plan.clock >= 10
    assert set(plan.virtual_times) == set(agents_of(plan))
    assert all(time > max(times[agent], 10) for agent, time in plan.virtual_times.items())


@given(st.integers(2, 6), st.integers(1, 30))
def test_equal_agents_take_turns(agents: int, room: int) -> None:
    plan = plan_pool([make_lane(f"agent-{n}", room) for n in range(agents)], [make_room(room)], clock=0)

    served = Counter(agents_of(plan))
    assert max(served.values()) - min(served.get(f"agent-{n}", 0) for n in range(agents)) <= 1
    assert all(first != second for first, second in zip(agents_of(plan), agents_of(plan)[1:], strict=False))


def test_an_agent_of_twice_the_weight_is_served_twice_as_often() -> None:
    plan = plan_pool([make_lane("heavy", 60, weight=2), make_lane("light", 60)], [make_room(30)], clock=0)

    assert Counter(agents_of(plan)) == {"heavy": 20, "light": 10}


def test_an_agent_that_was_idle_does_not_catch_up() -> None:
    plan = plan_pool([make_lane("busy", 20, time=1_000), make_lane("idle", 20, time=3)], [make_room(10)], clock=1_000)

    assert Counter(agents_of(plan)) == {"busy": 5, "idle": 5}


def test_an_agent_that_was_served_more_waits_for_the_others() -> None:
    plan = plan_pool([make_lane("greedy", 20, time=5), make_lane("modest", 20)], [make_room(6)], clock=0)

    assert agents_of(plan)[:5] == ["modest"] * 5
    assert "greedy" in agents_of(plan)


def test_an_agents_queues_share_its_time() -> None:
    lanes = [make_lane("two", 20), make_lane("two", 20, kind="text"), make_lane("one", 20)]

    plan = plan_pool(lanes, [make_room(20, kinds=("echo", "text"))], clock=0)

    assert Counter(agents_of(plan)) == {"two": 10, "one": 10}


def test_the_same_question_has_the_same_answer() -> None:
    def plan() -> list[tuple[str, str]]:
        lanes = [make_lane(agent, 5, time=time) for agent, time in (("b", 1.0), ("a", 1.0), ("c", 0.5))]
        planned = plan_pool(lanes, [make_room(4, "x"), make_room(4, "y")], clock=0)
        return [(item.lane.agent_id, item.worker.name) for item in planned.assignments]

    assert plan() == plan()


def test_a_task_goes_where_its_model_is() -> None:
    plan = plan_pool(
        [make_lane("a", ["m", "n", "m"])],
        [make_room(9, "cold"), make_room(2, "m", models="m"), make_room(1, "n", models="n")],
        clock=0,
    )

    assert [item.worker.name for item in plan.assignments] == ["m", "n", "m"]


def test_a_task_goes_elsewhere_rather_than_wait_for_its_model() -> None:
    plan = plan_pool([make_lane("a", ["m", "m"])], [make_room(1, "warm", models="m"), make_room(1, "cold")], clock=0)

    assert [item.worker.name for item in plan.assignments] == ["warm", "cold"]


def test_tasks_spread_over_equal_workers() -> None:
    plan = plan_pool([make_lane("a", 8)], [make_room(8, "x"), make_room(8, "y")], clock=0)

    assert Counter(item.worker.name for item in plan.assignments) == {"x": 4, "y": 4}
