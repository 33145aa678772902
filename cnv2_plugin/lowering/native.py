"""Stages of our trunks, and single group-sparse layers of any model, as plans for the native kernels."""

from typing import Optional

import torch
from torch import Tensor, nn

from ..kernels.operator import native_stages
from ..kernels.plan import ACTIVATIONS, MOST_SPATIAL_INPUTS, PLAIN, POOLED, SPLITTED, Plan
from ..layers import ChannelGather, ChannelScatterSum, GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation
from ..layers.squeeze_excite import SqueezeExcite
from ..models.condensenet import DenseLayer, DenseStage
from ..models.shufflenet import ShuffleStage, ShuffleUnit

Affine = tuple[Tensor, Tensor]
HIDDEN_SLOT = 2


class UnsupportedError(Exception):
    """The kernels do not compute some layer; the part stays in standard operators."""


class DeferredConv2d(nn.Conv2d):
    """A first convolution that the native kernels of the stages behind it compute; passes images on.

    Args:
        conv: the convolution, whose weight is kept for what asks for the images' channels and type.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 1, bias=False, device='meta')
        self.weight = conv.weight
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C, H, W)`` as it is."""
        return x


class NativeStages(nn.Module):
    """A part of a network that runs in the native kernels: float32 on the CPU, inference only.

    Args:
        plan: what to run.
        halvings: rounding of every halving of height and width: 0 down, 1 up.
    """

    def __init__(self, plan: Plan, halvings: list[int]) -> None:
        super().__init__()
        self.register_buffer('weights', plan.weights())
        self.register_buffer('plan', plan.words())
        self.shape = [plan.out_channels, *halvings]
        self.choices = {'.': 'native'}

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the result of the part."""
        return native_stages(x, self.weights, self.plan, self.shape)

    def extra_repr(self) -> str:
        return f'weights={self.weights.numel()}, words={self.plan.numel()}, out_channels={self.shape[0]}'


def native(module: nn.Module, channels: int, stem: Optional[nn.Module] = None) -> Optional[NativeStages]:
    """A condensed part of a model in the native kernels, or None where it has a layer that they do not compute.

    Args:
        module: a chain of stages, one stage, or one group-sparse layer, condensed.
        channels: of its input.
        stem: what gives the first stage its input and is computed with it.
    """
    try:
        stages = list(module) if isinstance(module, nn.Sequential) else [module]
        if all(isinstance(stage, DenseStage) for stage in stages):
            return _dense_stages(stages, channels, stem)
        if all(isinstance(stage, ShuffleStage) for stage in stages):
            return _shuffle_stages(stages, channels, stem)
        if len(stages) == 1 and isinstance(module, GroupSparseConv2d) and stem is None:
            return _single_layer(module)
    except UnsupportedError:
        pass
    return None


# ---- dense stages ----


def _dense_stages(stages: list[DenseStage], channels: int, stem: Optional[nn.Conv2d]) -> NativeStages:
    plan = Plan(channels if stem is None else stem.in_channels, stages[-1].out_channels)
    halvings, features = [], -1
    if stem is not None:
        if not isinstance(stages[0].pool, nn.Identity) or stem.bias is not None:
            raise UnsupportedError
        halvings += [1] * (stem.stride != (1, 1))
    for i, stage in enumerate(stages):
        pooled = not isinstance(stage.pool, nn.Identity)
        if pooled and (stage.pool.kernel_size, stage.pool.stride) != (2, 2):
            raise UnsupportedError
        before, features = features, plan.add_map(stage.out_channels, i % 2)
        if i == 0 and stem is not None:
            _stem(plan, stem, features)
        elif i == 0:
            plan.load(features, POOLED if pooled else PLAIN)
        elif pooled:
            plan.pool(before, features)
        else:
            raise UnsupportedError
        halvings += [0] * pooled
        widest = max((layer.conv_1.out_channels for layer in stage.layers), default=1)
        hidden = plan.add_map(widest, HIDDEN_SLOT, padded=True)
        for layer in stage.layers:
            channels = _dense_layer(plan, layer, features, hidden, channels)
    plan.store(features, range(channels))
    return NativeStages(plan, halvings)


def _stem(plan: Plan, conv: nn.Conv2d, dst: int, affine: Optional[Affine] = None, act: int = 0) -> None:
    """The 3x3 convolution that reads the images; a normalisation behind it goes into the weights."""
    strides = {(1, 1): 1, (2, 2): 2}
    plain = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.padding_mode == 'zeros'
    if not plain or conv.groups != 1 or conv.stride not in strides or conv.in_channels > MOST_SPATIAL_INPUTS:
        raise UnsupportedError
    stride = strides[conv.stride]
    images = plan.add_map(conv.in_channels * (4 if stride == 2 else 1), HIDDEN_SLOT, padded=True)
    plan.load(images, SPLITTED if stride == 2 else PLAIN)
    weight, bias = conv.weight.detach().double(), None
    if affine is not None:
        weight, bias = weight * affine[0][:, None, None, None], affine[1][None]
    channels = torch.arange(conv.in_channels)[None], torch.arange(conv.out_channels)[None]
    plan.spatial(images, dst, weight[None], *channels, bias, stride, act)


def _dense_layer(plan: Plan, layer: DenseLayer, features: int, hidden: int, channels: int) -> int:
    conv = layer.conv_2
    if conv.kernel_size != (3, 3) or conv.padding != (1, 1) or conv.bias is not None or conv.padding_mode != 'zeros':
        raise UnsupportedError
    width, growth = conv.in_channels, conv.out_channels
    first = _learned_group_conv(plan, layer.conv_1, features, hidden, layer.norm_2, layer.act_2)
    weight = _grouped(conv)
    if weight.size(2) > MOST_SPATIAL_INPUTS:
        raise UnsupportedError
    index = torch.arange(width).view(conv.groups, -1)
    target = torch.arange(channels, channels + growth).view(conv.groups, -1)
    plan.spatial(hidden, features, weight, index, target)
    excites = type(layer.se) is SqueezeExcite
    if not excites and not isinstance(layer.se, nn.Identity):
        raise UnsupportedError
    plan.in_bands(first, 1 if excites or layer.sfr is None else 2)
    if excites:
        plan.excite(features, channels, layer.se.fc1.weight, layer.se.fc2.weight)
    if layer.sfr is not None:
        _reactivation(plan, layer.sfr, features, features, channels)
    return channels + growth


def _learned_group_conv(
    plan: Plan, layer: LearnedGroupConv, src: int, dst: int, norm: nn.Module = None, act: nn.Module = None
) -> list[int]:
    """BN, activation and 1x1 group convolution; a normalisation behind it goes into the weights."""
    conv = layer.conv
    groups = conv.groups
    weight, bias = conv.weight.detach().double().view(groups, conv.out_channels // groups, -1), None
    target = torch.arange(conv.out_channels).view(-1, groups).t()
    if conv.bias is not None:
        bias = conv.bias.detach().double().view(groups, -1)
    if norm is not None:
        scale, shift = (part[target] for part in _affine(norm))
        weight = weight * scale[..., None]
        bias = shift if bias is None else bias * scale + shift
    index = layer.gather.index if isinstance(layer.gather, ChannelGather) else torch.arange(conv.in_channels)
    affine, act_in = _norm_act(layer.norm, layer.act)
    affine = tuple(part.view(groups, -1) for part in affine)
    return plan.select(src, dst, weight, index.view(groups, -1), target, bias, affine, act_in, _act(act))


def _reactivation(plan: Plan, layer: SparseFeatureReactivation, src: int, dst: int, first: int = 0) -> None:
    """BN, activation and 1x1 group convolution of the channels from ``first`` on, added to the kept channels."""
    conv, rows = layer.conv, layer.scatter.index
    index = torch.arange(conv.in_channels).view(-1, conv.groups).t()
    affine, act_in = _norm_act(layer.norm, layer.act)
    weight = conv.weight.detach().double().view(conv.groups, -1, conv.weight.size(1))
    plan.select(
        src, dst, weight, first + index, rows.view(conv.groups, -1), None, tuple(part[index] for part in affine),
        act_in, accumulate=True,
    )  # fmt: skip


# ---- shuffle stages ----


def _shuffle_stages(stages: list[ShuffleStage], channels: int, stem: Optional[nn.Sequential]) -> NativeStages:
    plan = Plan(channels if stem is None else stem.conv.in_channels, stages[-1].out_channels)
    features = plan.add_map(channels, 0, padded=True)
    halvings = [1] * len(stages)
    if stem is None:
        plan.load(features)
    else:
        halvings += [1, 1]
        _shuffle_stem(plan, stem, features)
    order = torch.arange(channels)
    for i, stage in enumerate(stages):
        first, *others = stage.layers
        features, order = _halving_unit(plan, first, features, order, (i + 1) % 2)
        hidden = [plan.add_map(first.width, HIDDEN_SLOT + j, padded=j == 0) for j in range(2)]
        for unit in others:
            order = _unit(plan, unit, features, order, hidden)
    plan.store(features, order.tolist())
    return NativeStages(plan, halvings)


def _shuffle_stem(plan: Plan, stem: nn.Sequential, dst: int) -> None:
    """3x3 convolution, normalisation, ReLU and 3x3 maximum, each halving the size."""
    conv, pool = stem.conv, stem.pool
    act = _act(stem.act)
    if (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) != (3, 2, 1, False):
        raise UnsupportedError
    if ACTIVATIONS[act] not in ('ReLU', 'ReLU6') or conv.stride != (2, 2):
        raise UnsupportedError
    whole = plan.add_map(conv.out_channels, HIDDEN_SLOT + 1)
    _stem(plan, conv, whole, _affine(stem.norm), act)
    split = plan.add_map(4 * conv.out_channels, HIDDEN_SLOT, padded=True)
    plan.split(whole, split)
    plan.maximum(split, dst)


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
        affine, act_in = _norm_act(unit.sfr.norm, unit.sfr.act)
        weight = conv.weight.detach().double().view(conv.groups, -1, conv.weight.size(1))
        plan.select(
            features, features, weight, right[index], left[unit.sfr.scatter.index].view(conv.groups, -1), None,
            tuple(part[index] for part in affine), act_in, accumulate=True,
        )  # fmt: skip
    return _shuffled(torch.cat((left, right)))


def _shuffled(order: Tensor) -> Tensor:
    return order.view(2, -1).t().flatten()


def _dense_1x1(plan: Plan, block: nn.Sequential, src: int, dst: int, index: Tensor, target: Tensor) -> None:
    conv, (scale, shift), act = _conv_norm_act(block)
    if conv.kernel_size != (1, 1) or conv.groups != 1 or conv.stride != (1, 1):
        raise UnsupportedError
    weight = conv.weight.detach().double().flatten(1) * scale[:, None]
    plan.select(src, dst, weight[None], index[None], target[None], shift[None], act_out=act)


def _depthwise(plan: Plan, block: nn.Sequential, src: int, dst: int, index: Tensor, stride: int) -> None:
    conv, (scale, shift), act = _conv_norm_act(block)
    is_depthwise = conv.groups == conv.in_channels == conv.out_channels
    if conv.kernel_size != (3, 3) or conv.padding != (1, 1) or not is_depthwise or conv.stride != (stride, stride):
        raise UnsupportedError
    weight = conv.weight.detach().double() * scale[:, None, None, None]
    channels = torch.arange(conv.out_channels)
    plan.spatial(src, dst, weight[:, None], index[:, None], channels[:, None], shift[:, None], stride, act)


def _conv_norm_act(block: nn.Sequential) -> tuple[nn.Conv2d, Affine, int]:
    conv, norm, *act = block
    if not isinstance(conv, nn.Conv2d) or conv.bias is not None or conv.padding_mode != 'zeros' or len(act) > 1:
        raise UnsupportedError
    return conv, _affine(norm), _act(act[0] if act else None)


# ---- single layers ----


def _single_layer(layer: GroupSparseConv2d) -> NativeStages:
    if not layer.deploy or layer.conv.stride != (1, 1):
        raise UnsupportedError
    plan = Plan(layer.in_channels, layer.out_channels)
    src, dst = plan.add_map(layer.in_channels, 0), plan.add_map(layer.out_channels, 1)
    plan.load(src)
    if isinstance(layer, LearnedGroupConv):
        _learned_group_conv(plan, layer, src, dst)
    elif isinstance(layer, SparseFeatureReactivation):
        plan.zero(dst)
        _reactivation(plan, layer, src, dst)
    else:
        _bare_group_sparse(plan, layer, src, dst)
    plan.store(dst, range(layer.out_channels))
    return NativeStages(plan, [])


def _bare_group_sparse(plan: Plan, layer: GroupSparseConv2d, src: int, dst: int) -> None:
    conv = layer.conv
    weight = conv.weight.detach().double().view(conv.groups, -1, conv.weight.size(1))
    if layer.over == 'outputs':
        index = layer.gather.index if isinstance(layer.gather, ChannelGather) else torch.arange(conv.in_channels)
        target = torch.arange(conv.out_channels).view(-1, conv.groups).t()
        bias = None if conv.bias is None else conv.bias.detach().double().view(conv.groups, -1)
        plan.select(src, dst, weight, index.view(conv.groups, -1), target, bias)
        return
    if not isinstance(layer.scatter, ChannelScatterSum):
        raise UnsupportedError
    plan.zero(dst)
    index = torch.arange(conv.in_channels).view(-1, conv.groups).t()
    plan.select(src, dst, weight, index, layer.scatter.index.view(conv.groups, -1), accumulate=True)


# ---- shared ----


def _grouped(conv: nn.Conv2d) -> Tensor:
    return conv.weight.detach().double().unflatten(0, (conv.groups, -1))


def _affine(norm: nn.Module) -> Affine:
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        raise UnsupportedError
    scale = (norm.running_var.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _norm_act(norm: nn.Module, act: nn.Module) -> tuple[Affine, int]:
    return _affine(norm), _act(act)


def _act(act: Optional[nn.Module]) -> int:
    name = 'Identity' if act is None else type(act).__name__
    if name not in ACTIVATIONS or act is not None and not type(act).__module__.startswith('torch.nn'):
        raise UnsupportedError
    return ACTIVATIONS.index(name)
