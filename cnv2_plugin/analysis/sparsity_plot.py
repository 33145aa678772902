"""Sparsity as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Union

from .figures import picture
from .sparsity import LayerSparsity, SourceUse, SparsityReport

_KINDS = (('lgc', '#1f77b4', -0.2, 'read'), ('sfr', '#d62728', 0.2, 'reactivated'))
"""Kind of layer, its colour, the offset of its bars and the verb for what it does to features."""


def plot_sparsity(report: SparsityReport, path: Union[str, Path], title: str = '') -> None:
    """Draw kept weights and unused channels of each layer, and how often features are reused and reactivated.

    Args:
        report: of :func:`cnv2_plugin.analysis.sparsity_report`.
        path: picture to write (``.png``, ``.svg``, ``.pdf``).
        title: name of the model.
    """
    with picture(path, 2, 2, width=4.7, height=3.3) as (figure, axes):
        if title:
            figure.suptitle(title)
        for kind, colour, offset, verb in _KINDS:
            layers = [layer for layer in report.layers if layer.kind == kind]
            if layers:
                style = dict(marker='.', color=colour)
                x = range(1, len(layers) + 1)
                axes[0].plot(x, [100 * s.kept for s in layers], label=f'{kind.upper()} (kept)', **style)
                label = f'{kind.upper()}: never {verb} by any group'
                axes[1].plot(x, [100 * s.unused / s.features for s in layers], label=label, **style)
                _plot_multiplicity(axes[3], layers, offset, colour, f'{kind.upper()}: groups by which it is {verb}')
        _finish(axes[0], 'Weights kept by each layer', 'layer', 'weights kept (%)', percent=True)
        _finish(axes[1], 'Channels that no group of the layer chose', 'layer', 'its channels (%)', percent=True)
        if report.sources:
            _plot_unused_sources(axes[2], report.sources)
        axes[2].set_visible(bool(report.sources))
        axes[3].xaxis.get_major_locator().set_params(integer=True)
        _finish(axes[3], 'Multiplicity: groups per channel', 'number of groups', 'channels (%)', grid='y')


def _plot_unused_sources(axis, sources: Sequence[SourceUse]) -> None:
    for kind, colour, offset, verb in _KINDS:
        users, unused = ('readers', 'never_read') if kind == 'lgc' else ('updaters', 'never_reactivated')
        shares = {i: 100 * getattr(s, unused) / s.features for i, s in enumerate(sources) if getattr(s, users)}
        if shares:
            places = [i + offset for i in shares]
            axis.bar(places, list(shares.values()), 0.4, color=colour, label=f'never {verb} by a later layer')
    step = -(-len(sources) // 16)
    axis.set_xticks(range(0, len(sources), step), [source.label for source in sources][::step], rotation=90)
    axis.set_xlim(-0.6, len(sources) - 0.4)
    title = 'Features that no later layer uses'
    _finish(axis, title, 'layer that makes the features', 'its features (%)', percent=True, grid='y')


def _plot_multiplicity(axis, layers: Sequence[LayerSparsity], offset: float, colour: str, label: str) -> None:
    """Share of the channels that 0, 1, ... groups of their layer chose, over all layers of a kind."""
    rows = [layer.multiplicity for layer in layers]
    longest = 1 + max(i for row in rows for i, count in enumerate(row) if count)
    counts = [sum(row[i] for row in rows if i < len(row)) for i in range(longest)]
    heights = [100 * count / sum(counts) for count in counts]
    axis.bar([i + offset for i in range(longest)], heights, 0.4, color=colour, label=label)


def _finish(axis, title: str, x: str, y: str, percent: bool = False, grid: str = 'both') -> None:
    if percent:
        axis.set_ylim(0, 103)
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3, axis=grid)
    axis.legend()
