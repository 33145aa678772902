"""The benchmark as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Union

from .figures import picture
from .front import Point, front
from .latency import Measurement, exponent

COLORS = dict(native='tab:purple', lowered='tab:green', condensed='tab:olive', training='tab:blue', authors='tab:red')


def plot_latency(measurements: Sequence[Measurement], limits: Mapping[str, float], path: Union[str, Path]) -> None:
    """Bars of the least latency, one panel a runtime, with the machine's limit of each model in ms as a line."""
    runtimes = list(dict.fromkeys(m.runtime for m in measurements))
    names = list(dict.fromkeys((m.model, m.form) for m in measurements))
    width, height = 3.5 + 2.5 / len(runtimes), 1.5 + 0.22 * len(names)
    with picture(path, 1, len(runtimes), width, height, sharey=True) as (figure, axes):
        for axis, runtime in zip(axes, runtimes):
            rows = [m for m in measurements if m.runtime == runtime]
            places = [names.index((m.model, m.form)) for m in rows]
            colors = [COLORS.get(m.form, 'tab:gray') for m in rows]
            axis.barh(places, [m.timing.min for m in rows], color=colors)
            for i, m in zip(places, rows):
                axis.text(m.timing.min, i, f' {m.timing.min:.1f}', va='center', fontsize=8)
                if m.model in limits:
                    axis.plot([limits[m.model]] * 2, [i - 0.4, i + 0.4], color='black', linewidth=1)
            axis.margins(x=0.15, y=0.01)
            axis.set_xlim(left=0)
            axis.set(title=runtime, xlabel='ms a call, least of all rounds')
        axes[0].set_yticks(range(len(names)), [f'{model}, {form}' for model, form in names], fontsize=8)
        axes[0].invert_yaxis()
        figure.suptitle('Latency; black: limit of the machine for the condensed multiply-adds', fontsize=11)


def plot_scaling(by_size: Sequence[Measurement], by_batch: Sequence[Measurement], path: Union[str, Path]) -> None:
    """Latency against image height and against batch, both axes logarithmic, with the exponents."""
    panels = ((by_size, 'height', 'image height and width'), (by_batch, 'batch', 'images in a call'))
    with picture(path, 1, 2, width=5.5, height=4.5) as (_, axes):
        for axis, (rows, name, text) in zip(axes, panels):
            for label in dict.fromkeys((m.model, m.form, m.runtime) for m in rows):
                chosen = [m for m in rows if (m.model, m.form, m.runtime) == label]
                x, y = [getattr(m, name) for m in chosen], [m.timing.min for m in chosen]
                axis.loglog(x, y, marker='o', label=f'{" ".join(label)}: exponent {exponent(x, y):.2f}')
            axis.set(xlabel=text, ylabel='ms, least of all rounds')
            axis.legend(fontsize=7)


def plot_front(points: Sequence[Point], path: Union[str, Path]) -> None:
    """Published accuracy over latency on a logarithmic axis, with the line of the front; ours are named."""
    with picture(path, 1, 1, width=9, height=6) as (_, (axis,)):
        peers = [point for point in points if point.form == 'peer']
        axis.scatter([p.milliseconds for p in peers], [p.top1 for p in peers], s=18, color='tab:gray', label='timm')
        for form in ('standard', 'int8', 'native', 'native int8'):
            ours = [point for point in points if point.form == form]
            axis.plot([p.milliseconds for p in ours], [p.top1 for p in ours], 'o-', label=f'ours, {form}', linewidth=1)
        best = front(points)
        axis.step([p.milliseconds for p in best], [p.top1 for p in best], where='post', color='black', linewidth=1)
        for point in [*(p for p in best if p.form == 'peer'), *(p for p in points if p.form == 'native')]:
            below, at = point.form == 'native', (point.milliseconds, point.top1)  # nothing is drawn left of the front
            options = dict(va='top', weight='bold') if below else dict(ha='right')
            axis.annotate(point.name, at, fontsize=7, xytext=(5, -3) if below else (-4, 3),
                          textcoords='offset points', **options)  # fmt: skip
        axis.set_xscale('log')
        axis.margins(x=0.15)
        axis.xaxis.set_major_formatter('{x:g}')
        axis.xaxis.set_minor_formatter('{x:g}')
        axis.grid(alpha=0.3, which='both')
        label = 'ms an image, least of all rounds, ONNX Runtime, one thread'
        axis.set(xlabel=label, ylabel='published ImageNet top-1, %')
        axis.legend(loc='lower right')
