"""Chooses among the layers that surgery could change, by the multiply-adds or the latency that the network may take."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from typing import Literal, Optional, Protocol

import torch
from torch import Tensor, nn

from ...layers import GroupSparseConv2d
from ...models.modes import evaluating, in_eval
from .probe import run
from .report import LayerPlan, NetworkLatency, ReactivationPlan, ReactivationReport, SkippedLayer, SurgeryReport

Target = Literal['multiply-adds', 'latency']
Milliseconds = tuple[float, float, float]
"""Latency of the dense network, of the network as it is, and of the changed one."""

TARGETS = ('multiply-adds', 'latency')
MARGIN = 0.98
"""A convolution counts as faster where it takes less than this share of its time: the rest is noise."""
TRIES = 4
"""Networks that are measured at most until the wanted latency is reached."""


class LatencyModel(Protocol):
    """Tells latencies in one runtime, by measuring or by estimating them.

    Attributes:
        runtime: its name.
    """

    runtime: str

    def layers(self, layers: Sequence[LayerPlan]) -> list[Optional[tuple[float, float]]]:
        """Return milliseconds of each convolution, dense and condensed; None where they are unknown."""

    def reactivations(self, layers: Sequence[ReactivationPlan]) -> list[Optional[float]]:
        """Return milliseconds that each added reactivation takes; None where they are unknown."""

    def networks(self, models: Sequence[nn.Module], input_size: tuple[int, ...]) -> list[float]:
        """Return milliseconds of whole finished networks, exported."""


def check_target(target: str, at_most: Optional[float], latency: Optional[LatencyModel]) -> None:
    """Raise where the arguments of a choice do not fit.

    Raises:
        ValueError: if an argument is out of range, or the latency is wanted and nothing tells it.
    """
    if target not in TARGETS:
        raise ValueError(f'target is {target!r}; it takes {" or ".join(map(repr, TARGETS))}.')
    if at_most is not None and (isinstance(at_most, bool) or not isinstance(at_most, (int, float)) or at_most <= 0):
        raise ValueError(f'at_most is {at_most!r}; it takes a share of the dense network above 0, such as 0.8.')
    if target == 'latency' and latency is None:
        raise ValueError(
            "target='latency' needs something that tells it; give latency=RuntimeLatency('onnxruntime') from "
            'cnv2_plugin.deploy.'
        )


def choose_learned_groups(
    report: SurgeryReport,
    target: Target,
    at_most: Optional[float],
    latency: Optional[LatencyModel],
    changed: Callable[[Sequence[LayerPlan]], nn.Module],
) -> SurgeryReport:
    """Cut the report of all layers that could learn groups down to those that save most.

    Args:
        report: on all of them.
        target: what they have to save.
        at_most: share of it that may be left.
        latency: tells the latency where that is the target.
        changed: makes a finished copy of the network with these layers.

    Raises:
        ValueError: as :func:`check_target`.
    """
    check_target(target, at_most, latency)
    if latency is not None and target == 'latency':
        return _learned_groups_by_latency(report, at_most, latency, changed)
    if at_most is None:
        return report
    costs = [layer.mult_adds_after - layer.mult_adds_before for layer in report.layers]
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    room = (at_most - 1) * report.mult_adds_before
    counts = range(len(costs) + 1)
    count = next((c for c in counts if sum(costs[i] for i in order[:c]) <= room), len(costs))
    return _cut_groups(report, report.layers, order[:count], at_most)


def choose_reactivations(
    model: nn.Module,
    report: ReactivationReport,
    input_size: tuple[int, int, int],
    target: Target,
    at_most: Optional[float],
    latency: Optional[LatencyModel],
    changed: Callable[[Collection[str]], nn.Module],
) -> ReactivationReport:
    """Cut the report of all possible reactivations down to the cheapest, as many as the network may take.

    Args:
        model: the network without them.
        report: on all of them.
        input_size: ``(C, H, W)`` of an image.
        target: what ``at_most`` limits.
        at_most: share of the dense network's cost that the network may take.
        latency: tells the latency where that is the target.
        changed: makes a copy of the network with the reactivations of these names.
    """
    if latency is not None and target == 'latency':
        return _reactivations_by_latency(model, report, input_size, at_most, latency, changed)
    if at_most is None:
        return report
    costs = [plan.mult_adds for plan in report.layers]
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    room = at_most * report.mult_adds_before - (report.mult_adds_before - _saved_by_pruning(model, input_size))
    count = max((c for c in range(len(costs) + 1) if sum(costs[i] for i in order[:c]) <= room), default=0)
    return _cut_reactivations(report, order[:count], at_most)


def finish_at_random(model: nn.Module) -> nn.Module:
    """Finish the pruning of every layer with random masks, in place, so that the latency can be measured.

    The latency does not depend on which units are kept, but on their being out of order.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, GroupSparseConv2d) and not module.is_finished():
            module.prune_to(module.num_stages, torch.rand(module.groups, module.num_units, generator=generator))
    return in_eval(model)


def _search(
    costs: Sequence[float],
    at_most: Optional[float],
    fewest: bool,
    first: Milliseconds,
    measure: Callable[[int], Milliseconds],
) -> tuple[int, Milliseconds]:
    """Find how many changes, taken in the order of ``costs``, keep a network within its latency.

    Args:
        costs: milliseconds that each change alone adds, below 0 where it saves.
        at_most: share of the dense network's latency that the changed one may take; None for any.
        fewest: take the fewest changes that fit, and all where none do; otherwise the most that fit.
        first: latencies without any change.
        measure: latencies with the first so many changes.

    Returns:
        The number of changes, and the latencies with them.
    """
    every = len(costs)
    counts = list(range(1, every + 1) if fewest else range(every, 0, -1))
    (dense, before, _), realised = first, 1.0
    for attempt in range(TRIES):
        room = float('inf') if at_most is None else at_most * dense - before
        fitting = [count for count in counts if realised * sum(costs[:count]) <= room]
        if fewest and (at_most is None or not fitting or attempt == TRIES - 1):
            fitting = [every]
        if not fitting:
            break
        count = fitting[0]
        dense, before, after = measure(count)
        if at_most is None or after - before <= at_most * dense - before or (fewest and count == every):
            return count, (dense, before, after)
        counts = counts[counts.index(count) + 1 :]
        realised = max((after - before) / (sum(costs[:count]) or 1e-9), 0.1)
    return 0, first


def _learned_groups_by_latency(
    report: SurgeryReport,
    at_most: Optional[float],
    latency: LatencyModel,
    changed: Callable[[Sequence[LayerPlan]], nn.Module],
) -> SurgeryReport:
    times = latency.layers(report.layers)
    layers = [
        layer if time is None else replace(layer, latency_before=time[0], latency_after=time[1])
        for layer, time in zip(report.layers, times)
    ]
    costs = {i: time[1] - time[0] for i, time in enumerate(times) if time is not None and time[1] < MARGIN * time[0]}
    order = sorted(costs, key=lambda i: costs[i])

    def measure(count: int) -> Milliseconds:
        networks = [changed([]), changed([layers[i] for i in order[:count]])] if count else [changed([])]
        before, *after = latency.networks(networks, report.input_size)
        return before, before, after[0] if after else before

    first = measure(0) if at_most is not None or not order else (0.0, 0.0, 0.0)
    if not order:
        return _cut_groups(report, layers, [], at_most, NetworkLatency(latency.runtime, *first))
    count, (_, before, after) = _search([costs[i] for i in order], at_most, True, first, measure)
    kept = order[:count] if after < before else []
    found = NetworkLatency(latency.runtime, before, before, after if kept else before, after, count)
    return _cut_groups(report, layers, kept, at_most, found)


def _reactivations_by_latency(
    model: nn.Module,
    report: ReactivationReport,
    input_size: tuple[int, int, int],
    at_most: Optional[float],
    latency: LatencyModel,
    changed: Callable[[Collection[str]], nn.Module],
) -> ReactivationReport:
    told = latency.reactivations(report.layers)
    unknown = max((cost for cost in told if cost is not None), default=float('inf'))
    costs = [unknown if cost is None else cost for cost in told]
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    dense, before = latency.networks([_dense_copy(model), finish_at_random(deepcopy(model))], input_size)

    def measure(count: int) -> Milliseconds:
        candidate = finish_at_random(changed({report.layers[i].name for i in order[:count]}))
        (after,) = latency.networks([candidate], input_size)
        return dense, before, after

    first = dense, before, before
    count, found = _search([costs[i] for i in order], at_most, False, first, measure)
    return replace(_cut_reactivations(report, order[:count], at_most), latency=NetworkLatency(latency.runtime, *found))


def _saved_by_pruning(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-adds of one image that the masked layers of a network will save once pruned."""
    saved = 0

    def visit(layer: GroupSparseConv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal saved
        share = 1 - layer.kept_per_group() / layer.num_units
        positions = output.numel() // layer.out_channels
        saved += round(layer.in_channels * layer.out_channels * share) * positions

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for module in model.modules():
            if isinstance(module, GroupSparseConv2d) and not module.deploy:
                hooks.enter_context(module.register_forward_hook(visit))
        run(model, input_size)
    return saved


def _dense_copy(model: nn.Module) -> nn.Module:
    """A copy whose learned groups, as surgery made them, are dense convolutions again."""
    copy = deepcopy(model)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if type(child) is GroupSparseConv2d and not child.deploy and not child.packed:
                setattr(parent, name, child.conv)
    return finish_at_random(copy)


def _cut_groups(
    report: SurgeryReport,
    layers: Sequence[LayerPlan],
    kept: Sequence[int],
    at_most: Optional[float],
    latency: Optional[NetworkLatency] = None,
) -> SurgeryReport:
    """The report with these layers only; the others are skipped, with the reason."""
    skipped = tuple(_left_out(layer, latency) for i, layer in enumerate(layers) if i not in kept)
    taken = tuple(layers[i] for i in sorted(kept))
    return replace(report, layers=taken, skipped=report.skipped + skipped, at_most=at_most, latency=latency)


def _left_out(layer: LayerPlan, latency: Optional[NetworkLatency]) -> SkippedLayer:
    if latency is None or layer.latency_before is None or layer.latency_after is None:
        return SkippedLayer(layer.name, 'not needed' if latency is None else f'not measured in {latency.runtime}')
    share = layer.latency_after / layer.latency_before
    if share >= MARGIN:
        return SkippedLayer(layer.name, f'not faster condensed in {latency.runtime}', share)
    reason = 'not needed' if latency.after < latency.before else f'the whole network is not faster in {latency.runtime}'
    return SkippedLayer(layer.name, reason, share)


def _cut_reactivations(report: ReactivationReport, kept: Sequence[int], at_most: Optional[float]) -> ReactivationReport:
    layers = tuple(report.layers[i] for i in sorted(kept))
    left_out = tuple(plan.name for i, plan in enumerate(report.layers) if i not in kept)
    return replace(report, layers=layers, left_out=left_out, at_most=at_most)
