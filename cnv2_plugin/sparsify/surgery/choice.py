"""Chooses among the layers that surgery could change, by the multiply-adds or the latency that the network may take."""

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Literal, Optional, Protocol

import torch
from torch import nn

from ...layers import GroupSparseConv2d
from ...models.modes import in_eval
from .report import LayerPlan, NetworkLatency, ReactivationPlan, ReactivationReport, SkippedLayer, SurgeryReport
from .tracing import Probe

Target = Literal['multiply-adds', 'latency']
Costs = tuple[float, float, float]
"""Multiply-adds or milliseconds of the dense network, of the network as it is, and of the changed one."""

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


def latency_for(target: str, at_most: Optional[float], latency: Optional[LatencyModel]) -> Optional[LatencyModel]:
    """Return what tells the latency where that is the target, None where it is the multiply-adds; check all three."""
    if target not in TARGETS:
        raise ValueError(f'target is {target!r}; it takes {" or ".join(map(repr, TARGETS))}.')
    if at_most is not None and (isinstance(at_most, bool) or not isinstance(at_most, (int, float)) or at_most <= 0):
        raise ValueError(f'at_most is {at_most!r}; it takes a share of the dense network above 0, such as 0.8.')
    if target == 'latency' and latency is None:
        raise ValueError(
            "target='latency' needs something that tells it; give latency=RuntimeLatency('onnxruntime') from "
            'cnv2_plugin.deploy.'
        )
    return latency if target == 'latency' else None


def choose_learned_groups(
    report: SurgeryReport,
    at_most: Optional[float],
    latency: Optional[LatencyModel],
    changed: Callable[[Sequence[LayerPlan]], nn.Module],
) -> SurgeryReport:
    """Cut the report of all layers that could learn groups down to the fewest that save enough.

    Multiply-adds matter where no ``latency`` is given; ``changed`` makes a finished copy with some of the layers.
    """
    layers = list(report.layers)
    if latency is None:
        costs: dict[int, float] = {}
        if at_most is None or at_most < 1:
            costs = {i: p.mult_adds_after - p.mult_adds_before for i, p in enumerate(layers)}
    else:
        times = dict(enumerate(latency.layers(layers)))
        known = {i: time for i, time in times.items() if time is not None}
        for i, (before, after) in known.items():
            layers[i] = replace(layers[i], latency_before=before, latency_after=after)
        costs = {i: after - before for i, (before, after) in known.items() if after < MARGIN * before}
    order = sorted(costs, key=lambda i: costs[i])

    def measure(count: int) -> Costs:
        if latency is None:
            dense = report.mult_adds_before
            return dense, dense, dense + sum(costs[i] for i in order[:count])
        networks = [changed([layers[i] for i in order[:c]]) for c in sorted({0, count})]
        times = latency.networks(networks, report.input_size)
        return times[0], times[0], times[-1]

    first = measure(0) if at_most is not None or not order else (0.0, 0.0, 0.0)
    count, (_, before, after) = _search([costs[i] for i in order], at_most, True, first, measure)
    kept, found = order[:count] if after < before else [], None
    if latency is not None:
        tried = (after, count) if order else (None, 0)
        found = NetworkLatency(latency.runtime, before, before, after if kept else before, *tried)
    skipped = tuple(_left_out(layer, found) for i, layer in enumerate(layers) if i not in kept)
    taken = tuple(layers[i] for i in sorted(kept))
    return replace(report, layers=taken, skipped=report.skipped + skipped, at_most=at_most, latency=found)


def choose_reactivations(
    model: nn.Module,
    report: ReactivationReport,
    seen: Probe,
    input_size: tuple[int, int, int],
    at_most: Optional[float],
    latency: Optional[LatencyModel],
    changed: Callable[[Collection[str]], nn.Module],
) -> ReactivationReport:
    """Cut the report of all possible reactivations down to the cheapest, as many as the network may take.

    Multiply-adds matter where no ``latency`` is given; ``changed`` makes a copy with the reactivations of some names.
    """
    plans = report.layers
    told = [plan.mult_adds for plan in plans] if latency is None else latency.reactivations(plans)
    unknown = max((cost for cost in told if cost is not None), default=float('inf'))
    costs = [unknown if cost is None else cost for cost in told]
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    if latency is None:
        dense: float = report.mult_adds_before
        before = dense - seen.prunable
    else:
        dense, before = latency.networks([_dense_copy(model), finish_at_random(deepcopy(model))], input_size)

    def measure(count: int) -> Costs:
        if latency is None:
            return dense, before, before + sum(costs[i] for i in order[:count])
        candidate = finish_at_random(changed({plans[i].name for i in order[:count]}))
        return dense, before, latency.networks([candidate], input_size)[0]

    count, found = _search([costs[i] for i in order], at_most, False, (dense, before, before), measure)
    return replace(
        report,
        layers=tuple(plans[i] for i in sorted(order[:count])),
        left_out=tuple(plans[i].name for i in sorted(order[count:])),
        at_most=at_most,
        latency=None if latency is None else NetworkLatency(latency.runtime, *found),
    )


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
    first: Costs,
    measure: Callable[[int], Costs],
) -> tuple[int, Costs]:
    """How many changes, which ``costs`` are those of each alone, keep a network within ``at_most`` of the dense one.

    The ``fewest`` that fit (all where none do) or the most, and what the network costs with them.
    """
    every = len(costs)
    if not every:
        return 0, first
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


def _dense_copy(model: nn.Module) -> nn.Module:
    """A copy whose learned groups, as surgery made them, are dense convolutions again."""
    copy = deepcopy(model)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if type(child) is GroupSparseConv2d and not child.deploy and not child.packed:
                setattr(parent, name, child.dense_conv())
    return finish_at_random(copy)


def _left_out(layer: LayerPlan, latency: Optional[NetworkLatency]) -> SkippedLayer:
    if latency is None or layer.latency_before is None or layer.latency_after is None:
        return SkippedLayer(layer.name, 'not needed' if latency is None else f'not measured in {latency.runtime}')
    share = layer.latency_after / layer.latency_before
    if share >= MARGIN:
        return SkippedLayer(layer.name, f'not faster condensed in {latency.runtime}', share)
    reason = 'not needed' if latency.after < latency.before else f'the whole network is not faster in {latency.runtime}'
    return SkippedLayer(layer.name, reason, share)
