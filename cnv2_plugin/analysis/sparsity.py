"""Sparsity of a model: weights kept by each layer, features that no later layer reads or reactivates."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Union

import torch
from torch import nn

from ..benchmark.figures import picture, write_rows
from ..layers import GroupSparseConv2d
from .heatmap_trace import Trace, trace, unit_use

_KINDS = dict(
    lgc=('#1f77b4', -0.2, 'read', 'readers', 'never_read'),
    sfr=('#d62728', 0.2, 'reactivated', 'updaters', 'never_reactivated'),
)
"""Colour and offset of each kind's bars, what it does to features, and its fields of :class:`SourceUse`."""


@dataclass(frozen=True)
class LayerSparsity:
    """One group-sparse layer: what it keeps, and how its groups choose channels."""

    name: str
    kind: str  # 'lgc' where each group chooses inputs, 'sfr' where each group chooses outputs
    in_channels: int
    out_channels: int
    groups: int
    factor: int
    stage: int
    num_stages: int
    kept: float  # share of the weights
    features: int  # channels that the groups choose from
    unused: int  # how many of them no group chose
    multiplicity: tuple[int, ...]  # how many of them 0, 1, ... groups chose


@dataclass(frozen=True)
class SourceUse:
    """What later layers do with the features of one layer."""

    label: str
    features: int
    readers: int  # later layers with a learned group convolution that could read them
    never_read: int
    reads: float  # layers that read a feature, on average
    updaters: int  # later layers with reactivation that could update them
    never_reactivated: int
    reactivations: tuple[int, ...]  # how many of them 0, 1, ... later layers reactivate


@dataclass(frozen=True)
class SparsityReport:
    """Sparsity of a whole model.

    Attributes:
        layers: group-sparse layers in forward order.
        sources: layers that make features, in forward order; empty for models of other families.
        kept: share of the weights of all group-sparse layers that are kept.
    """

    layers: tuple[LayerSparsity, ...]
    sources: tuple[SourceUse, ...]
    kept: float

    def layer_table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows, one for each group-sparse layer and one for all."""
        header = ['layer', 'kind', 'channels', 'G', 'factor', 'stage', 'kept', 'unused', 'chosen by 0, 1, ... groups']
        rows = [
            [s.name, s.kind.upper(), f'{s.in_channels} to {s.out_channels}', s.groups, s.factor,
             f'{s.stage}/{s.num_stages}', f'{s.kept:.1%}', f'{s.unused} of {s.features}', _counts(s.multiplicity)]
            for s in self.layers
        ]  # fmt: skip
        return header, [*rows, ['all', '', '', '', '', '', f'{self.kept:.1%}', '', '']]

    def source_table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows, one for each layer that makes features."""
        header = ['made by', 'features', 'later readers', 'never read', 'mean readers', 'later SFR',
                  'never reactivated', 'reactivated by 0, 1, ... layers']  # fmt: skip
        rows = [
            [s.label, s.features, s.readers, s.never_read if s.readers else '-', f'{s.reads:.2f}' if s.readers else '-',
             s.updaters, s.never_reactivated if s.updaters else '-', _counts(s.reactivations)]
            for s in self.sources
        ]  # fmt: skip
        return header, rows

    def summary(self) -> str:
        """A sentence about features that no later layer uses; '' where no later layer could."""
        counts = totals(self.sources)
        parts = [
            f'{counts[unused][0]} of {counts[unused][1]} features are never {verb} by a later layer'
            for *_, verb, _, unused in _KINDS.values()
            if counts[unused][1]
        ]
        return f'{"; ".join(parts)}.' if parts else ''


def sparsity_report(model: nn.Module) -> SparsityReport:
    """Measure every group-sparse layer of a model, in training, packed or condensed form.

    Raises:
        ValueError: the model has no group-sparse layer.
    """
    layers = tuple(_layer(name, m) for name, m in model.named_modules() if isinstance(m, GroupSparseConv2d))
    if not layers:
        raise ValueError(f'{type(model).__name__} has no group-sparse layer, so it has no sparsity to report.')
    weights = [layer.in_channels * layer.out_channels for layer in layers]
    kept = sum(layer.kept * count for layer, count in zip(layers, weights)) / sum(weights)
    try:
        traced = trace(model)
    except ValueError:
        return SparsityReport(layers, (), kept)
    return SparsityReport(layers, tuple(_source(traced, i) for i in range(len(traced.sources))), kept)


def write_csv(report: SparsityReport, path: Union[str, Path]) -> None:
    """Write one line for each layer."""
    rows = [{**asdict(layer), 'multiplicity': ' '.join(map(str, layer.multiplicity))} for layer in report.layers]
    write_rows(path, list(rows[0]), (row.values() for row in rows))


def _layer(name: str, layer: GroupSparseConv2d) -> LayerSparsity:
    _, groups = unit_use(layer)
    return LayerSparsity(
        name or type(layer).__name__, 'lgc' if layer.grouped_side == 'outputs' else 'sfr',
        layer.in_channels, layer.out_channels, layer.groups, layer.factor,
        layer.num_stages if layer.deploy else int(layer.stage), layer.num_stages, layer.kept_fraction(),
        layer.num_units, int((groups == 0).sum()), tuple(torch.bincount(groups, minlength=layer.groups + 1).tolist()),
    )  # fmt: skip


def _source(traced: Trace, index: int) -> SourceUse:
    source, own = traced.sources[index], traced.source_of == index
    found = []
    for kind in _KINDS:
        uses = [use for use in traced.uses if use.kind == kind and use.label != 'head' and own[use.feature].any()]
        used = torch.cat([use.feature[use.groups > 0] for use in uses] or [torch.empty(0, dtype=torch.int64)])
        found += [torch.bincount(used, minlength=own.numel())[own], len(uses)]
    read, readers, updated, updaters = found
    return SourceUse(
        source.label, source.features, readers, int((read == 0).sum()), read.double().mean().item(),
        updaters, int((updated == 0).sum()), tuple(torch.bincount(updated, minlength=updaters + 1).tolist()),
    )  # fmt: skip


def totals(sources: Sequence[SourceUse]) -> dict[str, tuple[int, int]]:
    """Features never read and never reactivated, each with the number that a later layer could have."""
    found = {}
    for *_, users, unused in _KINDS.values():
        used = [source for source in sources if getattr(source, users)]
        found[unused] = (sum(getattr(source, unused) for source in used), sum(source.features for source in used))
    return found


def _counts(numbers: Sequence[int]) -> str:
    """Counts without the zeros at the end."""
    return re.sub('( 0)+$', '', ' '.join(map(str, numbers)))


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
        for kind, (colour, offset, verb, *_) in _KINDS.items():
            layers = [layer for layer in report.layers if layer.kind == kind]
            if layers:
                style = dict(marker='.', color=colour)
                x = range(1, len(layers) + 1)
                axes[0].plot(x, [100 * s.kept for s in layers], label=f'{kind.upper()} (kept)', **style)
                label = f'{kind.upper()}: never {verb} by any group'
                axes[1].plot(x, [100 * s.unused / s.features for s in layers], label=label, **style)
                chosen = [sum(c) for c in zip_longest(*(s.multiplicity for s in layers), fillvalue=0)]
                chosen = {i + offset: 100 * count / sum(chosen) for i, count in enumerate(chosen) if any(chosen[i:])}
                label = f'{kind.upper()}: groups by which it is {verb}'
                axes[3].bar(list(chosen), list(chosen.values()), 0.4, color=colour, label=label)
        percent = dict(ylim=(0, 103))
        _finish(axes[0], title='Weights kept by each layer', xlabel='layer', ylabel='weights kept (%)', **percent)
        title = 'Channels that no group of the layer chose'
        _finish(axes[1], title=title, xlabel='layer', ylabel='its channels (%)', **percent)
        if report.sources:
            _plot_unused_sources(axes[2], report.sources)
        axes[2].set_visible(bool(report.sources))
        axes[3].xaxis.get_major_locator().set_params(integer=True)
        title = 'Multiplicity: groups per channel'
        _finish(axes[3], 'y', title=title, xlabel='number of groups', ylabel='channels (%)')


def _plot_unused_sources(axis, sources: Sequence[SourceUse]) -> None:
    for colour, offset, verb, users, unused in _KINDS.values():
        shares = {i: 100 * getattr(s, unused) / s.features for i, s in enumerate(sources) if getattr(s, users)}
        if shares:
            places = [i + offset for i in shares]
            axis.bar(places, list(shares.values()), 0.4, color=colour, label=f'never {verb} by a later layer')
    step = -(-len(sources) // 16)
    axis.set_xticks(range(0, len(sources), step), [source.label for source in sources][::step], rotation=90)
    labels = dict(xlabel='layer that makes the features', ylabel='its features (%)')
    limits = dict(xlim=(-0.6, len(sources) - 0.4), ylim=(0, 103))
    _finish(axis, 'y', title='Features that no later layer uses', **labels, **limits)


def _finish(axis, grid: str = 'both', **labels) -> None:
    axis.set(**labels)
    axis.grid(alpha=0.3, axis=grid)
    axis.legend()
