"""Turns parts of condensed models into graphs: stages of our trunks, and single group-sparse layers of any model."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, Optional, cast

import torch
from torch import Tensor, nn

from ..layers import ChannelGather, ChannelScatterSum, GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation
from ..layers.norm import is_batch_norm
from ..models.condensenet import DenseLayer, DenseStage
from ..models.shufflenet import ShuffleStage, ShuffleUnit
from .ir import (
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
"""Name of a layer that is a graph by itself, not part of a stage."""

Builder = Callable[[Graph, Any, int, str], int]
BUILDERS: dict[type[nn.Module], Builder] = {}
"""Functions that append a module of a kind to a graph: graph, module, its input, its name -> its output."""
STAGES: set[type[nn.Module]] = set()
"""Kinds of modules that are stages of a trunk; several in a row become one graph."""


def builds(kind: type[nn.Module], stage: bool = False) -> Callable[[Builder], Builder]:
    """Register a builder for a kind of module; this is how a family says what its stages compute.

    Args:
        kind: class of the modules.
        stage: they are stages of a trunk.
    """

    def register(builder: Builder) -> Builder:
        BUILDERS[kind] = builder
        if stage:
            STAGES.add(kind)
        return builder

    return register


def is_chain_of_stages(module: nn.Module) -> bool:
    """Return whether a module is nothing but several stages one after the other."""
    return isinstance(module, nn.Sequential) and len(module) > 1 and all(type(m) in STAGES for m in module)


def to_graph(module: nn.Module, channels: int) -> Graph:
    """Turn a condensed module into a graph.

    Args:
        module: stage, chain of stages, or group-sparse layer.
        channels: channels of its input.

    Raises:
        TypeError: the module is of another kind than those in :data:`BUILDERS`, and no chain of stages.
    """
    graph = Graph.of(channels)
    if is_chain_of_stages(module):
        for name, stage in module.named_children():
            graph.output = BUILDERS[type(stage)](graph, stage, graph.output, f'{name}.')
        return graph
    for kind, build in BUILDERS.items():
        if isinstance(module, kind):
            graph.output = build(graph, module, graph.output, ITSELF)
            return graph
    raise TypeError(f'there is no graph builder for {type(module).__name__}.')


def add_module(graph: Graph, module: nn.Module, x: int, name: str) -> int:
    """Append any module of one map; what is not known stays opaque."""
    if isinstance(module, (nn.Identity, nn.Dropout)):
        return x
    if isinstance(module, nn.Sequential):
        for key, child in module.named_children():
            x = add_module(graph, child, x, f'{name}.{key}')
        return x
    if isinstance(module, nn.Conv2d) and module.padding_mode == 'zeros' and not isinstance(module.padding, str):
        return _add_conv(graph, module, module.padding, x, name)
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
        return graph.add(ScatterSum(module.index, module.out_channels), x, layer=name)
    if isinstance(module, nn.AvgPool2d) and (pool := _average_pool(module)) is not None:
        return graph.add(pool, x)
    channels = graph.channels(x)
    return graph.add(Opaque(module, channels, try_module(module, channels).size(1)), x)


def _average_pool(pool: nn.AvgPool2d) -> Optional[AveragePool]:
    """A pool of square windows; None where its windows are others, padded or partial."""
    size, stride = pool.kernel_size, pool.stride
    plain = pool.padding == 0 and not pool.ceil_mode and pool.divisor_override is None
    return AveragePool(size, stride) if plain and isinstance(size, int) and isinstance(stride, int) else None


def _add_conv(graph: Graph, module: nn.Conv2d, padding: Iterable[int], x: int, name: str) -> int:
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
    return graph.add(conv, x, layer=name if chosen else '')


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


@builds(LearnedGroupConv)
def _add_lgc(graph: Graph, layer: LearnedGroupConv, x: int, name: str) -> int:
    for part in (layer.gather, layer.norm, layer.act):
        x = add_module(graph, part, x, '')
    return add_module(graph, layer.scatter, add_module(graph, layer.conv, x, name), '')


@builds(SparseFeatureReactivation)
def _add_sfr(graph: Graph, layer: SparseFeatureReactivation, x: int, name: str) -> int:
    for part in (layer.norm, layer.act, layer.gather, layer.conv):
        x = add_module(graph, part, x, '')
    return add_module(graph, layer.scatter, x, name)


@builds(GroupSparseConv2d)
def _add_group_sparse(graph: Graph, layer: GroupSparseConv2d, x: int, name: str) -> int:
    selects = layer.grouped_side == 'outputs'
    x = add_module(graph, layer.conv, add_module(graph, layer.gather, x, ''), name if selects else '')
    return add_module(graph, layer.scatter, x, '' if selects else name)


def _add_dense_layer(graph: Graph, layer: DenseLayer, x: int, name: str) -> int:
    new = _add_lgc(graph, layer.conv_1, x, f'{name}.conv_1')
    for part in ('norm_2', 'act_2', 'conv_2', 'se'):
        new = add_module(graph, getattr(layer, part), new, f'{name}.{part}')
    if layer.sfr is not None:
        x = graph.add(Add(), _add_sfr(graph, layer.sfr, new, f'{name}.sfr'), x)
    return graph.add(Concat(), x, new)


def _prefix(name: str) -> str:
    return '' if name == ITSELF else name


@builds(DenseStage, stage=True)
def _add_dense_stage(graph: Graph, stage: DenseStage, x: int, name: str) -> int:
    x = add_module(graph, stage.pool, x, '')
    for i, layer in enumerate(cast(Iterable[DenseLayer], stage.layers)):
        x = _add_dense_layer(graph, layer, x, f'{_prefix(name)}layers.{i}')
    return x


def _add_shuffle_unit(graph: Graph, unit: ShuffleUnit, x: int, name: str) -> int:
    if unit.branch1 is not None:
        left = add_module(graph, unit.branch1, x, f'{name}.branch1')
        new = add_module(graph, unit.branch2, x, f'{name}.branch2')
    else:
        left = graph.add(Gather(torch.arange(unit.width)), x)
        right = graph.add(Gather(torch.arange(unit.width, graph.channels(x))), x)
        new = add_module(graph, unit.branch2, right, f'{name}.branch2')
    if unit.sfr is not None:
        left = graph.add(Add(), _add_sfr(graph, unit.sfr, new, f'{name}.sfr'), left)
    return add_module(graph, unit.shuffle, graph.add(Concat(), left, new), '')


@builds(ShuffleStage, stage=True)
def _add_shuffle_stage(graph: Graph, stage: ShuffleStage, x: int, name: str) -> int:
    for i, unit in enumerate(cast(Iterable[ShuffleUnit], stage.layers)):
        x = _add_shuffle_unit(graph, unit, x, f'{_prefix(name)}layers.{i}')
    return x
