"""Parts of condensed models as graphs: dense stages, shuffle stages, and single group-sparse layers of any model."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, Optional, cast

import torch
from torch import Tensor, nn

from ..layers import ChannelGather, ChannelScatterSum, GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation
from ..layers.norm import is_batch_norm
from ..models.condensenet import DenseLayer, DenseStage
from ..models.shufflenet import ShuffleStage, ShuffleUnit
from .graph import (
    Add,
    Affine,
    AveragePool,
    Concat,
    Conv,
    Gather,
    Graph,
    Opaque,
    Pointwise,
    ScatterSum,
    pair,
    try_module,
)

POINTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Tanh,
    nn.LeakyReLU,
    nn.ELU,
)
"""Activations known to treat every element alike; any other module is kept as it is, where it is."""

ITSELF = '.'
"""Site of a layer that is described by itself, not as part of a stage."""


def is_chain_of_stages(module: nn.Module) -> bool:
    """Whether a module is nothing but several of our stages one after the other."""
    return isinstance(module, nn.Sequential) and len(module) > 1 and all(isinstance(m, STAGES) for m in module)


def describe(module: nn.Module, channels: int) -> Graph:
    """A condensed module as a graph.

    Args:
        module: part of a condensed model.
        channels: channels of its input.

    Raises:
        TypeError: the module is of another kind than those in ``DESCRIBERS``, and no chain of stages.
    """
    if is_chain_of_stages(module):
        graph = Graph.of(channels)
        for name, stage in module.named_children():
            graph.output = DESCRIBERS[type(stage)](graph, stage, graph.output, f'{name}.')
        return graph
    for kind, add in DESCRIBERS.items():
        if isinstance(module, kind):
            graph = Graph.of(channels)
            graph.output = add(graph, module, graph.output, ITSELF)
            return graph
    raise TypeError(f'a {type(module).__name__} cannot be described.')


def add_module(graph: Graph, module: nn.Module, x: int, site: str) -> int:
    """Append any module of one map; what is not known stays opaque."""
    if isinstance(module, (nn.Identity, nn.Dropout)):
        return x
    if isinstance(module, nn.Sequential):
        for name, child in module.named_children():
            x = add_module(graph, child, x, f'{site}.{name}')
        return x
    if isinstance(module, nn.Conv2d) and module.padding_mode == 'zeros' and not isinstance(module.padding, str):
        return _add_conv(graph, module, module.padding, x, site)
    if is_batch_norm(module) and module.running_mean is not None:
        return graph.add(_affine(module), x)
    if isinstance(module, POINTWISE):
        return graph.add(Pointwise(_out_of_place(module)), x)
    if isinstance(module, ChannelGather):
        return graph.add(Gather(module.index), x)
    if isinstance(module, nn.ChannelShuffle):
        order = torch.arange(graph.channels(x)).view(1, -1, 1, 1)
        return graph.add(Gather(module(order).flatten()), x)
    if isinstance(module, ChannelScatterSum):
        return graph.add(ScatterSum(module.index, module.out_channels), x, site=site)
    if isinstance(module, nn.AvgPool2d) and (pool := _average_pool(module)) is not None:
        return graph.add(pool, x)
    channels = graph.channels(x)
    return graph.add(Opaque(module, channels, try_module(module, channels).size(1)), x)


def _average_pool(pool: nn.AvgPool2d) -> Optional[AveragePool]:
    """A pool of square windows; None where its windows are others, padded or partial."""
    size, stride = pool.kernel_size, pool.stride
    plain = pool.padding == 0 and not pool.ceil_mode and pool.divisor_override is None
    return AveragePool(size, stride) if plain and isinstance(size, int) and isinstance(stride, int) else None


def _add_conv(graph: Graph, module: nn.Conv2d, padding: Iterable[int], x: int, site: str) -> int:
    bias = None if module.bias is None else _constant(module.bias)
    conv = Conv(
        _constant(module.weight),
        bias,
        pair(module.stride),
        pair(padding),
        pair(module.dilation),
        module.groups,
    )
    chosen = conv.groups > 1 and not conv.is_depthwise
    return graph.add(conv, x, site=site if chosen else '')


def _affine(norm: nn.modules.batchnorm._BatchNorm) -> Affine:
    inverse = (_constant(norm.get_buffer('running_var')) + norm.eps).rsqrt()
    scale = inverse if norm.weight is None else _constant(norm.weight) * inverse
    shift = -_constant(norm.get_buffer('running_mean')) * scale
    return Affine(scale, shift if norm.bias is None else shift + _constant(norm.bias))


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _out_of_place(module: nn.Module) -> nn.Module:
    copy: Any = deepcopy(module)
    if hasattr(copy, 'inplace'):
        copy.inplace = False
    return copy


def _add_lgc(graph: Graph, layer: LearnedGroupConv, x: int, site: str) -> int:
    for part in (layer.gather, layer.norm, layer.act):
        x = add_module(graph, part, x, '')
    return add_module(graph, layer.scatter, add_module(graph, layer.conv, x, site), '')


def _add_sfr(graph: Graph, layer: SparseFeatureReactivation, x: int, site: str) -> int:
    for part in (layer.norm, layer.act, layer.gather, layer.conv):
        x = add_module(graph, part, x, '')
    return add_module(graph, layer.scatter, x, site)


def _add_group_sparse(graph: Graph, layer: GroupSparseConv2d, x: int, site: str) -> int:
    selects = layer.grouped_side == 'outputs'
    x = add_module(graph, layer.conv, add_module(graph, layer.gather, x, ''), site if selects else '')
    return add_module(graph, layer.scatter, x, '' if selects else site)


def _add_dense_layer(graph: Graph, layer: DenseLayer, x: int, site: str) -> int:
    new = _add_lgc(graph, layer.conv_1, x, f'{site}.conv_1')
    for name in ('norm_2', 'act_2', 'conv_2', 'se'):
        new = add_module(graph, getattr(layer, name), new, f'{site}.{name}')
    if layer.sfr is not None:
        x = graph.add(Add(), _add_sfr(graph, layer.sfr, new, f'{site}.sfr'), x)
    return graph.add(Concat(), x, new)


def _prefix(site: str) -> str:
    return '' if site == ITSELF else site


def _add_dense_stage(graph: Graph, stage: DenseStage, x: int, site: str) -> int:
    x = add_module(graph, stage.pool, x, '')
    for i, layer in enumerate(cast(Iterable[DenseLayer], stage.layers)):
        x = _add_dense_layer(graph, layer, x, f'{_prefix(site)}layers.{i}')
    return x


def _add_shuffle_unit(graph: Graph, unit: ShuffleUnit, x: int, site: str) -> int:
    if unit.branch1 is not None:
        left = add_module(graph, unit.branch1, x, f'{site}.branch1')
        new = add_module(graph, unit.branch2, x, f'{site}.branch2')
    else:
        left = graph.add(Gather(torch.arange(unit.width)), x)
        right = graph.add(Gather(torch.arange(unit.width, graph.channels(x))), x)
        new = add_module(graph, unit.branch2, right, f'{site}.branch2')
    if unit.sfr is not None:
        left = graph.add(Add(), _add_sfr(graph, unit.sfr, new, f'{site}.sfr'), left)
    return add_module(graph, unit.shuffle, graph.add(Concat(), left, new), '')


def _add_shuffle_stage(graph: Graph, stage: ShuffleStage, x: int, site: str) -> int:
    for i, unit in enumerate(cast(Iterable[ShuffleUnit], stage.layers)):
        x = _add_shuffle_unit(graph, unit, x, f'{_prefix(site)}layers.{i}')
    return x


STAGES = (DenseStage, ShuffleStage)
DESCRIBERS: dict[type, Callable[[Graph, Any, int, str], int]] = {
    DenseStage: _add_dense_stage,
    ShuffleStage: _add_shuffle_stage,
    LearnedGroupConv: _add_lgc,
    SparseFeatureReactivation: _add_sfr,
    GroupSparseConv2d: _add_group_sparse,
}
