"""Simulate agents and GPUs around the real planner: what a policy does in an hour, in seconds.

    python benchmarks/simulate.py --agents 20 --models 5 --gpus 4 --json
    python benchmarks/simulate.py --greedy 0.8 --burst 10 --failures 0.05 --outages 2 --picture service.png
    python benchmarks/simulate.py --trace recorded.jsonl --gpus 2 --planner fifo --json
    python benchmarks/simulate.py --suite --json

Tasks come at random, by themselves or in bursts; part of them from one greedy agent; models by zipf popularity; GPUs of
unequal speed; runs and workers that fail. A recorded trace is a file of JSON lines: at, agent, model, cost (seconds of
a slot of a GPU of speed 1), priority. `--suite` measures what the planner is held to; see simulation/bounds.py.
"""

import sys
from pathlib import Path

# This folder's queue.py would hide Python's own.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import random

from benchmarks.simulation.cluster import Cluster, Planner
from benchmarks.simulation.rivals import plan_batches, plan_fifo, plan_fifo_greedy
from benchmarks.simulation.suite import run_suite
from benchmarks.simulation.traces import Outage, Scenario, list_gpus, make_poisson, read_trace
from bitinglip.dispatcher.plan import plan_pool

PLANNERS: dict[str, Planner] = {
    "fair": plan_pool,
    "fifo": plan_fifo,
    "fifo-greedy": plan_fifo_greedy,
    "batches": plan_batches,
}


def main() -> None:
    """Simulate and print."""
    parser = make_parser()
    options = parser.parse_args()
    if options.suite:
        report = run_suite(options.seed, traces=options.traces)
    else:
        try:
            scenario = make_scenario(options)
        except (OSError, ValueError) as exc:
            parser.error(str(exc))
        record = Cluster(scenario, PLANNERS[options.planner]).run()
        report = {"planner": options.planner, "seed": options.seed, **record.summarize()}
        if options.picture is not None:
            from benchmarks.simulation.picture import draw

            draw(record, options.picture)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        print(f"{name:28} {value}")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw service, waits and loads")
    parser.add_argument("--suite", action="store_true", help="the numbers that the planner is held to")
    parser.add_argument("--traces", type=_whole, default=1000, help="of the suite's service bound (1000)")
    parser.add_argument("--planner", choices=list(PLANNERS), default="fair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="recorded arrivals in place of random ones")
    parser.add_argument("--agents", type=_whole, default=20)
    parser.add_argument("--models", type=_whole, default=5)
    parser.add_argument("--zipf", type=_not_negative, default=1.0, help="exponent of the models' popularity (1)")
    parser.add_argument("--seconds", type=_not_negative, default=300.0, help="for which tasks come (300)")
    parser.add_argument("--per-second", type=_positive, default=8.0, help="tasks (8)")
    parser.add_argument("--mean-cost", type=_positive, default=1.0, help="seconds of a slot (1)")
    parser.add_argument("--burst", type=_whole, default=1, help="tasks that come at once (1)")
    parser.add_argument("--greedy", type=_part, default=0.0, help="part of the tasks from one agent (0)")
    parser.add_argument("--gpus", type=_whole, default=4)
    parser.add_argument("--slots", type=_whole, default=2, help="of a GPU (2)")
    parser.add_argument("--models-per-gpu", type=_whole, default=1)
    parser.add_argument("--spread", type=_part, default=0.0, help="of the GPUs' speeds around 1 (0)")
    parser.add_argument("--swap-seconds", type=_not_negative, default=10.0)
    parser.add_argument("--failures", type=_part, default=0.0, help="part of the runs that fail (0)")
    parser.add_argument("--outages", type=int, default=0, help="times that a worker is gone for 30 s (0)")
    return parser


def make_scenario(options: argparse.Namespace) -> Scenario:
    """What the command line asks for.

    Raises:
        OSError: If the trace cannot be read.
        ValueError: If a line of it is not an arrival.
    """
    gpus = list_gpus(
        options.gpus, slots=options.slots, models=options.models_per_gpu, spread=options.spread, seed=options.seed
    )
    if options.trace is not None:
        arrivals = read_trace(options.trace)
    else:
        arrivals = make_poisson(
            options.seed,
            agents=options.agents,
            models=options.models,
            seconds=options.seconds,
            per_second=options.per_second,
            mean_cost=options.mean_cost,
            zipf=options.zipf,
            burst=options.burst,
            greedy=options.greedy,
        )
    pick = random.Random(options.seed)
    outages = [Outage(pick.choice(gpus).name, pick.uniform(0, options.seconds), 30.0) for _ in range(options.outages)]
    return Scenario(
        arrivals,
        gpus,
        outages=outages,
        failure_rate=options.failures,
        swap_seconds=options.swap_seconds,
        seed=options.seed,
    )


def _whole(given: str) -> int:
    number = int(given)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{given}: must be at least 1")
    return number


def _positive(given: str) -> float:
    number = float(given)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{given}: must be above 0")
    return number


def _not_negative(given: str) -> float:
    number = float(given)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{given}: must be at least 0")
    return number


def _part(given: str) -> float:
    number = float(given)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{given}: must be at least 0 and below 1")
    return number


if __name__ == "__main__":
    main()
