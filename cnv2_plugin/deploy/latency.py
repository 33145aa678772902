"""What surgery is worth in a runtime: single layers and whole networks, measured on this machine."""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Optional, Union

import torch
from torch import nn

from ..graph.builder import add_module, to_graph
from ..graph.choice import RUNTIME_WORKAROUNDS, choose
from ..graph.implementations import implement
from ..graph.ir import Add, Concat, Gather, Graph, Input
from ..graph.rewrites import clean_up
from ..layers import GroupSparseConv2d, SparseFeatureReactivation
from ..sparsify import LayerPlan, ReactivationPlan
from ..sparsify.surgery import finish_at_random
from .lower import lower
from .onnx_graph import to_onnx
from .runtimes import runtime_named
from .runtimes.onnxruntime import to_proto
from .timing import Progress, interleave

if TYPE_CHECKING:
    from onnx import ModelProto


RUNTIMES = ('onnxruntime', 'openvino')
"""Runtimes in which latency can be measured."""


class RuntimeLatency:
    """Measures layers and networks in a runtime, for ``to_learned_groups(..., target='latency', latency=...)``.

    A layer is measured as it would be exported, between two depthwise convolutions: runtimes store features in blocks
    of channels between convolutions, and a gather of channels ends that, which a layer by itself would not show. Dense
    and condensed layers take turns, and the shortest round counts; with one thread it is processor time, which other
    programs disturb less. Layers of one shape are measured once.

    Args:
        runtime: ``'onnxruntime'`` or ``'openvino'``.
        threads: of the runtime.
        rounds: of each measurement.
        budget: seconds for the layers; those with the most multiply-adds come first, and what is not measured by then
            stays unknown. Whole networks are exported and measured beyond it.
        progress: called with a short text now and then.

    Attributes:
        runtime: as given.

    Raises:
        ValueError: an unknown runtime, or a count below 1.
    """

    def __init__(
        self,
        runtime: str = 'onnxruntime',
        threads: int = 1,
        rounds: int = 30,
        budget: float = 60.0,
        progress: Optional[Progress] = None,
    ) -> None:
        if runtime not in RUNTIMES:
            raise ValueError(f'latency can be measured in {" and ".join(RUNTIMES)}, not in {runtime!r}.')
        if threads < 1 or rounds < 1:
            raise ValueError(f'threads is {threads} and rounds is {rounds}; both take whole numbers of at least 1.')
        self.runtime = runtime
        self.threads = threads
        self.rounds = rounds
        self.budget = budget
        self.progress = progress or (lambda text: None)
        self._known: dict[tuple, tuple[float, float]] = {}

    def layers(self, layers: Sequence[LayerPlan]) -> list[Optional[tuple[float, float]]]:
        """Milliseconds of each convolution, dense and condensed, with its neighbours; None where time ran out."""
        deadline = time.monotonic() + self.budget
        for layer in sorted(layers, key=lambda layer: -layer.mult_adds_before):
            if _shape(layer) not in self._known and time.monotonic() < deadline:
                dense, condensed = self._layer(layer)
                self._known[_shape(layer)] = dense, condensed
                self.progress(f'{layer.name}: {dense:.3f} ms dense, {condensed:.3f} ms condensed')
        return [self._known.get(_shape(layer)) for layer in layers]

    def reactivations(self, layers: Sequence[ReactivationPlan]) -> list[Optional[float]]:
        """Milliseconds that each added reactivation takes; None where time ran out."""
        deadline = time.monotonic() + self.budget
        for layer in sorted(layers, key=lambda layer: -layer.mult_adds):
            if _sizes(layer) not in self._known and time.monotonic() < deadline:
                without, added = self._reactivation(layer)
                self._known[_sizes(layer)] = without, added
                self.progress(f'{layer.name}: {added - without:.3f} ms')
        known = [self._known.get(_sizes(layer)) for layer in layers]
        return [None if found is None else max(found[1] - found[0], 0.0) for found in known]

    def networks(self, models: Sequence[nn.Module], input_size: tuple[int, ...]) -> list[float]:
        """Milliseconds of whole networks for one image, exported in their fastest form.

        Raises:
            ValueError: a network cannot be exported.
        """
        image = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
        found = self._measure([_exported(model, image, self.runtime) for model in models], image)
        self.progress(f'whole network: {", ".join(f"{each:.3f} ms" for each in found)}')
        return found

    def _layer(self, layer: LayerPlan) -> tuple[float, float]:
        image = torch.randn(1, layer.in_channels, *layer.input_size, generator=torch.Generator().manual_seed(0))
        dense = nn.Conv2d(layer.in_channels, layer.out_channels, 1, (layer.stride[0], layer.stride[1]))
        sparse = GroupSparseConv2d(
            layer.in_channels, layer.out_channels, layer.groups, layer.factor, stride=(layer.stride[0], layer.stride[1])
        )
        finish_at_random(sparse)
        sparse.switch_to_deploy()
        lowered = self._lowered(sparse, layer.in_channels, layer.input_size)
        contenders = [_between_neighbours(part, layer) for part in (dense, lowered)]
        before, after = self._measure([to_onnx(graph, tuple(image.shape)) for graph in contenders], image)
        return before, after

    def _reactivation(self, layer: ReactivationPlan) -> tuple[float, float]:
        """Milliseconds without and with it: later and earlier features as one map, of which the latter are updated."""
        sparse = SparseFeatureReactivation(layer.in_channels, layer.out_channels, layer.groups, layer.factor)
        finish_at_random(sparse)
        sparse.switch_to_deploy()
        alone = self._lowered(sparse, layer.in_channels, layer.size)
        contenders = [_reused(part, layer) for part in (None, alone)]
        shape = (1, layer.in_channels + layer.out_channels, *layer.size)
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        without, added = self._measure([to_onnx(graph, shape) for graph in contenders], image)
        return without, added

    def _lowered(self, condensed: nn.Module, channels: int, size: tuple[int, ...]) -> Graph:
        """A condensed layer as it is exported."""
        graph = to_graph(condensed, channels)
        rewritten, _ = implement(graph, choose(graph, (size[0], size[1]), self.runtime))
        if self.runtime in RUNTIME_WORKAROUNDS:
            clean_up(rewritten, [RUNTIME_WORKAROUNDS[self.runtime]])
        return rewritten

    def _measure(self, protos: Iterable['ModelProto'], image: torch.Tensor) -> list[float]:
        load = runtime_named(self.runtime).module().load
        runs = [load(proto.SerializeToString(), self.threads) for proto in protos]
        runners = {i: partial(run, image) for i, run in enumerate(runs)}
        clock = time.process_time if self.threads == 1 else time.perf_counter
        return [timing.min for timing in interleave(runners, self.rounds, warmup=3, clock=clock).values()]


def _shape(layer: LayerPlan) -> tuple:
    return layer.in_channels, layer.out_channels, layer.groups, layer.factor, layer.input_size, layer.stride


def _sizes(layer: ReactivationPlan) -> tuple:
    return layer.in_channels, layer.out_channels, layer.groups, layer.factor, layer.size


def _between_neighbours(part: Union[nn.Module, Graph], layer: LayerPlan) -> Graph:
    """A convolution, or the graph of a condensed one, between two depthwise convolutions and activations."""
    graph = Graph.of(layer.in_channels)
    x = add_module(graph, _depthwise(layer.in_channels), graph.output, '')
    x = add_module(graph, part, x, '') if isinstance(part, nn.Module) else _append(graph, part, x)
    x = add_module(graph, nn.ReLU(), x, '')
    graph.output = add_module(graph, _depthwise(layer.out_channels), x, '')
    return graph


def _reused(part: Optional[Graph], layer: ReactivationPlan) -> Graph:
    """Later features ``(C1)`` and earlier ones ``(C2)``, concatenated again, with a reactivation or without."""
    channels = layer.in_channels + layer.out_channels
    graph = Graph.of(channels)
    x = add_module(graph, _depthwise(channels), graph.output, '')
    later = graph.add(Gather(torch.arange(layer.in_channels)), x)
    earlier = graph.add(Gather(torch.arange(layer.in_channels, channels)), x)
    if part is not None:
        earlier = graph.add(Add(), earlier, _append(graph, part, later))
    graph.output = add_module(graph, _depthwise(channels), graph.add(Concat(), earlier, later), '')
    return graph


def _depthwise(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.ReLU())


def _append(graph: Graph, part: Graph, x: int) -> int:
    """Append all of one graph to another; returns its result."""
    names: dict[int, int] = {}
    for node in part.ordered():
        names[node.id] = x if isinstance(node.op, Input) else graph.add(node.op, *(names[i] for i in node.inputs))
    return names[part.output]


def _exported(model: nn.Module, image: torch.Tensor, runtime: str) -> 'ModelProto':
    """A finished network as ONNX.

    Raises:
        ValueError: it cannot be exported.
    """
    try:
        channels, height, width = image.shape[1:]
        return to_proto(lower(model, (channels, height, width), runtime), image)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f'{type(model).__name__} cannot be exported to be measured in {runtime} ({reason}); take '
            f"target='multiply-adds'."
        ) from error
