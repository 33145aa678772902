"""Turns condensed models into graphs: whole trunks and classifiers, their stages, single layers of any model."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, Optional, cast

import torch
from torch import Tensor, nn

from ..layers import (
    ChannelGather,
    ChannelScatterSum,
    GroupSparseConv2d,
    LearnedGroupConv,
    SelectiveLinear,
    SparseFeatureReactivation,
    SpatialGroupConv2d,
    SqueezeExcite,
)
from ..layers.known import DROPOUTS, ELEMENTWISE, is_batch_norm, is_changed, is_class, is_exactly
from ..layers.permute import ChannelShuffle
from ..models.condensenet import DenseLayer, DenseStage
from ..models.shufflenet import ShuffleStage, ShuffleUnit
from . import ops
from .ir import Graph
from .module import PooledSqueezeExcite

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
    return (
        is_exactly(module, nn.Sequential)
        and len(cast(nn.Sequential, module)) > 1
        and all(type(m) in STAGES and builder_of(m) for m in cast(nn.Sequential, module))
    )


def to_graph(module: nn.Module, channels: int) -> Graph:
    """Turn a condensed stage, chain of stages or group-sparse layer, given ``channels``, into a graph.

    Raises:
        TypeError: the module is of another kind than those in :data:`BUILDERS`, and no chain of stages.
    """
    if is_chain_of_stages(module):
        return chain_to_graph(module.named_children(), channels)[0]
    if builder_of(module) is None:
        raise TypeError(f'there is no graph builder for {type(module).__name__}.')
    graph = Graph.of(channels)
    graph.output = add_module(graph, module, graph.output, '' if isinstance(module, tuple(STAGES)) else ITSELF)
    return graph


def chain_to_graph(chain: Iterable[tuple[str, nn.Module]], channels: int) -> tuple[Graph, dict[str, int]]:
    """Turn condensed modules that follow one another, such as the ``parts()`` of a model, into one graph.

    Returns it, in which the layers of a stage have the stage's name in front, and the value that each module gives.
    """
    graph, ends = Graph.of(channels), {}
    for name, module in chain:
        prefix = f'{name}.' if isinstance(module, tuple(STAGES)) else name
        ends[name] = graph.output = add_module(graph, module, graph.output, prefix)
    return graph, ends


def builder_of(module: nn.Module) -> Optional[Builder]:
    """Return the builder of a module's kind; None where there is none, or where anything in the module is changed."""
    build = next((build for kind, build in BUILDERS.items() if is_class(module, kind)), None)
    if build is None or is_changed(module):
        return None
    units = (m for m in module.modules() if isinstance(m, (DenseLayer, ShuffleUnit)))
    return build if all(is_class(unit, DenseLayer, ShuffleUnit) for unit in units) else None


def add_module(graph: Graph, module: nn.Module, x: int, name: str) -> int:
    """Append any condensed module of one map and return its value; what is not known stays opaque.

    ``name`` is for layers whose implementation may be chosen; a stage's ends in a dot, or is ''.
    """
    if (build := builder_of(module)) is not None:
        return build(graph, module, x, name)
    part = cast(Any, module)
    if is_exactly(module, nn.Identity, *DROPOUTS):
        return x
    if is_exactly(module, nn.Sequential):
        for key, child in module.named_children():
            x = add_module(graph, child, x, f'{name}.{key}')
        return x
    if is_exactly(module, nn.Conv2d, SpatialGroupConv2d):
        if part.padding_mode == 'zeros' and not isinstance(part.padding, str):
            return _add_conv(graph, part, part.padding, x, name)
    if is_batch_norm(module) and module.running_mean is not None:
        return graph.add(_affine(module), x)
    if is_exactly(module, *ELEMENTWISE):
        return graph.add(ops.Pointwise(_out_of_place(module)), x)
    if is_exactly(module, ChannelGather):
        return graph.add(ops.Gather(part.index), x)
    if is_exactly(module, nn.ChannelShuffle, ChannelShuffle):
        order = torch.arange(graph.channels(x)).view(1, -1, 1, 1)
        return graph.add(ops.Gather(part(order).flatten()), x)
    if is_exactly(module, ChannelScatterSum):
        return graph.add(ops.ScatterSum(part.index, part.out_channels), x, layer=name)
    if is_exactly(module, SelectiveLinear):
        x = graph.add(ops.Gather(part.index), x)
    channels = graph.channels(x)
    op = _pool(module) or _of_pooled(module) or ops.Opaque(module, channels, ops.try_module(module, channels).size(1))
    return graph.add(op, x)


def _pool(module: nn.Module) -> Optional[ops.Op]:
    """A pool of square windows or of everything; None for other windows, options and modules."""
    pool = cast(Any, module)
    if is_exactly(module, nn.AdaptiveAvgPool2d):
        return ops.GlobalAveragePool() if pool.output_size in (1, (1, 1)) else None
    if not is_exactly(module, nn.AvgPool2d, nn.MaxPool2d) or pool.ceil_mode:
        return None
    size, stride, padding = pool.kernel_size, pool.stride, pool.padding
    if not isinstance(size, int) or not isinstance(stride, int) or not isinstance(padding, int):
        return None
    if isinstance(pool, nn.MaxPool2d):
        return ops.MaxPool(size, stride, padding) if pool.dilation == 1 and not pool.return_indices else None
    return ops.AveragePool(size, stride) if padding == 0 and pool.divisor_override is None else None


def _of_pooled(module: nn.Module) -> Optional[ops.Op]:
    """Squeeze-and-excitation, and what follows a pool of everything; None for other modules."""
    part = cast(Any, module)
    if is_plain_squeeze_excite(module):
        squeeze, excite = (_constant(linear.weight).flatten(1) for linear in (part.fc1, part.fc2))
        in_bytes = all(hasattr(linear, 'input_limits') for linear in (part.fc1, part.fc2))  # see deploy.calibration
        return ops.SqueezeExcitation(module, squeeze, excite, part.act, part.gate, in_bytes)
    if is_exactly(module, nn.Flatten) and (part.start_dim, part.end_dim) == (1, -1):
        return ops.Flatten()
    if is_exactly(module, nn.Linear, SelectiveLinear):
        return ops.Linear(_constant(part.weight), None if part.bias is None else _constant(part.bias))
    return None


def is_plain_squeeze_excite(module: nn.Module) -> bool:
    """Whether a module is squeeze-and-excitation, and every part of it what it was made as."""
    if not is_class(module, SqueezeExcite, PooledSqueezeExcite) or is_changed(module):
        return False
    block = cast(SqueezeExcite, module)
    maps = [is_class(linear, nn.Linear, nn.Conv2d) and linear.bias is None for linear in (block.fc1, block.fc2)]
    return all(maps) and is_class(block.act, nn.ReLU) and is_class(block.gate, *ELEMENTWISE)


def _add_conv(graph: Graph, module: nn.Conv2d, padding: Iterable[int], x: int, name: str) -> int:
    bias = None if module.bias is None else _constant(module.bias)
    stride, padding, dilation = (ops.pair(numbers) for numbers in (module.stride, padding, module.dilation))
    limits = getattr(module, 'input_limits', None)  # see deploy.calibration
    conv = ops.Conv(_constant(module.weight), bias, stride, padding, dilation, module.groups, limits=limits)
    chosen = conv.groups > 1 and not conv.is_depthwise
    return graph.add(conv, x, layer=name if chosen else '')


def _affine(norm: nn.modules.batchnorm._BatchNorm) -> ops.Affine:
    inverse = (_constant(norm.get_buffer('running_var')) + norm.eps).rsqrt()
    scale = inverse if norm.weight is None else _constant(norm.weight) * inverse
    shift = -_constant(norm.get_buffer('running_mean')) * scale
    return ops.Affine(scale, shift if norm.bias is None else shift + _constant(norm.bias))


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _out_of_place(module: nn.Module) -> nn.Module:
    copy: Any = deepcopy(module)
    if hasattr(copy, 'inplace'):
        copy.inplace = False
    return copy


@builds(LearnedGroupConv)
def _add_lgc(graph: Graph, layer: LearnedGroupConv, x: int, name: str) -> int:
    for part in (layer.gather, layer.norm, layer.act, layer.drop):
        x = add_module(graph, part, x, '')
    return add_module(graph, layer.scatter, add_module(graph, layer.conv, x, name), '')


@builds(SparseFeatureReactivation)
def _add_sfr(graph: Graph, layer: SparseFeatureReactivation, x: int, name: str) -> int:
    for part in (layer.norm, layer.act, layer.drop, layer.gather, layer.conv):
        x = add_module(graph, part, x, '')
    return add_module(graph, layer.scatter, x, name)


@builds(GroupSparseConv2d)
def _add_group_sparse(graph: Graph, layer: GroupSparseConv2d, x: int, name: str) -> int:
    selects = layer.grouped_side == 'outputs'
    x = add_module(graph, layer.conv, add_module(graph, layer.gather, x, ''), name if selects else '')
    return add_module(graph, layer.scatter, x, '' if selects else name)


def _add_dense_layer(graph: Graph, layer: DenseLayer, x: int, name: str) -> int:
    new = add_module(graph, layer.conv_1, x, f'{name}.conv_1')
    for part in ('norm_2', 'act_2', 'conv_2', 'se'):
        new = add_module(graph, getattr(layer, part), new, f'{name}.{part}')
    if layer.sfr is not None:
        x = graph.add(ops.Add(), add_module(graph, layer.sfr, new, f'{name}.sfr'), x)
    return graph.add(ops.Concat(), x, new)


@builds(DenseStage, stage=True)
def _add_dense_stage(graph: Graph, stage: DenseStage, x: int, name: str) -> int:
    x = add_module(graph, stage.pool, x, '')
    for i, layer in enumerate(cast(Iterable[DenseLayer], stage.layers)):
        x = _add_dense_layer(graph, layer, x, f'{name}layers.{i}')
    return x


def _add_shuffle_unit(graph: Graph, unit: ShuffleUnit, x: int, name: str) -> int:
    if unit.branch1 is not None:
        left = add_module(graph, unit.branch1, x, f'{name}.branch1')
        new = add_module(graph, unit.branch2, x, f'{name}.branch2')
    else:
        left = graph.add(ops.Gather(torch.arange(unit.width)), x)
        right = graph.add(ops.Gather(torch.arange(unit.width, graph.channels(x))), x)
        new = add_module(graph, unit.branch2, right, f'{name}.branch2')
    if unit.sfr is not None:
        left = graph.add(ops.Add(), add_module(graph, unit.sfr, new, f'{name}.sfr'), left)
    return add_module(graph, unit.shuffle, graph.add(ops.Concat(), left, new), '')


@builds(ShuffleStage, stage=True)
def _add_shuffle_stage(graph: Graph, stage: ShuffleStage, x: int, name: str) -> int:
    for i, unit in enumerate(cast(Iterable[ShuffleUnit], stage.layers)):
        x = _add_shuffle_unit(graph, unit, x, f'{name}layers.{i}')
    return x
