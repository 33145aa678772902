"""Finished runs as a picture: accuracy over multiply-adds and over latency, the Pareto front marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Optional, Union

from cnv2_plugin.checkpoints import atomic_path

MARKERS = 'osD^vPX<>*'


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        name: of the run.
        accuracies: of its seeds, in percent.
        mult_adds: multiply-adds for one image.
        latency: least milliseconds of the forms that were measured, or None.
        family: runs of one family share a colour; by default the name's first part.
        variant: where every run has one, they share a marker, and the legend names families and variants, not runs.
    """

    name: str
    accuracies: Sequence[float]
    mult_adds: int
    latency: Optional[float] = None
    family: str = ''
    variant: str = ''


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
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    timed = [point for point in points if point.latency is not None]
    panels = [(points, [p.mult_adds / 1e6 for p in points], 'multiply-adds (M)')]
    if timed:
        panels.append((timed, [p.latency for p in timed], 'latency as exported, fastest form (ms)'))
    styles = _styles(points, pyplot.get_cmap('tab20' if len({*map(_family, points)}) > 10 else 'tab10').colors)
    width = 5.5 * len(panels) + 3
    figure, axes = pyplot.subplots(1, len(panels), figsize=(width, 5), squeeze=False, layout='constrained')
    for axis, (shown, costs, label) in zip(axes[0], panels):
        means = [fmean(p.accuracies) for p in shown]
        front = pareto_front(costs, means)
        axis.plot(
            [costs[i] for i in front], [means[i] for i in front], '--', color='gray', label='Pareto front, black edges'
        )
        for i, (point, cost, mean) in enumerate(zip(shown, costs, means)):
            color, marker = styles[point.name]
            spread = stdev(point.accuracies) if len(point.accuracies) > 1 else 0.0
            edge = 'black' if i in front else 'none'
            axis.errorbar(
                cost, mean, spread, fmt=marker, color=color, markeredgecolor=edge, markersize=9, capsize=3,
                elinewidth=0.8, label=point.name,
            )  # fmt: skip
        axis.set_xscale('log')
        wide = max(costs) > 5 * min(costs)
        if wide:
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter() if wide else ScalarFormatter())
        axis.margins(x=0.15)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which='both')
    axes[0, 0].set_ylabel('test accuracy (%), mean and spread over seeds')
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if all(point.variant for point in points):
        shared = {_family(p): dict(color=styles[p.name][0], marker='o') for p in points}
        shared |= {p.variant: dict(color='gray', marker=styles[p.name][1]) for p in points}
        labels = [labels[0], *shared]
        handles = [handles[0], *(pyplot.Line2D([], [], linestyle='', **style) for style in shared.values())]
    figure.legend(handles, labels, loc='outside right upper', fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def _styles(points: Sequence[Point], colors: Sequence) -> dict[str, tuple]:
    """Colour and marker of each run: one colour for a family, another marker for each of its runs or each variant."""
    places = list(dict.fromkeys(map(_family, points)))
    variants = list(dict.fromkeys(point.variant for point in points))
    seen: dict[str, int] = {}
    styles = {}
    for point in points:
        family = _family(point)
        seen[family] = seen.get(family, -1) + 1
        place = variants.index(point.variant) if point.variant else seen[family]
        styles[point.name] = colors[places.index(family) % len(colors)], MARKERS[place % len(MARKERS)]
    return styles


def _family(point: Point) -> str:
    """Its own, or the name of the network without its size and what was done with it."""
    return point.family or point.name.split('_')[0].rpartition('-')[0] or point.name
