"""Stages of CondenseNet and CondenseNetV2 as one plan."""

from collections.abc import Iterable
from typing import NamedTuple, Optional, cast

import torch
from torch import nn

from ...kernels.plan import MOST_SPATIAL_INPUTS, PLAIN, POOLED, Plan
from ...layers import SqueezeExcite
from ...models.condensenet import DenseLayer, DenseStage
from .layers import UnsupportedError, learned_group_conv, norm_act, reactivation
from .module import NativeStages
from .stem import HIDDEN_SLOT, stem_conv


class DensePlan(NamedTuple):
    """Instructions for dense stages, without what becomes of their features.

    Attributes:
        plan: of images or features.
        features: the map of all features.
        changes: of height and width.
    """

    plan: Plan
    features: int
    changes: list[int]


def dense_stages(
    stages: list[DenseStage], channels: int, stem: Optional[nn.Module], final: Optional[nn.Sequential]
) -> NativeStages:
    """Stages with the stem in front and the last normalisation behind, where given.

    Raises:
        UnsupportedError: something in them is not what the kernels compute.
    """
    plan, features, changes = dense_plan(stages, stem, channels)
    affine, act = (None, 0) if final is None else norm_act(*final)
    plan.store(features, range(plan.out_channels), affine, act)
    return NativeStages(plan, changes)


def dense_plan(stages: list[DenseStage], stem: Optional[nn.Module], channels: int = 0) -> DensePlan:
    """Stages with the stem in front, or of features of so many channels.

    Raises:
        UnsupportedError: something in them is not what the kernels compute.
    """
    if stem is not None and not isinstance(stem, nn.Conv2d):
        raise UnsupportedError
    plan = Plan(channels if stem is None else stem.in_channels, stages[-1].out_channels)
    changes, features = [], -1
    if stem is not None:
        channels = stem.out_channels
        if not isinstance(stages[0].pool, nn.Identity) or stem.bias is not None:
            raise UnsupportedError
        changes += [1] * (stem.stride != (1, 1))
    for i, stage in enumerate(stages):
        pooled = not isinstance(stage.pool, nn.Identity)
        if pooled and not _halves(stage.pool):
            raise UnsupportedError
        before, features = features, plan.add_map(stage.out_channels, i % 2)
        if i == 0 and stem is not None:
            stem_conv(plan, stem, features)
        elif i == 0:
            plan.load(features, POOLED if pooled else PLAIN)
        elif pooled:
            plan.pool(before, features)
        else:
            raise UnsupportedError
        changes += [0] * pooled
        layers = list(cast(Iterable[DenseLayer], stage.layers))
        widest = max((layer.conv_1.out_channels for layer in layers), default=1)
        hidden = plan.add_map(widest, HIDDEN_SLOT, padded=True)
        for layer in layers:
            channels = _dense_layer(plan, layer, features, hidden, channels)
    return DensePlan(plan, features, changes)


def _halves(pool: nn.Module) -> bool:
    return isinstance(pool, nn.AvgPool2d) and (pool.kernel_size, pool.stride) == (2, 2)


def _dense_layer(plan: Plan, layer: DenseLayer, features: int, hidden: int, channels: int) -> int:
    conv = layer.conv_2
    if conv.kernel_size != (3, 3) or conv.padding != (1, 1) or conv.bias is not None or conv.padding_mode != 'zeros':
        raise UnsupportedError
    width, growth = conv.in_channels, conv.out_channels
    first = learned_group_conv(plan, layer.conv_1, features, hidden, layer.norm_2, layer.act_2)
    weight = conv.weight.detach().double().unflatten(0, (conv.groups, -1))
    if weight.size(2) > MOST_SPATIAL_INPUTS:
        raise UnsupportedError
    index = torch.arange(width).view(conv.groups, -1)
    target = torch.arange(channels, channels + growth).view(conv.groups, -1)
    plan.spatial(hidden, features, weight, index, target)
    se = layer.se if isinstance(layer.se, SqueezeExcite) else None
    if type(layer.se) is not SqueezeExcite and not isinstance(layer.se, nn.Identity):
        raise UnsupportedError
    plan.in_bands(first, 1 if se is not None or layer.sfr is None else 2)
    if se is not None:
        plan.excite(features, channels, se.fc1.weight, se.fc2.weight)
    if layer.sfr is not None:
        reactivation(plan, layer.sfr, features, features, channels)
    return channels + growth
