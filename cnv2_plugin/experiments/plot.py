"""Finished runs as a picture: accuracy over multiply-adds and over latency, the Pareto front marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Optional, Union

from ..checkpoints import atomic_path


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        name: of the run.
        accuracies: of its seeds, in percent.
        mult_adds: multiply-adds for one image.
        latency: least milliseconds of the forms that were measured, or None.
    """

    name: str
    accuracies: Sequence[float]
    mult_adds: int
    latency: Optional[float] = None


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Places of what nothing beats: no other costs at most as much and gains more, or costs less and gains as much.

    Args:
        costs: lower is better.
        gains: higher is better.

    Returns:
        Places in the order of rising cost.
    """
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if not front or gains[i] > gains[front[-1]]:
            front.append(i)
    return front


def plot_runs(points: Sequence[Point], path: Union[str, Path]) -> None:
    """Write the picture: one panel over multiply-adds and, where it was measured, one over latency.

    Args:
        points: runs with at least one seed.
        path: picture to write; its suffix says the format.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError('no run is finished, so there is nothing to plot; train them first.')
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    timed = [point for point in points if point.latency is not None]
    panels = [(points, [p.mult_adds / 1e6 for p in points], 'multiply-adds (M)')]
    if timed:
        panels.append((timed, [p.latency for p in timed], 'latency as exported, fastest form (ms)'))
    colors = dict(zip(dict.fromkeys(map(_family, points)), pyplot.get_cmap('tab10').colors * len(points)))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6.5 * len(panels), 5), squeeze=False, layout='constrained')
    for axis, (shown, costs, label) in zip(axes[0], panels):
        means = [fmean(p.accuracies) for p in shown]
        front = pareto_front(costs, means)
        axis.plot([costs[i] for i in front], [means[i] for i in front], '--', color='gray', label='Pareto front')
        for i, (point, cost, mean) in enumerate(zip(shown, costs, means)):
            spread = stdev(point.accuracies) if len(point.accuracies) > 1 else 0.0
            axis.errorbar(cost, mean, spread, marker='o', capsize=3, color=colors[_family(point)],
                          markersize=9 if i in front else 5)  # fmt: skip
            axis.annotate(point.name, (cost, mean), (5, 4), textcoords='offset points', fontsize=7)
        axis.set_xscale('log')
        axis.margins(x=0.25)
        axis.set_xlabel(label)
        axis.set_ylabel('test accuracy (%), mean and spread over seeds')
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def _family(point: Point) -> str:
    """Name of the network without its size and what was done with it."""
    return point.name.split('_')[0].rpartition('-')[0] or point.name
