"""A record drawn: service over time and waits by agent, loads by GPU."""

from collections import defaultdict
from itertools import accumulate
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.simulation.record import Record


def draw(record: Record, path: Path) -> None:
    """Write the picture; its kind is the file name's."""
    figure, (service, waits, loads) = plt.subplots(3, 1, figsize=(11, 12), constrained_layout=True)
    _draw_service(record, service)
    _draw_waits(record, waits)
    _draw_loads(record, loads)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_service(record: Record, axes: Axes) -> None:
    by_agent: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for at, agent, cost in record.service:
        by_agent[agent].append((at, cost / record.scenario.weights.get(agent, 1.0)))
    for agent, points in sorted(by_agent.items()):
        axes.step([at for at, _ in points], list(accumulate(cost for _, cost in points)), where="post", label=agent)
    axes.set(title="Service by agent", xlabel="seconds", ylabel="slot seconds / weight")
    if len(by_agent) <= 24:
        axes.legend(fontsize="x-small", ncols=4)


def _draw_waits(record: Record, axes: Axes) -> None:
    by_agent: dict[str, list[float]] = defaultdict(list)
    for _, agent, _, _, wait in record.starts:
        by_agent[agent].append(wait)
    names = sorted(by_agent)
    axes.boxplot([by_agent[name] for name in names], whis=(1, 99), showfliers=False)
    axes.set_xticks(range(1, len(names) + 1), names, rotation=90, fontsize="x-small")
    axes.set(title="Waits by agent: quartiles, 1 to 99 %", ylabel="seconds")


def _draw_loads(record: Record, axes: Axes) -> None:
    gpus = [gpu.name for gpu in record.scenario.gpus]
    by_model: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for at, gpu, model in record.loads:
        by_model[model].append((at, gpus.index(gpu)))
    for model, points in sorted(by_model.items()):
        axes.scatter([at for at, _ in points], [row for _, row in points], s=30, label=model)
    axes.set_yticks(range(len(gpus)), gpus, fontsize="x-small")
    axes.set(title=f"{len(record.loads)} loads", xlabel="seconds", xlim=(0, record.ended_at or 1))
    if by_model and len(by_model) <= 24:
        axes.legend(fontsize="x-small", ncols=6)
