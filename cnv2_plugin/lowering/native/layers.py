"""Group-sparse layers as instructions of a plan, and single ones as plans of their own."""

from typing import Optional

import torch
from torch import Tensor, nn

from ...kernels.plan import ACTIVATIONS, Plan
from ...layers import ChannelGather, ChannelScatterSum, GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation
from ...layers.norm import is_batch_norm
from .module import NativeStages

Affine = tuple[Tensor, Tensor]


class UnsupportedError(Exception):
    """The kernels do not compute some layer; the part stays in standard operators."""


def single_layer(layer: GroupSparseConv2d) -> NativeStages:
    """One condensed layer of any model.

    Raises:
        UnsupportedError: it is not what the kernels compute.
    """
    if not layer.deploy or layer.conv.stride != (1, 1):
        raise UnsupportedError
    plan = Plan(layer.in_channels, layer.out_channels)
    src, dst = plan.add_map(layer.in_channels, 0), plan.add_map(layer.out_channels, 1)
    plan.load(src)
    if isinstance(layer, LearnedGroupConv):
        learned_group_conv(plan, layer, src, dst)
    elif isinstance(layer, SparseFeatureReactivation):
        plan.zero(dst)
        reactivation(plan, layer, src, dst)
    else:
        _bare_group_sparse(plan, layer, src, dst)
    plan.store(dst, range(layer.out_channels))
    return NativeStages(plan, [])


def _bare_group_sparse(plan: Plan, layer: GroupSparseConv2d, src: int, dst: int) -> None:
    conv = layer.conv
    weight = conv.weight.detach().double().view(conv.groups, -1, conv.weight.size(1))
    if layer.grouped_side == 'outputs':
        index = layer.gather.index if isinstance(layer.gather, ChannelGather) else torch.arange(conv.in_channels)
        target = torch.arange(conv.out_channels).view(-1, conv.groups).t()
        bias = None if conv.bias is None else conv.bias.detach().double().view(conv.groups, -1)
        plan.select(src, dst, weight, index.view(conv.groups, -1), target, bias)
        return
    rows = rows_of(layer)
    plan.zero(dst)
    index = torch.arange(conv.in_channels).view(-1, conv.groups).t()
    plan.select(src, dst, weight, index, rows.view(conv.groups, -1), accumulate=True)


def learned_group_conv(
    plan: Plan, layer: LearnedGroupConv, src: int, dst: int, norm: Optional[nn.Module] = None,
    act: Optional[nn.Module] = None,
) -> list[int]:  # fmt: skip
    """BN, activation and 1x1 group convolution; a normalisation behind it goes into the weights."""
    conv = layer.conv
    groups = conv.groups
    weight, bias = conv.weight.detach().double().view(groups, conv.out_channels // groups, -1), None
    target = torch.arange(conv.out_channels).view(-1, groups).t()
    if conv.bias is not None:
        bias = conv.bias.detach().double().view(groups, -1)
    if norm is not None:
        scale, shift = (part[target] for part in affine_of(norm))
        weight = weight * scale[..., None]
        bias = shift if bias is None else bias * scale + shift
    index = layer.gather.index if isinstance(layer.gather, ChannelGather) else torch.arange(conv.in_channels)
    (scale_in, shift_in), act_in = norm_act(layer.norm, layer.act)
    affine = scale_in.view(groups, -1), shift_in.view(groups, -1)
    return plan.select(src, dst, weight, index.view(groups, -1), target, bias, affine, act_in, act_number(act))


def reactivation(plan: Plan, layer: SparseFeatureReactivation, src: int, dst: int, first: int = 0) -> None:
    """BN, activation and 1x1 group convolution of the channels from ``first`` on, added to the kept channels."""
    conv, rows = layer.conv, rows_of(layer)
    index = torch.arange(conv.in_channels).view(-1, conv.groups).t()
    (scale, shift), act_in = norm_act(layer.norm, layer.act)
    weight = conv.weight.detach().double().view(conv.groups, -1, conv.weight.size(1))
    plan.select(
        src, dst, weight, first + index, rows.view(conv.groups, -1), None, (scale[index], shift[index]), act_in,
        accumulate=True,
    )  # fmt: skip


def rows_of(layer: GroupSparseConv2d) -> Tensor:
    """The channel that every row of a reactivation is added to."""
    if not isinstance(layer.scatter, ChannelScatterSum):
        raise UnsupportedError
    return layer.scatter.index


def norm_act(norm: nn.Module, act: nn.Module) -> tuple[Affine, int]:
    return affine_of(norm), act_number(act)


def affine_of(norm: nn.Module) -> Affine:
    if not is_batch_norm(norm) or norm.running_mean is None or norm.running_var is None:
        raise UnsupportedError
    scale = (norm.running_var.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def act_number(act: Optional[nn.Module]) -> int:
    name = 'Identity' if act is None else type(act).__name__
    if name not in ACTIVATIONS or act is not None and not type(act).__module__.startswith('torch.nn'):
        raise UnsupportedError
    return ACTIVATIONS.index(name)
