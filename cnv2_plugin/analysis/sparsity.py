"""How sparse a model is: kept weights of each layer, features never reused or never reactivated, multiplicity."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

import torch
from torch import nn

from ..layers import GroupSparseConv2d
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
        block: block from 1; 0 for the stem.
        features: features it makes.
        readers: later layers with a learned group convolution that could read them.
        never_read: features that none of these reads.
        reads: mean number of layers that read a feature.
        updaters: later layers with reactivation that could update them.
        never_reactivated: features that none of these updates.
        reactivations: number of features that 0, 1, ... ``updaters`` layers reactivate.
    """

    label: str
    block: int
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


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
    from ..checkpoints import atomic_path

    with atomic_path(path) as temporary, open(temporary, 'w', newline='') as file:
        rows = [asdict(layer) for layer in report.layers]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, 'multiplicity': ' '.join(map(str, row['multiplicity']))} for row in rows)


def _layer(name: str, layer: GroupSparseConv2d) -> LayerSparsity:
    _, groups = unit_use(layer)
    return LayerSparsity(
        name or type(layer).__name__, 'lgc' if layer.grouped_side == 'outputs' else 'sfr',
        layer.in_channels, layer.out_channels, layer.groups, layer.factor,
        layer.num_stages if layer.deploy else int(layer.stage), layer.num_stages, layer.kept_fraction(),
        layer.num_units(), int((groups == 0).sum()), tuple(torch.bincount(groups, minlength=layer.groups + 1).tolist()),
    )  # fmt: skip


def _source(traced: Trace, index: int) -> SourceUse:
    source = traced.sources[index]
    own = (traced.source_of == index).nonzero().flatten()
    counts = {}
    layers = {}
    for kind in ('lgc', 'sfr'):
        uses = [use for use in traced.uses if use.kind == kind and use.label != 'head']
        counts[kind] = torch.zeros(traced.source_of.numel(), dtype=torch.int64)
        for use in uses:
            counts[kind].index_add_(0, use.feature, (use.groups > 0).long())
        counts[kind] = counts[kind][own]
        layers[kind] = sum(bool(torch.isin(own, use.feature).any()) for use in uses)
    read, updated = counts['lgc'], counts['sfr']
    return SourceUse(
        source.label, source.block, source.features,
        layers['lgc'], int((read == 0).sum()), read.double().mean().item(),
        layers['sfr'], int((updated == 0).sum()),
        tuple(torch.bincount(updated, minlength=layers['sfr'] + 1).tolist()),
    )  # fmt: skip


def totals(sources: Sequence[SourceUse]) -> dict[str, tuple[int, int]]:
    """Features never read and never reactivated, each with the number that a later layer could have."""
    read = [source for source in sources if source.readers]
    updated = [source for source in sources if source.updaters]
    return dict(
        never_read=(sum(s.never_read for s in read), sum(s.features for s in read)),
        never_reactivated=(sum(s.never_reactivated for s in updated), sum(s.features for s in updated)),
    )
