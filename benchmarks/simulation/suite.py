"""The numbers that the planner is held to, each from simulations made from one seed."""

import gc
import random
import statistics
import uuid
from collections import deque
from time import process_time
from typing import Any

from benchmarks.simulation.bounds import (
    TOLERANCE,
    find_away_bound,
    find_gap,
    find_least_loads,
    is_room_wasted,
)
from benchmarks.simulation.cluster import Cluster, Planner
from benchmarks.simulation.record import Record
from benchmarks.simulation.rivals import plan_batches, plan_fifo, plan_fifo_greedy
from benchmarks.simulation.traces import (
    PRIORITIES,
    Arrival,
    Gpu,
    Outage,
    Scenario,
    draw_cost,
    list_gpus,
    make_backlog,
    make_poisson,
)
from bitinglip.dispatcher.placement import WorkerRoom
from bitinglip.dispatcher.plan import Agent, Head, Lane, plan_pool


def run_suite(seed: int = 0, *, traces: int = 1000) -> dict[str, Any]:
    """All of them."""
    return {
        "seed": seed,
        "fairness": measure_fairness(seed, traces),
        "placement": measure_placement(seed),
        "urgent": measure_urgent(seed),
        "planner": measure_planner(),
        "weights": measure_weights(seed),
    }


def make_fair_scenario(seed: int, *, cold: bool = False) -> Scenario:
    """Any mixture of agents, costs, weights, speeds and faults, on workers that may all take every task.

    Args:
        seed: Of everything in it.
        cold: Nothing is known of any agent; then nothing fails.
    """
    pick = random.Random(seed)
    speed = pick.choice([0.0, 0.3, 0.5])
    gpus = list_gpus(pick.randint(1, 4), slots=pick.randint(1, 3), spread=speed, seed=seed)
    agents = [f"agent-{n}" for n in range(pick.randint(2, 6))]
    scale = {agent: 10 ** pick.uniform(-1, 0.5) for agent in agents}
    arrivals = [
        Arrival(0.0, agent, "", draw_cost(pick, scale[agent]))
        for agent in agents
        for _ in range(pick.choice([5, 20, 40, 150 // len(agents)]))
    ]
    at = 0.0
    visitor = pick.choice(["visitor", agents[0]])
    while pick.random() < 0.9:
        at += pick.expovariate(0.3)
        arrivals += [Arrival(at, visitor, "", draw_cost(pick, 0.5)) for _ in range(pick.randint(1, 6))]
    scenario = Scenario(sorted(arrivals, key=lambda arrival: arrival.at), gpus, seed=seed)
    names = [*agents, "visitor"]
    scenario.weights = {agent: pick.choice([0.5, 1.0, 1.0, 2.0, 4.0]) for agent in names}
    if not cold:
        scenario.guesses = {(agent, ""): draw_cost(pick, scale.get(agent, 1.0)) for agent in names}
        scenario.failure_rate = pick.choice([0.0, 0.0, 0.1, 0.3])
        if pick.random() < 0.3:
            scenario.outages = [Outage(gpus[0].name, pick.uniform(0, 20), pick.uniform(1, 30))]
    return scenario


def measure_fairness(seed: int, traces: int) -> dict[str, Any]:
    """(a) The service gap by its bound, and whether room was ever left unused."""
    warm = [_measure_fair_trace(seed + n, cold=False) for n in range(traces)]
    cold = [_measure_fair_trace(seed + n, cold=True) for n in range(traces // 4)]
    mixed = [_measure_mixed_trace(seed + n) for n in range(traces // 20)]
    return {
        "traces": len(warm) + len(cold),
        "worst_gap_by_bound": round(max(first for first, _, _ in warm), 4),
        "worst_gap_by_bound_unmeasured": round(max(first for first, _, _ in cold), 4),
        "worst_window_gap_by_bound": round(max(later for _, later, _ in warm), 4),
        "traces_past_the_bound": sum(max(first, later) > 1 + TOLERANCE for first, later, _ in warm + cold),
        "traces_of_many_models": len(mixed),
        "rounds_with_wasted_room": sum(wasted for *_, wasted in warm + cold) + sum(mixed),
    }


def _measure_fair_trace(seed: int, *, cold: bool) -> tuple[float, float, int]:
    record = Cluster(make_fair_scenario(seed, cold=cold), watch=is_room_wasted).run()
    return *find_gap(record, cold=cold), record.wasted


def _measure_mixed_trace(seed: int) -> int:
    """Rounds with wasted room, with more models than a worker holds."""
    pick = random.Random(seed)
    arrivals = make_poisson(
        seed, agents=8, models=6, seconds=40, burst=pick.randint(1, 8), greedy=pick.choice([0, 0.8])
    )
    gpus = list_gpus(3, slots=pick.randint(1, 3), models=pick.randint(1, 3), spread=0.3, seed=seed)
    scenario = Scenario(arrivals, gpus, failure_rate=0.1, outages=[Outage(gpus[0].name, 10, 15)], seed=seed)
    return Cluster(scenario, watch=is_room_wasted).run().wasted


def measure_placement(seed: int) -> dict[str, Any]:
    """(b) 20 agents and 5 models on 4 GPUs that hold one each, all waiting all the time: the worst of eight traces."""
    results = [
        _measure_placement(seed + n, slots=slots, own_model=own_model)
        for n in range(2)
        for slots in (1, 4)
        for own_model in (False, True)
    ]
    return {
        "loads_by_least": max(result["loads_by_least"] for result in results),
        "extra_wait_by_bound": max(result["extra_wait_by_bound"] for result in results),
        "throughput_by_fifo_best": min(result["throughput_by_fifo_best"] for result in results),
        "popular_model": measure_popular(seed),
        "traces": results,
    }


def measure_popular(seed: int) -> dict[str, Any]:
    """Two GPUs that hold one model each; nine agents ask for one model, the tenth for another."""
    arrivals = [Arrival(0.0, f"agent-{n}", "rare" if n == 0 else "popular", 0.5) for _ in range(900) for n in range(10)]
    record = Cluster(Scenario(arrivals, list_gpus(2, slots=1), until=300, seed=seed)).run()
    return {"jain": record.summarize()["jain"], "loads": len(record.loads)}


def _measure_placement(seed: int, *, slots: int, own_model: bool, seconds: float = 300) -> dict[str, Any]:
    def simulate(planner: Planner) -> Record:
        arrivals = make_backlog(seed, each=130 * slots, own_model=own_model)
        return Cluster(Scenario(arrivals, list_gpus(4, slots=slots), until=seconds, seed=seed), planner).run()

    record = simulate(plan_pool)
    rivals = {name: _measure_use(simulate(planner)) for name, planner in RIVALS.items()}
    least = find_least_loads(record, 5)
    wait_bound = find_away_bound(record) + record.scenario.gpus[0].load_seconds
    return {
        "slots": slots,
        "models_by_agent": 1 if own_model else 5,
        "loads": len(record.loads),
        "least_loads": least,
        "loads_by_least": round(len(record.loads) / least, 3),
        "extra_wait_s": round(max(record.passed), 3),
        "extra_wait_bound_s": round(wait_bound, 3),
        "extra_wait_by_bound": round(max(record.passed) / wait_bound, 3),
        "use": round(_measure_use(record), 4),
        **{f"use_{name}": round(use, 4) for name, use in rivals.items()},
        "throughput_by_fifo_best": round(_measure_use(record) / max(rivals.values()), 4),
        "jain": record.summarize()["jain"],
    }


RIVALS: dict[str, Planner] = {"fifo": plan_fifo, "fifo_greedy": plan_fifo_greedy, "batches": plan_batches}


def _measure_use(record: Record) -> float:
    """Part of the slots' time that went into tasks that ended, without loads."""
    gpus = record.scenario.gpus
    seconds = sum(cost for *_, cost in record.service) - sum(gpus[0].load_seconds for _ in record.loads)
    return seconds / (record.ended_at * sum(gpu.slots for gpu in gpus))


def measure_urgent(seed: int, traces: int = 200) -> dict[str, Any]:
    """(c) Whether a late critical task starts at the very end of the first task that ends on a worker for it."""
    delays = [_measure_urgent(seed + n) for n in range(traces)]
    return {
        "traces": traces,
        "started_with_first_slot": sum(delay <= TOLERANCE for delay, _ in delays),
        "wait_max_s": round(max(wait for _, wait in delays), 3),
    }


def _measure_urgent(seed: int) -> tuple[float, float]:
    """Seconds between the first slot that freed and the start, and the whole wait."""
    pick = random.Random(seed)
    at = pick.uniform(5, 20)
    holders = pick.randint(1, 4)
    gpus = [
        Gpu(f"gpu-{n}", slots=pick.randint(1, 4), preloaded=("model-0" if n < holders else "model-1",))
        for n in range(4)
    ]
    arrivals = [
        Arrival(0.0, f"agent-{n % 4}", f"model-{n % 2}", pick.uniform(0.5, 5), pick.choice(PRIORITIES[1:]))
        for n in range(600)
    ]
    arrivals.append(Arrival(at, "late", "model-0", 1.0, "critical"))
    # Without swaps: those who hold its model when all have begun hold it to the end.
    record = Cluster(Scenario(arrivals, gpus, until=60, swap_seconds=1e9, seed=seed)).run()
    start, wait = next((time, wait) for time, _, _, priority, wait in record.starts if priority == "critical")
    held = {gpu.name: gpu.preloaded[0] for gpu in gpus} | {gpu: model for _, gpu, model in record.loads}
    names = {gpu for gpu, model in held.items() if model == "model-0"}
    freed = next(time for time, gpu in record.ends if time >= at and gpu in names)
    return start - freed, wait


def measure_planner() -> dict[str, Any]:
    """(d) A round with 1,000 workers and 10,000 agents, in milliseconds of CPU time: medians of nine."""
    cases = {"100": (100, 1), "1000": (1000, 1), "8000": (1000, 8), "100_bands": (100, 1), "100_equal": (100, 1)}
    result: dict[str, Any] = {}
    for name, (open_workers, free) in cases.items():
        for is_frozen in (False, True):
            times = [
                _time_round(
                    open_workers, free, bands=4 if "bands" in name else 1, equal="equal" in name, frozen=is_frozen
                )
                for _ in range(9)
            ]
            key = f"grants_{name}_ms" + ("_gc_frozen" if is_frozen else "")
            result[key] = round(1000 * statistics.median(times), 2)
    return result


def _time_round(open_workers: int, free: int, *, bands: int, equal: bool, frozen: bool) -> float:
    pick = random.Random(1)
    is_open = set(pick.sample(range(1000), open_workers))
    workers = [
        WorkerRoom(
            uuid.UUID(int=n),
            f"worker-{n}",
            frozenset({"text"}),
            8,
            free if n in is_open else 0,
            held=8,
            models={f"model-{n % 5}": 5},
            memory_bytes=10,
        )
        for n in range(1000)
    ]
    lanes = [
        Lane(
            "text",
            f"model-{n % 5}",
            Agent(f"agent-{n}", 0.0 if equal else pick.random() * 10),
            PRIORITIES[2 if bands == 1 else n % bands],
            2 if bands == 1 else n % bands,
            heads=deque(Head(uuid.UUID(int=4 * n + k), 1, 4 * n + k) for k in range(2)),
        )
        for n in range(10_000)
    ]
    if frozen:
        gc.collect()
        gc.freeze()
    began = process_time()
    plan = plan_pool(lanes, workers, sizes={f"model-{n}": 5 for n in range(5)})
    seconds = process_time() - began
    gc.unfreeze()
    assert len(plan.assignments) == open_workers * free
    return seconds


def measure_weights(seed: int) -> dict[str, Any]:
    """(e) Shares of three agents of weights 1, 2, 4 that wait all the time, with tasks of very different lengths."""
    pick = random.Random(seed)
    weights = {"one": 1.0, "two": 2.0, "four": 4.0}
    costs = {"one": 0.3, "two": 3.0, "four": 1.0}
    arrivals = [Arrival(0.0, name, "", draw_cost(pick, costs[name])) for name in weights for _ in range(8000)]
    record = Cluster(Scenario(arrivals, list_gpus(2, slots=2), weights, until=600, seed=seed)).run()
    service = record.sum_service()
    total = sum(service.values())
    errors = [abs(service[name] / total / (weight / 7) - 1) for name, weight in weights.items()]
    return {
        "shares": {name: round(service[name] / total, 4) for name in weights},
        "worst_error": round(max(errors), 4),
    }
