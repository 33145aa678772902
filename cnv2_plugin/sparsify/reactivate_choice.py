"""Which reactivations are added: the cheapest, as many as the network may cost."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor, nn

from ..layers import GroupSparseConv2d
from .reactivate_report import AddedLatency, ReactivationReport
from .surgery.choice import TRIES, LatencyModel, Target
from .surgery.convert import finish_at_random
from .surgery.probe import evaluating, run


def choose_reactivations(
    model: nn.Module,
    report: ReactivationReport,
    input_size: tuple[int, int, int],
    target: Target,
    at_most: Optional[float],
    latency: Optional[LatencyModel],
    changed: Callable[[Collection[str]], nn.Module],
) -> ReactivationReport:
    """The report of all possible reactivations, cut down to those that are added.

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
        return _by_latency(model, report, input_size, at_most, latency, changed)
    if at_most is None:
        return report
    costs = [plan.mult_adds for plan in report.layers]
    room = at_most * report.mult_adds_before - (report.mult_adds_before - saved_by_pruning(model, input_size))
    return _cut(report, _cheapest(costs, room), at_most)


def saved_by_pruning(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-adds of one image that the masked layers of a network will save once pruned."""
    saved = 0

    def visit(layer: GroupSparseConv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal saved
        share = 1 - layer.kept_per_group() / layer.num_units()
        positions = output.numel() // layer.out_channels
        saved += round(layer.in_channels * layer.out_channels * share) * positions

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for module in model.modules():
            if isinstance(module, GroupSparseConv2d) and not module.deploy:
                hooks.enter_context(module.register_forward_hook(visit))
        run(model, input_size)
    return saved


def _by_latency(
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
    dense, before = latency.networks([_dense_copy(model), finish_at_random(deepcopy(model))], input_size)
    room = float('inf') if at_most is None else at_most * dense - before
    realised = 1.0
    for _ in range(TRIES):
        kept = _cheapest(costs, room / realised)
        if not kept:
            break
        candidate = finish_at_random(changed({report.layers[i].name for i in kept}))
        (after,) = latency.networks([candidate], input_size)
        if at_most is None or after <= at_most * dense:
            found = AddedLatency(latency.runtime, dense, before, after)
            return replace(_cut(report, kept, at_most), latency=found)
        realised = max((after - before) / max(sum(costs[i] for i in kept), 1e-9), 1.05 * realised)
    return replace(_cut(report, [], at_most), latency=AddedLatency(latency.runtime, dense, before, before))


def _dense_copy(model: nn.Module) -> nn.Module:
    """A copy whose learned groups, as surgery made them, are dense convolutions again."""
    copy = deepcopy(model)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if type(child) is GroupSparseConv2d and not child.deploy and not child.packed:
                setattr(parent, name, child.conv)
    return finish_at_random(copy)


def _cheapest(costs: Sequence[float], room: float) -> list[int]:
    """Positions of the cheapest that fit into the room together, in ascending order."""
    kept = []
    for i in sorted(range(len(costs)), key=lambda i: costs[i]):
        room -= costs[i]
        if room < 0:
            break
        kept.append(i)
    return sorted(kept)


def _cut(report: ReactivationReport, kept: Sequence[int], at_most: Optional[float]) -> ReactivationReport:
    layers = tuple(report.layers[i] for i in kept)
    left_out = tuple(plan.name for i, plan in enumerate(report.layers) if i not in kept)
    after = report.mult_adds_before + sum(plan.mult_adds for plan in layers)
    return replace(report, layers=layers, mult_adds_after=after, left_out=left_out, at_most=at_most)
