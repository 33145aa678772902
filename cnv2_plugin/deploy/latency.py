"""What surgery is worth in a runtime: single layers and whole networks, measured on this machine."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Optional, Union

import torch
from torch import Tensor, nn

from ..graph.builder import to_graph
from ..graph.choice import RUNTIME_WORKAROUNDS, choose
from ..graph.implementations import clean_up, implement
from ..graph.module import LoweredGraph
from ..layers import GroupSparseConv2d, SparseFeatureReactivation
from ..sparsify import LayerPlan, ReactivationPlan
from ..sparsify.surgery.choice import finish_at_random
from .lower import lower
from .runtimes import runtime_named
from .runtimes.onnxruntime import to_proto
from .timing import Progress, interleave

if TYPE_CHECKING:
    from onnx import ModelProto

Pair = tuple[float, float]

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

    def layers(self, layers: Sequence[LayerPlan]) -> list[Optional[Pair]]:
        """Milliseconds of each convolution, dense and condensed, with its neighbours; None where time ran out."""
        return self._within_budget(layers, self._layer, lambda layer: -layer.mult_adds_before)

    def reactivations(self, layers: Sequence[ReactivationPlan]) -> list[Optional[float]]:
        """Milliseconds that each added reactivation takes; None where time ran out."""
        known = self._within_budget(layers, self._reactivation, lambda layer: -layer.mult_adds)
        return [None if found is None else max(found[1] - found[0], 0.0) for found in known]

    def networks(self, models: Sequence[nn.Module], input_size: tuple[int, ...]) -> list[float]:
        """Milliseconds of whole networks for one image, exported in their fastest form.

        Raises:
            ValueError: a network cannot be exported.
        """
        image = _image(*input_size)
        found = self._measure([_exported(model, image, self.runtime) for model in models], image)
        self.progress(f'whole network: {", ".join(f"{each:.3f} ms" for each in found)}')
        return found

    def _within_budget(self, layers: Sequence[Any], measure: Callable, order: Callable) -> list[Optional[Pair]]:
        deadline = time.monotonic() + self.budget
        for layer in sorted(layers, key=order):
            if _shape(layer) not in self._known and time.monotonic() < deadline:
                before, after = self._known[_shape(layer)] = measure(layer)
                self.progress(f'{layer.name}: {before:.3f} ms before, {after:.3f} ms after')
        return [self._known.get(_shape(layer)) for layer in layers]

    def _layer(self, layer: LayerPlan) -> Pair:
        shape, stride = (layer.in_channels, layer.out_channels), (layer.stride[0], layer.stride[1])
        sparse = GroupSparseConv2d(*shape, layer.groups, layer.factor, stride=stride)
        parts = nn.Conv2d(*shape, 1, stride), self._lowered(sparse, layer.input_size)
        before, after = (_depthwise(channels) for channels in shape)
        contenders = [nn.Sequential(before, part, nn.ReLU(), after) for part in parts]
        return self._measure_pair(contenders, _image(layer.in_channels, *layer.input_size))

    def _reactivation(self, layer: ReactivationPlan) -> Pair:
        sparse = SparseFeatureReactivation(layer.in_channels, layer.out_channels, layer.groups, layer.factor)
        contenders = [_Reused(part, layer) for part in (None, self._lowered(sparse, layer.size))]
        return self._measure_pair(contenders, _image(layer.in_channels + layer.out_channels, *layer.size))

    def _lowered(self, layer: GroupSparseConv2d, size: tuple[int, ...]) -> LoweredGraph:
        """A layer as it is exported once it is pruned."""
        finish_at_random(layer)
        layer.switch_to_deploy()
        graph = to_graph(layer, layer.in_channels)
        rewritten, _ = implement(graph, choose(graph, (size[0], size[1]), self.runtime))
        if self.runtime in RUNTIME_WORKAROUNDS:
            clean_up(rewritten, [RUNTIME_WORKAROUNDS[self.runtime]])
        return LoweredGraph(rewritten)

    def _measure_pair(self, modules: Iterable[nn.Module], image: Tensor) -> Pair:
        first, second = self._measure([to_proto(module, image, trace=True) for module in modules], image)
        return first, second

    def _measure(self, protos: Iterable['ModelProto'], image: Tensor) -> list[float]:
        load = runtime_named(self.runtime).module().load
        runs = [load(proto.SerializeToString(), self.threads) for proto in protos]
        runners = {i: partial(run, image) for i, run in enumerate(runs)}
        clock = time.process_time if self.threads == 1 else time.perf_counter
        return [timing.min for timing in interleave(runners, self.rounds, warmup=3, clock=clock).values()]


class _Reused(nn.Module):
    """Later and earlier features as one map, of which the latter are updated, if there is a reactivation for it."""

    def __init__(self, reactivation: Optional[nn.Module], layer: ReactivationPlan) -> None:
        super().__init__()
        self.before, self.after = (_depthwise(layer.in_channels + layer.out_channels) for _ in range(2))
        self.reactivation, self.split = reactivation, layer.in_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        later, earlier = x[:, : self.split], x[:, self.split :]
        if self.reactivation is not None:
            earlier = earlier + self.reactivation(later)
        return self.after(torch.cat((earlier, later), 1))


def _shape(layer: Union[LayerPlan, ReactivationPlan]) -> tuple:
    size = (layer.input_size, layer.stride) if isinstance(layer, LayerPlan) else layer.size
    return layer.in_channels, layer.out_channels, layer.groups, layer.factor, size


def _image(*size: int) -> Tensor:
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(0))


def _depthwise(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.ReLU())


def _exported(model: nn.Module, image: Tensor, runtime: str) -> 'ModelProto':
    """A finished network as ONNX; raises ``ValueError`` where it cannot be exported."""
    try:
        channels, height, width = image.shape[1:]
        return to_proto(lower(model, (channels, height, width), runtime), image)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f'{type(model).__name__} cannot be exported to be measured in {runtime} ({reason}); take '
            f"target='multiply-adds'."
        ) from error
