"""What simulations around the real planner show: service within its bound, no room wasted, few loads, short waits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulation import suite
from benchmarks.simulation.bounds import find_gap, find_least_loads, is_room_wasted
from benchmarks.simulation.cluster import Cluster
from benchmarks.simulation.traces import Arrival, Scenario, list_gpus, make_poisson, read_trace

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "simulate.py"


def test_the_service_gap_never_passes_its_bound_and_no_room_is_wasted() -> None:
    result = suite.measure_fairness(5000, 100)

    assert result["traces_past_the_bound"] == 0
    assert result["rounds_with_wasted_room"] == 0
    assert 0 < result["worst_gap_by_bound"] <= 1


def test_the_gap_of_first_in_first_out_passes_the_bound() -> None:
    scenario = Scenario(
        [Arrival(0.0, "first", "", 1.0)] * 200 + [Arrival(0.0, "second", "", 1.0)] * 200,
        list_gpus(1, slots=2),
        guesses={("first", ""): 1.0, ("second", ""): 1.0},
    )

    assert find_gap(Cluster(scenario, suite.plan_fifo).run())[0] > 10
    assert find_gap(Cluster(scenario).run())[0] <= 1


@pytest.mark.parametrize("own_model", [False, True])
def test_five_models_on_four_gpus_are_loaded_seldom_and_waited_for_shortly(own_model: bool) -> None:
    result = suite._measure_placement(7, slots=1, own_model=own_model, seconds=200)

    assert result["loads_by_least"] <= 1.3
    assert result["extra_wait_by_bound"] <= 1
    assert result["throughput_by_fifo_best"] >= 0.9


def test_a_popular_model_gets_as_many_gpus_as_its_agents_are_due() -> None:
    arrivals = [Arrival(0.0, f"agent-{n}", "rare" if n == 0 else "popular", 0.5) for _ in range(900) for n in range(10)]

    record = Cluster(Scenario(arrivals, list_gpus(2, slots=1), until=300)).run()

    assert record.summarize()["jain"] >= 0.99
    assert len(record.loads) <= 15


def test_a_late_critical_task_starts_with_the_first_slot_that_frees() -> None:
    result = suite.measure_urgent(0, traces=25)

    assert result["started_with_first_slot"] == result["traces"]


def test_weights_give_shares_within_three_percent() -> None:
    assert suite.measure_weights(1)["worst_error"] <= 0.03


def test_every_task_ends_through_failures_of_workers_and_of_tasks() -> None:
    arrivals = make_poisson(3, agents=6, models=4, seconds=60, greedy=0.5, burst=3)
    scenario = Scenario(arrivals, list_gpus(3, models=2, spread=0.4), failure_rate=0.05, seed=3)
    scenario.outages = [suite.Outage("gpu-01", 10, 20), suite.Outage("gpu-02", 25, 5)]
    cluster = Cluster(scenario, watch=is_room_wasted)

    record = cluster.run()

    ended = len(record.service)
    assert len(arrivals) - ended <= record.failures / 3
    # Settled exactly once: nothing stays in flight, and virtual time is service by weight where nobody was lifted.
    assert all(agent.in_flight == 0 for agent in cluster._agents.values())


def test_virtual_time_is_what_was_spent_once_all_is_settled() -> None:
    scenario = suite.make_fair_scenario(11)
    scenario.arrivals = [arrival for arrival in scenario.arrivals if arrival.at == 0]
    scenario.failure_rate = 0.2
    cluster = Cluster(scenario)

    service = cluster.run().sum_service()

    for name, agent in cluster._agents.items():
        assert agent.virtual_time * agent.weight == pytest.approx(service.get(name, 0.0))


def test_the_bound_of_loads_counts_what_cannot_stay_loaded() -> None:
    scenario = Scenario([Arrival(0.0, "a", "m", 1.0)], list_gpus(4), until=260)
    record = Cluster(scenario).run()

    # Away for 10 s, one until a slot frees, two until what was given has ended: 260 / 13 absences, one of them open.
    assert find_least_loads(record, 5) == 4 + 19
    assert find_least_loads(record, 3) == 3


def test_a_simulation_is_repeatable_and_reads_a_recorded_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"at": n / 10, "agent": f"agent-{n % 3}", "model": "m", "cost": 0.5, "priority": "high"} for n in range(30)
    ]
    trace.write_text("\n".join(json.dumps(line) for line in lines))

    outputs = [
        subprocess.run(
            [sys.executable, SCRIPT, "--trace", trace, "--json", "--picture", tmp_path / "p.png", "--failures", "0.1"],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for _ in range(2)
    ]

    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])["tasks"] >= 30
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{",
        '{"at": 0, "agent": "a"}',
        '{"at": 0, "agent": "a", "cost": -1}',
        '{"at": -1, "agent": "a", "cost": 1}',
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, line: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 0, "agent": "a", "cost": 1}\n' + line)

    with pytest.raises(ValueError, match=r"trace\.jsonl:2: "):
        read_trace(trace)
