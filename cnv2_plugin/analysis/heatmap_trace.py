"""Which layer made each channel that a group-sparse layer reads or updates, and how strongly it uses it."""

from dataclasses import dataclass
from typing import Literal, Optional, Union

import torch
from torch import Tensor, nn

from ..layers import GroupSparseConv2d, SelectiveLinear
from ..models import CondenseNetTrunk, ShuffleNetTrunk

Kind = Literal['lgc', 'sfr']


@dataclass(frozen=True)
class Source:
    """A layer that makes features."""

    label: str  # 'stem', or block and layer from 1, such as '3.2'
    block: int  # from 1; the stem belongs to 0
    features: int


@dataclass(frozen=True)
class Use:
    """How a layer, or ``'head'``, uses each ``feature``: how strongly, and in how many groups; all ``(C,)``."""

    label: str
    block: int
    kind: Kind
    feature: Tensor
    strength: Tensor
    groups: Tensor


@dataclass(frozen=True)
class Trace:
    """Every feature of a network and every use of it, in forward order; ``source_of`` is each feature's source."""

    sources: tuple[Source, ...]
    source_of: Tensor
    uses: tuple[Use, ...]


def trace(model: nn.Module) -> Trace:
    """Follow the features through a network of ours in any form, or raise ValueError.

    In a ShuffleNet a feature lives from the unit whose branch makes it until the stage ends; channel shuffles are
    followed, and reactivation does not make a new feature.
    """
    trunk = find_trunk(model)
    dense = isinstance(trunk, CondenseNetTrunk)
    sources, uses, source_of = [], [], []

    def make(label: str, block: int, count: int) -> Tensor:
        first = len(source_of)
        source_of.extend([len(sources)] * count)
        sources.append(Source(label, block, count))
        return torch.arange(first, first + count)

    features = make('stem', 0, trunk.stem.out_channels) if dense else None
    for i, stage in enumerate(trunk.stages, 1):
        for j, layer in enumerate(stage.layers, 1):
            label = f'{i}.{j}'
            if dense:
                uses.append(Use(label, i, 'lgc', features, *unit_use(layer.conv_1)))
                old, new = features, make(label, i, layer.conv_2.out_channels)
            elif layer.branch1 is not None:
                old, new = make(label, i, 2 * layer.width).split(layer.width)
            else:
                old, new = features[: layer.width], make(label, i, layer.width)
            if layer.sfr is not None:
                uses.append(Use(label, i, 'sfr', old, *unit_use(layer.sfr)))
            features = torch.cat((old, new)) if dense else torch.stack((old, new), 1).flatten()
    if dense and (head := _head(model, trunk)) is not None:
        uses.append(Use('head', len(trunk.stages) + 1, 'lgc', features, head, (head > 0).long()))
    return Trace(tuple(sources), torch.tensor(source_of), tuple(uses))


def find_trunk(model: nn.Module) -> Union[CondenseNetTrunk, ShuffleNetTrunk]:
    """Find the trunk of a model, or raise ValueError."""
    for module in model.modules():
        if isinstance(module, (CondenseNetTrunk, ShuffleNetTrunk)):
            return module
    raise ValueError(
        f'{type(model).__name__} has no CondenseNet, CondenseNetV2 or SFR-ShuffleNetV2 trunk, so its features cannot '
        f'be traced from layer to layer; give a model of one of these families.'
    )


def unit_use(layer: GroupSparseConv2d) -> tuple[Tensor, Tensor]:
    """Mean absolute weight of each unit's channel, and the groups it is alive in; for every form of the layer."""
    if not layer.deploy:
        weight = layer.grouping.by_unit(layer.masked_weight().detach().double().abs())
        return weight.mean((0, 2)), layer.grouping.by_unit(layer.mask)[..., 0].sum(0)
    weight = layer.conv.weight.detach().double().abs().flatten(1)
    if layer.grouped_side == 'outputs':
        index = layer.gather.index
        sums, members = weight.unflatten(0, (layer.groups, -1)).sum(1).flatten(), layer.out_channels
    else:
        index = layer.scatter.index
        sums, members = weight.sum(1), layer.in_channels
    strength = sums.new_zeros(layer.num_units).index_add(0, index, sums) / members
    return strength, torch.bincount(index, minlength=layer.num_units)


def _head(model: nn.Module, trunk: CondenseNetTrunk) -> Optional[Tensor]:
    """Mean absolute weight of the linear layer behind the trunk for each of its inputs, where there is one."""
    modules = dict(model.named_modules())
    names = ('conv_head', 'classifier', 'head.layers.0.fc', 'head.fc')
    linear = next((modules[n] for n in names if isinstance(modules.get(n), (nn.Linear, nn.Conv2d))), None)
    if linear is None:
        return None
    strength = linear.weight.detach().double().abs().flatten(1).mean(0)
    if isinstance(linear, SelectiveLinear):
        strength = strength.new_zeros(linear.source_features).index_add(0, linear.index, strength)
    return strength if strength.numel() == trunk.num_features else None
