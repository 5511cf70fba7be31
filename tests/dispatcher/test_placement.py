"""Models stay where they are, unless a task has waited too long for its own."""

import pytest

from bitinglip.dispatcher.placement import Placement, WorkerRoom
from bitinglip.dispatcher.plan import Closing, Lane, plan_pool
from tests.dispatcher.fleet import SIZES, agents_of, make_agent, make_lane, make_worker, places_of


def test_a_task_goes_where_its_model_is() -> None:
    workers = [make_worker(9, "cold"), make_worker(2, "warm-m", models="m"), make_worker(1, "warm-n", models="n")]

    plan = plan_pool([make_lane("a", 2, model="m"), make_lane("b", model="n")], workers, sizes=SIZES)

    assert sorted(places_of(plan)) == [("m", "warm-m"), ("m", "warm-m"), ("n", "warm-n")]
    assert {item.placement for item in plan.assignments} == {Placement.HELD}


def test_an_engine_that_is_up_and_has_loaded_the_model_is_first() -> None:
    workers = [
        make_worker(9, "down", models="m", up=False),
        make_worker(8, "loading", in_use="m"),
        make_worker(1, "loaded", models="m"),
    ]

    plan = plan_pool([make_lane("a", 10, model="m")], workers, sizes=SIZES)

    assert [worker for _, worker in places_of(plan)] == ["loaded"] + ["loading"] * 8 + ["down"]


def test_tasks_spread_over_equal_workers() -> None:
    plan = plan_pool([make_lane("a", 8)], [make_worker(4, "x"), make_worker(8, "y")])

    assert [worker for _, worker in places_of(plan)].count("y") == 6


def test_tasks_of_one_model_come_together() -> None:
    lanes = [make_lane(name, 2, model=model) for name, model in zip("abcdef", "mnmnmn", strict=True)]
    workers = [make_worker(6, name, slots=3, memory=1) for name in ("x", "y")]

    plan = plan_pool(lanes, workers, sizes=SIZES)

    assert len(set(places_of(plan))) == 2
    assert len(plan.assignments) == 12


def test_models_that_fit_together_stay_together() -> None:
    worker = make_worker(4, models="m", memory=2)

    plan = plan_pool([make_lane("a", 2, model="m"), make_lane("b", 2, model="n")], [worker], sizes=SIZES)

    assert [item.placement for item in plan.assignments] == [
        Placement.HELD,
        Placement.FITS,
        Placement.HELD,
        Placement.HELD,
    ]


def test_a_model_goes_to_the_worker_where_it_fits_rather_than_to_one_that_must_change() -> None:
    workers = [make_worker(9, "full", models="m", memory=1), make_worker(1, "roomy", held=3, slots=4, memory=2)]

    plan = plan_pool([make_lane("a", model="n")], workers, sizes=SIZES)

    assert [(item.worker.name, item.placement) for item in plan.assignments] == [("roomy", Placement.FITS)]


def test_a_measured_size_goes_before_an_estimate() -> None:
    worker = make_worker(4, memory=10)
    worker.models["m"] = 8
    lane = make_lane("a", model="n")
    busy = make_lane("b", model="m")

    plan = plan_pool([busy, lane], [worker], sizes={"m": 1, "n": 3})

    assert places_of(plan) == [("m", "w")]
    assert plan.passed == [lane]


def test_an_idle_worker_lets_a_model_go_at_once() -> None:
    plan = plan_pool([make_lane("a", model="n")], [make_worker(2, models="m", memory=1)], sizes=SIZES)

    assert [item.placement for item in plan.assignments] == [Placement.IDLE]
    assert not plan.passed


def test_an_idle_worker_keeps_its_model_while_there_are_tasks_for_it() -> None:
    lanes = [make_lane(make_agent("other", 0), model="n"), make_lane(make_agent("same", 50), 9, model="m")]

    plan = plan_pool(lanes, [make_worker(2, slots=1, models="m", memory=1)], sizes=SIZES)

    assert agents_of(plan) == ["same", "same"]
    assert plan.passed == [lanes[0]]


def test_a_busy_worker_keeps_its_model_until_the_bound_has_passed() -> None:
    def plan(passed: float | None) -> list[Placement]:
        worker = make_worker(1, slots=1, held=1, models="m", in_use="m", memory=1)
        lane = make_lane("a", model="n", passed=passed)
        planned = plan_pool([lane], [worker], sizes=SIZES, swap_seconds=10)
        assert planned.passed == ([] if planned.assignments else [lane])
        return [item.placement for item in planned.assignments]

    assert plan(None) == []
    assert plan(9.9) == []
    assert plan(10) == [Placement.OVERDUE]


def test_whoever_of_a_models_agents_has_the_turn_may_swap_when_one_is_overdue() -> None:
    worker = make_worker(1, slots=1, held=1, models="m", in_use="m", memory=1)
    lanes = [make_lane(make_agent("first", 1), model="n"), make_lane(make_agent("later", 2), model="n", passed=10)]

    assert agents_of(plan_pool(lanes, [worker], sizes=SIZES)) == ["first"]


def test_a_lane_is_passed_over_only_while_no_worker_holds_its_model() -> None:
    holder = make_worker(0, "holder", slots=1, held=2, models="m", in_use="m", memory=1)
    other = make_worker(1, "other", slots=1, held=1, models="n", in_use="n", memory=1)

    plan = plan_pool([make_lane("a", model="m", passed=99)], [holder, other], sizes=SIZES)

    assert not plan.assignments
    assert not plan.passed


def test_a_worker_that_must_change_takes_no_more_of_the_old_model() -> None:
    changing = make_worker(2, slots=2, held=2, models="m", in_use="mn", memory=1)
    lanes = [make_lane(make_agent("old", 0), model="m"), make_lane(make_agent("new", 9), 2, model="n")]

    plan = plan_pool(lanes, [changing], sizes=SIZES)

    assert agents_of(plan) == ["new", "new"]
    # Nobody holds the old model any more: its wait begins.
    assert plan.passed == [lanes[0]]


def test_a_worker_that_changes_is_not_changed_again() -> None:
    changing = make_worker(2, slots=2, held=2, models="m", in_use="mn", memory=1)

    assert not plan_pool([make_lane("a", model="o", passed=99)], [changing], sizes=SIZES).assignments


def test_a_swap_counts_at_once_for_the_tasks_that_follow() -> None:
    worker = make_worker(3, slots=3, held=1, models="m", in_use="m", memory=1)
    lanes = [make_lane(make_agent("n"), model="n", passed=99), make_lane(make_agent("m", 5), 9, model="m")]

    assert agents_of(plan_pool(lanes, [worker], sizes=SIZES)) == ["n"]


@pytest.mark.parametrize("passed", [None, 99])
def test_two_workers_never_load_the_same_model_for_one_task(passed: float | None) -> None:
    loading = make_worker(1, "loading", slots=1, held=1, in_use="m", memory=1)
    others = [
        make_worker(1, f"other-{n}", slots=1, held=1, models="n", in_use="n", memory=memory)
        for n, memory in ((1, 1), (2, 2))
    ]

    plan = plan_pool([make_lane("a", 3, model="m", passed=passed)], [loading, *others], sizes=SIZES)

    assert places_of(plan) == [("m", "loading")]


def test_a_second_copy_is_loaded_where_a_slot_would_else_be_empty() -> None:
    holder = make_worker(0, "holder", slots=1, held=2, models="m", in_use="m", memory=1)

    plan = plan_pool([make_lane("a", 2, model="m")], [holder, make_worker(2, "empty", slots=1, memory=1)], sizes=SIZES)

    assert [(item.worker.name, item.placement) for item in plan.assignments] == [
        ("empty", Placement.FITS),
        ("empty", Placement.HELD),
    ]


def test_a_model_that_nobody_holds_is_loaded_before_a_second_copy() -> None:
    holder = make_worker(0, "holder", slots=1, held=2, models="m", in_use="m", memory=1)
    lanes = [make_lane(make_agent("copy", 0), model="m"), make_lane(make_agent("first", 9), model="n")]

    plan = plan_pool(lanes, [holder, make_worker(2, "empty", slots=1, memory=1)], sizes=SIZES)

    assert places_of(plan) == [("n", "empty")]


def make_hot_model(*, lag: float, other_priority: str = "medium", free: int = 1) -> tuple[list[Lane], list[WorkerRoom]]:
    """An agent whose model is held by a worker without room, and one that is so far ahead of it on another worker."""
    workers = [
        make_worker(0, "full", slots=1, held=2, models="m", in_use="m", memory=1),
        make_worker(free, "other", slots=1, held=1, models="n", in_use="n", memory=1),
    ]
    ahead = make_lane(make_agent("ahead", 5 + lag), 3, model="n", priority=other_priority)
    return [make_lane(make_agent("behind", 5), 3, model="m"), ahead], workers


def test_an_agent_that_is_far_behind_gets_a_second_copy_of_its_model() -> None:
    lanes, workers = make_hot_model(lag=10)

    plan = plan_pool(lanes, workers, sizes=SIZES, copy_lag=10)

    assert [(item.lane.agent.id, item.placement) for item in plan.assignments] == [("behind", Placement.BEHIND)]


@pytest.mark.parametrize(("lag", "copy_lag"), [(9.9, 10), (1e9, None)])
def test_an_agent_that_is_little_behind_waits_for_those_that_hold_its_model(lag: float, copy_lag: float | None) -> None:
    lanes, workers = make_hot_model(lag=lag)

    assert agents_of(plan_pool(lanes, workers, sizes=SIZES, copy_lag=copy_lag)) == ["ahead"]


def test_no_further_copy_is_loaded_while_one_is_on_its_way() -> None:
    lanes, workers = make_hot_model(lag=99)
    loading = make_worker(0, "loading", slots=1, held=2, in_use="m", memory=1)

    assert agents_of(plan_pool(lanes, [*workers, loading], sizes=SIZES, copy_lag=10)) == ["ahead"]


def test_an_agent_that_is_behind_leaves_elders_their_grant() -> None:
    lanes, workers = make_hot_model(lag=99, other_priority="low")
    lanes.append(make_lane(make_agent("between", 6), 2, kind="text"))
    workers.append(make_worker(2, "text", kinds=["text"]))

    plan = plan_pool(lanes, workers, sizes=SIZES, grants=8, copy_lag=10)

    assert agents_of(plan) == ["between", "ahead", "between"]


def test_an_elder_without_a_place_does_not_stand_for_the_one_that_is_behind() -> None:
    lanes, workers = make_hot_model(lag=99)
    lanes.append(make_lane("elder", model="m", priority="low", seqs=[0]))

    assert agents_of(plan_pool(lanes, workers, sizes=SIZES, grants=9, copy_lag=10)) == ["behind"]


def test_a_model_that_leaves_is_not_called_back_for_an_agent_that_is_behind() -> None:
    lanes, workers = make_hot_model(lag=99)
    workers[1] = make_worker(1, "other", slots=1, held=1, models="m", in_use="n", memory=1)

    assert agents_of(plan_pool(lanes, workers, sizes=SIZES, copy_lag=10)) == ["ahead"]


def test_an_agent_that_is_behind_and_at_its_limit_gets_no_copy() -> None:
    lanes, workers = make_hot_model(lag=99)
    lanes[0].agent.allowance = 1
    lanes.append(make_lane(lanes[0].agent, kind="text"))
    workers.append(make_worker(1, "text", kinds=["text"]))

    plan = plan_pool(lanes, workers, sizes=SIZES, copy_lag=10)

    assert [(item.lane.agent.id, item.worker.name) for item in plan.assignments] == [
        ("behind", "text"),
        ("ahead", "other"),
    ]


def test_a_worker_that_changes_is_not_changed_again_for_an_agent_that_is_behind() -> None:
    lanes, workers = make_hot_model(lag=99)
    workers[1] = make_worker(1, "other", slots=1, held=1, models="o", in_use="on", memory=1)

    assert agents_of(plan_pool(lanes, workers, sizes=SIZES, copy_lag=10)) == ["ahead"]


def test_a_copy_counts_at_once_for_all_who_were_refused() -> None:
    lanes, workers = make_hot_model(lag=99, free=2)
    lanes.append(make_lane(make_agent("high", 500), model="m", priority="high"))

    assert agents_of(plan_pool(lanes, workers, sizes=SIZES, copy_lag=10)) == ["behind", "behind"]


def test_a_holder_that_may_not_take_the_task_keeps_no_other_from_loading_its_model() -> None:
    closed = make_worker(1, "closed", models="m", allowed_agents="x", memory=1)
    busy = make_worker(1, "busy", slots=1, held=1, models="n", in_use="n", memory=1)

    plan = plan_pool([make_lane("y", model="m", passed=99)], [closed, busy], sizes=SIZES)

    assert [(item.worker.name, item.placement) for item in plan.assignments] == [("busy", Placement.OVERDUE)]


def test_a_worker_where_the_model_failed_to_load_is_avoided() -> None:
    workers = [make_worker(9, "failed", avoids="m"), make_worker(1, "good", held=3, slots=4)]

    plan = plan_pool([make_lane("a", 3, model="m")], workers, sizes=SIZES)

    assert places_of(plan) == [("m", "good")]
    assert not plan.closed


def test_a_model_larger_than_every_worker_has_no_place() -> None:
    lane = make_lane("a", model="m")

    assert plan_pool([lane], [make_worker(memory=1)], sizes={"m": 2}).closed == [(lane, Closing.NO_WORKER)]


def test_a_model_of_unknown_size_counts_as_fitting() -> None:
    plan = plan_pool([make_lane("a", model="unknown")], [make_worker(models="m", memory=1)], sizes=SIZES)

    assert [item.placement for item in plan.assignments] == [Placement.FITS]


def test_agents_that_no_worker_names_are_alike() -> None:
    workers = [make_worker(1, "named", allowed_agents=["vip"]), make_worker(1, "all")]

    plan = plan_pool([make_lane(make_agent("b", 0), 2), make_lane(make_agent("vip", 9), 2)], workers)

    assert [(item.lane.agent.id, item.worker.name) for item in plan.assignments] == [("b", "all"), ("vip", "named")]


def test_of_workers_with_room_one_whose_node_has_the_files_is_first() -> None:
    workers = [make_worker(9, "far", memory=1), make_worker(1, "near", memory=1, up=False, stored="m")]

    plan = plan_pool([make_lane("a", 2, model="m")], workers, sizes=SIZES)

    assert places_of(plan)[0] == ("m", "near")
    assert plan.assignments[0].placement is Placement.FITS


def test_a_worker_that_holds_the_model_is_before_one_whose_node_has_its_files() -> None:
    workers = [make_worker(1, "near", memory=1, stored="m"), make_worker(1, "holder", models="m", memory=1)]

    plan = plan_pool([make_lane("a", model="m")], workers, sizes=SIZES)

    assert places_of(plan) == [("m", "holder")]


@pytest.mark.parametrize("held", [0, 1])
def test_where_a_model_must_leave_it_is_near_the_files_of_the_one_that_comes(held: int) -> None:
    workers = [
        make_worker(1, name, models="n", memory=1, slots=2, held=held, in_use="n" if held else "", stored=stored)
        for name, stored in (("far", ""), ("near", "m"))
    ]

    plan = plan_pool([make_lane("a", model="m", passed=99)], workers, sizes=SIZES)

    assert places_of(plan) == [("m", "near")]
    assert plan.assignments[0].placement is (Placement.OVERDUE if held else Placement.IDLE)
