"""Sparsity of a model: weights kept by each layer, features that no later layer reads or reactivates."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor, nn

from ..layers import GroupSparseConv2d
from .figures import write_rows
from .heatmap_trace import Trace, trace, unit_use


@dataclass(frozen=True)
class LayerSparsity:
    """One group-sparse layer.

    Attributes:
        name: module name.
        kind: ``'lgc'`` where each group chooses inputs, ``'sfr'`` where each group chooses outputs.
        in_channels: inputs.
        out_channels: outputs.
        groups: ``G``.
        factor: condense factor ``C`` or sparse factor ``S``.
        stage: pruning stages done.
        num_stages: pruning stages in all.
        kept: share of the weights that are kept.
        features: channels that the groups choose from.
        unused: how many of them no group chose: inputs never read, or outputs never reactivated.
        multiplicity: number of channels that 0, 1, ... ``G`` groups chose.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    groups: int
    factor: int
    stage: int
    num_stages: int
    kept: float
    features: int
    unused: int
    multiplicity: tuple[int, ...]


@dataclass(frozen=True)
class SourceUse:
    """What later layers do with the features of one layer.

    Attributes:
        label: ``'stem'``, or block and layer from 1.
        features: features it makes.
        readers: later layers with a learned group convolution that could read them.
        never_read: features that none of these reads.
        reads: mean number of layers that read a feature.
        updaters: later layers with reactivation that could update them.
        never_reactivated: features that none of these updates.
        reactivations: number of features that 0, 1, ... ``updaters`` layers reactivate.
    """

    label: str
    features: int
    readers: int
    never_read: int
    reads: float
    updaters: int
    never_reactivated: int
    reactivations: tuple[int, ...]


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
        verbs = dict(never_read='read', never_reactivated='reactivated')
        parts = [
            f'{count} of {of} features are never {verbs[key]} by a later layer'
            for key, (count, of) in totals(self.sources).items()
            if of
        ]
        return f'{"; ".join(parts)}.' if parts else ''


def sparsity_report(model: nn.Module) -> SparsityReport:
    """Measure every group-sparse layer of a model, in training, packed or condensed form.

    Raises:
        ValueError: the model has no group-sparse layer.
    """
    layers = [
        _layer(name, layer) for name, layer in model.named_modules() if isinstance(layer, GroupSparseConv2d)
    ]  # fmt: skip
    if not layers:
        raise ValueError(f'{type(model).__name__} has no group-sparse layer, so it has no sparsity to report.')
    weights = sum(layer.in_channels * layer.out_channels for layer in layers)
    kept = sum(layer.kept * layer.in_channels * layer.out_channels for layer in layers) / weights
    try:
        traced = trace(model)
    except ValueError:
        return SparsityReport(tuple(layers), (), kept)
    return SparsityReport(tuple(layers), tuple(_source(traced, i) for i in range(len(traced.sources))), kept)


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
    source = traced.sources[index]
    own = (traced.source_of == index).nonzero().flatten()
    read, readers = _later_uses(traced, own, 'lgc')
    updated, updaters = _later_uses(traced, own, 'sfr')
    return SourceUse(
        source.label, source.features, readers, int((read == 0).sum()), read.double().mean().item(),
        updaters, int((updated == 0).sum()), tuple(torch.bincount(updated, minlength=updaters + 1).tolist()),
    )  # fmt: skip


def _later_uses(traced: Trace, own: Tensor, kind: str) -> tuple[Tensor, int]:
    """How many layers of a kind use each of these features, and how many could use any."""
    counts = torch.zeros(traced.source_of.numel(), dtype=torch.int64)
    layers = 0
    for use in traced.uses:
        if use.kind == kind and use.label != 'head':
            counts.index_add_(0, use.feature, (use.groups > 0).long())
            layers += bool(torch.isin(own, use.feature).any())
    return counts[own], layers


def totals(sources: Sequence[SourceUse]) -> dict[str, tuple[int, int]]:
    """Features never read and never reactivated, each with the number that a later layer could have."""
    read = [source for source in sources if source.readers]
    updated = [source for source in sources if source.updaters]
    return dict(
        never_read=(sum(s.never_read for s in read), sum(s.features for s in read)),
        never_reactivated=(sum(s.never_reactivated for s in updated), sum(s.features for s in updated)),
    )


def _counts(numbers: Sequence[int]) -> str:
    """Counts without the zeros at the end."""
    last = max((i for i, number in enumerate(numbers) if number), default=0)
    return ' '.join(map(str, numbers[: last + 1]))
