"""Stages of ShuffleNetV2 and SFR-ShuffleNetV2 as one plan."""

from collections.abc import Iterable
from typing import Optional, cast

import torch
from torch import Tensor, nn

from ...kernels.plan import ACTIVATIONS, Plan
from ...models.shufflenet import ShuffleStage, ShuffleUnit
from .layers import Affine, UnsupportedError, act_number, affine_of, norm_act, rows_of
from .module import NativeStages
from .stem import HIDDEN_SLOT, stem_conv


def shuffle_stages(stages: list[ShuffleStage], channels: int, stem: Optional[nn.Module]) -> NativeStages:
    """Stages with the stem in front, where given.

    Raises:
        UnsupportedError: something in them is not what the kernels compute.
    """
    first_conv = None if stem is None else _conv_and_pool(stem)[0]
    plan = Plan(channels if first_conv is None else first_conv.in_channels, stages[-1].out_channels)
    features = plan.add_map(channels, 0, padded=True)
    changes = [1] * len(stages)
    if stem is None:
        plan.load(features)
    else:
        changes += [1, 1]
        _shuffle_stem(plan, stem, features)
    order = torch.arange(channels)
    for i, stage in enumerate(stages):
        first, *others = cast(Iterable[ShuffleUnit], stage.layers)
        features, order = _halving_unit(plan, first, features, order, (i + 1) % 2)
        hidden = [plan.add_map(first.width, HIDDEN_SLOT + j, padded=j == 0) for j in range(2)]
        for unit in others:
            order = _unit(plan, unit, features, order, hidden)
    plan.store(features, order.tolist())
    return NativeStages(plan, changes)


def _shuffle_stem(plan: Plan, stem: nn.Module, dst: int) -> None:
    """3x3 convolution, normalisation, ReLU and 3x3 maximum, each halving the size."""
    conv, pool = _conv_and_pool(stem)
    act = act_number(stem.get_submodule('act'))
    if (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) != (3, 2, 1, False):
        raise UnsupportedError
    if ACTIVATIONS[act] not in ('ReLU', 'ReLU6') or conv.stride != (2, 2):
        raise UnsupportedError
    whole = plan.add_map(conv.out_channels, HIDDEN_SLOT + 1)
    stem_conv(plan, conv, whole, affine_of(stem.get_submodule('norm')), act)
    split = plan.add_map(4 * conv.out_channels, HIDDEN_SLOT, padded=True)
    plan.split(whole, split)
    plan.maximum(split, dst)


def _conv_and_pool(stem: nn.Module) -> tuple[nn.Conv2d, nn.MaxPool2d]:
    conv, pool = stem.get_submodule('conv'), stem.get_submodule('pool')
    if not isinstance(conv, nn.Conv2d) or not isinstance(pool, nn.MaxPool2d):
        raise UnsupportedError
    return conv, pool


def _halving_unit(plan: Plan, unit: ShuffleUnit, src: int, order: Tensor, slot: int) -> tuple[int, Tensor]:
    """The first unit of a stage: both branches read everything; returns the new map and its order of channels."""
    if unit.branch1 is None or unit.sfr is not None:
        raise UnsupportedError
    width, channels = unit.width, order.numel()
    inside, dst = torch.arange(width), plan.add_map(2 * width, slot, padded=True)
    split = plan.add_map(4 * channels, HIDDEN_SLOT, padded=True)
    plan.split(src, split)
    small = plan.add_map(channels, HIDDEN_SLOT + 1)
    _depthwise(plan, unit.branch1[0], split, small, order, 2)
    _dense_1x1(plan, unit.branch1[1], small, dst, torch.arange(channels), inside)
    whole = plan.add_map(width, HIDDEN_SLOT + 1)
    _dense_1x1(plan, unit.branch2[0], src, whole, order, inside)
    split = plan.add_map(4 * width, HIDDEN_SLOT, padded=True)
    plan.split(whole, split)
    small = plan.add_map(width, HIDDEN_SLOT + 1)
    _depthwise(plan, unit.branch2[1], split, small, inside, 2)
    _dense_1x1(plan, unit.branch2[2], small, dst, inside, inside + width)
    return dst, _shuffled(torch.arange(2 * width))


def _unit(plan: Plan, unit: ShuffleUnit, features: int, order: Tensor, hidden: list[int]) -> Tensor:
    """A unit that keeps the size: the new features take the memory of the half that they were made from."""
    if unit.branch1 is not None:
        raise UnsupportedError
    width = unit.width
    left, right = order[:width], order[width:]
    inside = torch.arange(width)
    _dense_1x1(plan, unit.branch2[0], features, hidden[0], right, inside)
    _depthwise(plan, unit.branch2[1], hidden[0], hidden[1], inside, 1)
    _dense_1x1(plan, unit.branch2[2], hidden[1], features, inside, right)
    if unit.sfr is not None:
        conv = unit.sfr.conv
        index = torch.arange(width).view(-1, conv.groups).t()
        (scale, shift), act_in = norm_act(unit.sfr.norm, unit.sfr.act)
        weight = conv.weight.detach().double().view(conv.groups, -1, conv.weight.size(1))
        plan.select(
            features, features, weight, right[index], left[rows_of(unit.sfr)].view(conv.groups, -1), None,
            (scale[index], shift[index]), act_in, accumulate=True,
        )  # fmt: skip
    return _shuffled(torch.cat((left, right)))


def _shuffled(order: Tensor) -> Tensor:
    return order.view(2, -1).t().flatten()


def _dense_1x1(plan: Plan, block: nn.Module, src: int, dst: int, index: Tensor, target: Tensor) -> None:
    conv, (scale, shift), act = _conv_norm_act(block)
    if conv.kernel_size != (1, 1) or conv.groups != 1 or conv.stride != (1, 1):
        raise UnsupportedError
    weight = conv.weight.detach().double().flatten(1) * scale[:, None]
    plan.select(src, dst, weight[None], index[None], target[None], shift[None], act_out=act)


def _depthwise(plan: Plan, block: nn.Module, src: int, dst: int, index: Tensor, stride: int) -> None:
    conv, (scale, shift), act = _conv_norm_act(block)
    is_depthwise = conv.groups == conv.in_channels == conv.out_channels
    if conv.kernel_size != (3, 3) or conv.padding != (1, 1) or not is_depthwise or conv.stride != (stride, stride):
        raise UnsupportedError
    weight = conv.weight.detach().double() * scale[:, None, None, None]
    channels = torch.arange(conv.out_channels)
    plan.spatial(src, dst, weight[:, None], index[:, None], channels[:, None], shift[:, None], stride, act)


def _conv_norm_act(block: nn.Module) -> tuple[nn.Conv2d, Affine, int]:
    conv, norm, *act = block.children()
    if not isinstance(conv, nn.Conv2d) or conv.bias is not None or conv.padding_mode != 'zeros' or len(act) > 1:
        raise UnsupportedError
    return conv, affine_of(norm), act_number(act[0] if act else None)
