"""The plan is a pure function: what it promises holds for every queue and every set of workers."""

import copy
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.dispatcher.placement import WorkerRoom
from bitinglip.dispatcher.plan import Closing, Lane, Plan, lift, plan_pool
from tests.dispatcher.fleet import BANDS, SIZES, agents_of, make_agent, make_lane, make_worker, places_of


@st.composite
def lane_lists(draw: st.DrawFn, *, bands: tuple[str, ...] = BANDS, plain: bool = False) -> list[Lane]:
    """Lanes of a few agents; `plain`: every task is measured and allowed, and needs no model."""
    agents = {
        name: make_agent(
            name,
            draw(st.floats(0, 20)),
            weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
            in_flight=draw(st.integers(0, 3)),
            allowance=None if plain else draw(st.sampled_from([None, None, 0, 2])),
        )
        for name in "abcdef"
    }
    keys = st.tuples(
        st.sampled_from(sorted(agents)),
        st.sampled_from(["echo", "text"]),
        st.just("") if plain else st.sampled_from(["", "m", "n", "o"]),
        st.sampled_from(bands),
    )
    return [
        make_lane(
            agents[agent],
            draw(st.integers(0, 5)),
            kind=kind,
            model=model,
            priority=band,
            cost=draw(st.sampled_from([0.5, 1.0, 4.0])),
            measured=plain or draw(st.booleans()),
            passed=draw(st.sampled_from([None, 1.0, 20.0])),
        )
        for agent, kind, model, band in draw(st.lists(keys, max_size=14, unique=True))
    ]


@st.composite
def worker_lists(draw: st.DrawFn) -> list[WorkerRoom]:
    return [
        make_worker(
            free,
            f"w{number}",
            slots=2,
            held=4 - free,
            kinds=draw(st.sampled_from([("echo",), ("text",), ("echo", "text")])),
            models=draw(st.sets(st.sampled_from("mno"), max_size=2)),
            in_use=draw(st.sets(st.sampled_from("mno"), max_size=1)) if free < 4 else (),
            memory=draw(st.sampled_from([None, 1, 2, 2])),
            avoids=draw(st.sets(st.sampled_from("mno"), max_size=1)),
            allowed_models=draw(st.sampled_from([None, None, "mn"])),
            allowed_agents=draw(st.sampled_from([None, None, "abc"])),
        )
        for number, free in enumerate(draw(st.lists(st.integers(0, 4), max_size=5)))
    ]


def plan_with_sizes(lanes: list[Lane], workers: list[WorkerRoom], grants: int = 0) -> Plan:
    return plan_pool(lanes, workers, sizes=SIZES, grants=grants)


@given(lane_lists(), worker_lists())
def test_no_worker_is_given_more_than_its_room_or_what_it_may_not_take(
    lanes: list[Lane], workers: list[WorkerRoom]
) -> None:
    room = {worker.id: worker.free for worker in workers}

    plan = plan_with_sizes(lanes, workers)

    given_to = Counter(item.worker.id for item in plan.assignments)
    assert all(given_to[worker] <= free for worker, free in room.items())
    for item in plan.assignments:
        assert item.worker.may_take(item.lane.type, item.lane.model, item.lane.agent.id, 1)


@given(lane_lists(), worker_lists(), st.integers(0, 20))
def test_a_lane_is_served_first_in_first_out_and_no_task_twice(
    lanes: list[Lane], workers: list[WorkerRoom], grants: int
) -> None:
    before = {id(lane): [head.task_id for head in lane.heads] for lane in lanes}

    plan = plan_with_sizes(lanes, workers, grants)

    for lane in lanes:
        served = [item.head.task_id for item in plan.assignments if item.lane is lane]
        assert served + [head.task_id for head in lane.heads] == before[id(lane)]
    assert plan.grants == grants + len(plan.assignments)


@given(lane_lists(), worker_lists())
def test_no_task_waits_beside_a_worker_with_room_that_it_fits(lanes: list[Lane], workers: list[WorkerRoom]) -> None:
    plan_with_sizes(lanes, workers)

    is_idle = any(worker.free > 0 and worker.held < worker.slots for worker in workers)
    for lane in lanes:
        # An unmeasured agent waits for its first task to end, unless a slot were empty.
        if lane.heads and lane.agent.allowance != 0 and (lane.measured or is_idle):
            assert not [worker.name for worker in workers if fits_at_once(worker, lane)]


def fits_at_once(worker: WorkerRoom, lane: Lane) -> bool:
    if worker.free == 0 or not worker.may_take(lane.type, lane.model, lane.agent.id, 1):
        return False
    may_stay = worker.memory_bytes is None or len(worker.in_use | {lane.model}) <= worker.memory_bytes
    return not lane.model or not worker.held or (lane.model in worker.models and may_stay)


@given(lane_lists(plain=True), worker_lists(), st.integers(0, 20))
def test_within_a_band_nobody_is_served_before_an_agent_with_less_virtual_time(
    lanes: list[Lane], workers: list[WorkerRoom], grants: int
) -> None:
    times = {lane.agent.id: lane.agent.virtual_time for lane in lanes}
    waiting = {id(lane): len(lane.heads) for lane in lanes}
    room = {worker.id: worker.free for worker in workers}

    plan = plan_with_sizes(lanes, workers, grants)

    for number, item in enumerate(plan.assignments, start=grants + 1):
        others = [
            lane
            for lane in lanes
            if lane.rank <= item.lane.rank
            and waiting[id(lane)]
            and times[lane.agent.id] < times[item.lane.agent.id]
            and any(room[w.id] and w.may_take(lane.type, "", lane.agent.id, 0) for w in workers)
        ]
        assert number % 10 == 0 or not [lane for lane in others if lane.rank == item.lane.rank]
        times[item.lane.agent.id] += item.lane.cost / item.lane.agent.weight
        waiting[id(item.lane)] -= 1
        room[item.worker.id] -= 1
    assert times == {lane.agent.id: lane.agent.virtual_time for lane in lanes}


@given(lane_lists(bands=("high",)), worker_lists(), st.integers(0, 20))
def test_the_same_question_has_the_same_answer(lanes: list[Lane], workers: list[WorkerRoom], grants: int) -> None:
    again = copy.deepcopy((lanes, workers))

    first, second = plan_with_sizes(lanes, workers, grants), plan_with_sizes(*again, grants)

    def read(plan: Plan) -> object:
        return (
            [(item.head, item.worker.id, item.charge, item.placement) for item in plan.assignments],
            [(lane.agent.id, lane.type, lane.model) for lane in plan.passed],
            [(lane.agent.id, lane.type, lane.model, reason) for lane, reason in plan.closed],
            plan.yielding,
        )

    assert read(first) == read(second)


def test_the_least_virtual_time_is_first_within_a_band_and_age_among_equals() -> None:
    lanes = [make_lane(make_agent(name, time)) for name, time in (("c", 5), ("b", 1), ("a", 5), ("d", 0))]

    assert agents_of(plan_pool(lanes, [make_worker(4)])) == ["d", "b", "c", "a"]


def test_many_agents_are_served_in_the_order_of_their_virtual_times() -> None:
    # More than a round first looks at, and most of those first looked at have no place.
    lanes = [
        make_lane(make_agent(f"{number:04}", number), kind="text" if number < 900 else "echo") for number in range(1000)
    ]

    plan = plan_pool(list(reversed(lanes)), [make_worker(3)])

    assert agents_of(plan) == ["0900", "0901", "0902"]


@given(st.integers(2, 6), st.integers(1, 30))
def test_equal_agents_take_turns(agents: int, room: int) -> None:
    plan = plan_pool([make_lane(f"agent-{n}", room) for n in range(agents)], [make_worker(room)])

    served = Counter(agents_of(plan))
    assert max(served.values()) - min(served.get(f"agent-{n}", 0) for n in range(agents)) <= 1
    assert all(first != second for first, second in pairwise(agents_of(plan)))


def test_bands_are_strict() -> None:
    lanes = [make_lane(make_agent(band, 10 - rank), 3, priority=band) for rank, band in enumerate(BANDS)]

    assert agents_of(plan_pool(lanes, [make_worker(8)])) == ["critical"] * 3 + ["high"] * 3 + ["medium"] * 2


def test_an_agent_has_one_virtual_time_in_all_its_bands_types_and_models() -> None:
    two, one = make_agent("two"), make_agent("one")
    lanes = [
        make_lane(two, 20, priority="high"),
        make_lane(two, 20),
        make_lane(two, 20, kind="text"),
        make_lane(one, 20),
    ]

    plan = plan_pool(lanes, [make_worker(5, kinds=["echo"]), make_worker(3, kinds=["text"])], grants=1)

    # Five in the band above count for the next one.
    assert two.virtual_time == 8
    plan = plan_pool(lanes[1:], [make_worker(8, kinds=["echo", "text"])], grants=1)
    assert Counter(agents_of(plan)) == {"one": 8}


def test_weights_divide_the_charge() -> None:
    heavy, light = make_agent("heavy", weight=2), make_agent("light")

    plan = plan_pool([make_lane(heavy, 60), make_lane(light, 60)], [make_worker(30)])

    assert Counter(agents_of(plan)) == {"heavy": 20, "light": 10}
    assert heavy.virtual_time == light.virtual_time == 10


def test_an_agent_is_charged_what_its_tasks_are_expected_to_cost() -> None:
    long, short = make_agent("long"), make_agent("short")

    plan = plan_pool([make_lane(long, 60, cost=4), make_lane(short, 60)], [make_worker(20)])

    assert Counter(agents_of(plan)) == {"long": 4, "short": 16}
    assert {(item.lane.agent.id, item.charge) for item in plan.assignments} == {("long", 4), ("short", 1)}
    assert (long.virtual_time, long.in_flight, short.virtual_time, short.in_flight) == (16, 4, 16, 16)


def test_an_agent_without_a_measured_task_is_held_at_its_part_while_others_wait() -> None:
    new, known = make_agent("new"), make_agent("known", 100)

    plan = plan_pool([make_lane(new, 20, measured=False), make_lane(known, 20)], [make_worker(8, slots=8)])

    assert Counter(agents_of(plan)) == {"new": 4, "known": 4}


def test_an_agent_without_a_measured_task_has_every_slot_that_nobody_else_wants() -> None:
    new, known = make_agent("new"), make_agent("known", 100)

    plan = plan_pool([make_lane(new, 20, measured=False), make_lane(known, 2)], [make_worker(8, slots=8)])

    assert Counter(agents_of(plan)) == {"new": 6, "known": 2}


def test_an_urgent_agent_without_a_measured_task_is_not_held_back_for_a_lower_band() -> None:
    lanes = [make_lane("new", 4, measured=False, priority="critical"), make_lane("known", 4, priority="low")]

    assert agents_of(plan_pool(lanes, [make_worker(4)])) == ["new"] * 4


@pytest.mark.parametrize(
    ("before", "active", "clock", "after"),
    [(3, [50, 40], 60, 40), (70, [50, 40], 60, 70), (3, [], 60, 60), (70, [], 60, 70)],
)
def test_an_agent_that_returns_starts_where_the_least_active_one_is(
    before: float, active: list[float], clock: float, after: float
) -> None:
    assert lift(before, active, clock) == after


def test_every_tenth_grant_goes_to_the_oldest_task_of_a_lower_band() -> None:
    lanes = [
        make_lane("low", priority="low", seqs=[2]),
        make_lane("medium", 2, seqs=[3, 4]),
        make_lane("high", 60, priority="high"),
        make_lane("lowest", priority="low", seqs=[1]),
    ]

    plan = plan_pool(lanes, [make_worker(45)], grants=5)

    elders = {5 + place: agent for place, agent in enumerate(agents_of(plan), start=1) if agent != "high"}
    assert elders == {10: "lowest", 20: "low", 30: "medium", 40: "medium"}
    assert plan.grants == 50


def test_an_elder_is_of_a_lower_band_than_the_one_that_is_served() -> None:
    lanes = [
        make_lane("high", 12, priority="high", seqs=range(100, 112)),
        make_lane("medium", 20, seqs=range(1, 21)),
        make_lane("low", priority="low", seqs=[50]),
    ]

    served = agents_of(plan_pool(lanes, [make_worker(25)]))

    assert (served[9], served[19]) == ("medium", "low")


def test_an_elder_without_a_place_leaves_its_grant_to_the_next() -> None:
    lanes = [
        make_lane("stuck", priority="low", kind="text"),
        make_lane("old", priority="low"),
        make_lane("high", 20, priority="high"),
    ]

    assert agents_of(plan_pool(lanes, [make_worker(10)]))[9] == "old"


def test_an_elder_that_is_passed_over_gets_no_idle_worker_before_a_higher_band() -> None:
    lanes = [make_lane("low", model="m", priority="low"), make_lane("high", 5, priority="high", kind="text")]
    workers = [
        make_worker(2, "idle", slots=2, kinds=["echo", "text"], models="n", memory=1),
        make_worker(1, "busy", kinds=["text"]),
    ]

    plan = plan_pool(lanes, workers, sizes=SIZES, grants=9)

    assert agents_of(plan) == ["high"] * 3


@pytest.mark.parametrize("limit", [Closing.MAX_RUNNING, Closing.DAILY_BUDGET, Closing.PAUSED])
def test_an_agent_without_allowance_is_closed_with_the_reason(limit: Closing) -> None:
    limited = make_agent("limited", allowance=2 if limit is not Closing.PAUSED else 0, limit=limit)
    lanes = [make_lane(limited, 5), make_lane(limited, 5, priority="low"), make_lane(make_agent("free", 90), 9)]

    plan = plan_pool(lanes, [make_worker(9)])

    allowed = 0 if limit is Closing.PAUSED else 2
    assert Counter(agents_of(plan)) == Counter({"free": 9 - allowed, "limited": allowed})
    assert (lanes[0], limit) in plan.closed


def test_a_lane_that_no_worker_may_ever_take_is_closed() -> None:
    lanes = [
        make_lane("a", kind="text"),
        make_lane("a", model="big"),
        make_lane("a", model="bad"),
        make_lane("b"),
        make_lane("a", model="m"),
    ]
    worker = make_worker(9, memory=1, avoids=["bad"], allowed_agents="a")

    plan = plan_pool(lanes, [worker], sizes={"big": 2, "m": 1, "bad": 1})

    assert plan.closed == [(lane, Closing.NO_WORKER) for lane in lanes[:4]]


def test_a_lane_that_only_busy_workers_may_take_is_not_closed() -> None:
    plan = plan_pool([make_lane("a", kind="text")], [make_worker(0, kinds=["text"]), make_worker(1)])

    assert not plan.closed


def test_workers_give_way_to_an_urgent_task_that_waits_for_a_slot() -> None:
    urgent = make_lane("late", priority="critical")
    workers = [
        make_worker(0, "able", unclaimed=2),
        make_worker(0, "other kind", kinds=["text"], unclaimed=2),
        make_worker(0, "nothing to give", unclaimed=1, urgent=1),
    ]

    plan = plan_pool([urgent, make_lane("b", 9)], workers)

    assert plan.yielding == {workers[0].id}


def test_the_holders_of_a_model_give_way_while_others_have_room() -> None:
    urgent = make_lane("late", priority="critical", model="m")
    holder = make_worker(0, "holder", slots=1, held=2, models="m", in_use="m", memory=1, unclaimed=1)
    other = make_worker(1, "other", slots=1, held=1, models="n", in_use="n", memory=1)

    plan = plan_pool([urgent], [holder, other], sizes=SIZES)

    assert plan.yielding == {holder.id}


def test_a_worker_gives_way_until_its_urgent_task_has_begun() -> None:
    behind = make_worker(0, slots=1, held=3, unclaimed=2, urgent=1)
    with_slots_for_all = make_worker(0, slots=2, held=2, unclaimed=2, urgent=1)

    assert plan_pool([], [behind, with_slots_for_all]).yielding == {behind.id}


@pytest.mark.parametrize("priority", ["high", "medium", "low"])
def test_nobody_gives_way_to_a_task_that_is_not_urgent(priority: str) -> None:
    assert not plan_pool([make_lane("a", priority=priority)], [make_worker(0, unclaimed=2)]).yielding


def test_nobody_gives_way_to_an_agent_at_its_limit() -> None:
    lane = make_lane(make_agent("spent", allowance=0), priority="critical")

    assert not plan_pool([lane], [make_worker(0, unclaimed=2)]).yielding


def test_the_idle_worker_goes_to_the_higher_band() -> None:
    lanes = [make_lane("high", model="m", priority="high"), make_lane("low", model="n", priority="low")]

    plan = plan_pool(lanes, [make_worker(1, "w", models="n", memory=1)], sizes=SIZES)

    assert places_of(plan) == [("m", "w")]


def test_guesses_fill_the_slots_by_weight() -> None:
    lanes = [
        make_lane(make_agent(name, weight=weight), 8, measured=False) for name, weight in (("light", 1), ("heavy", 3))
    ]
    plan = plan_pool(lanes, [make_worker(8, slots=4)])

    assert Counter(agents_of(plan)) == {"light": 1, "heavy": 3}
