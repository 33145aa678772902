"""Which of the layers that could learn groups do: those that save most, until the network costs as little as wanted."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Optional, Protocol

from torch import nn

from .report import LayerPlan, NetworkLatency, SkippedLayer, SurgeryReport

if TYPE_CHECKING:
    from ..reactivate_report import ReactivationPlan

Target = Literal['multiply-adds', 'latency']

TARGETS = ('multiply-adds', 'latency')
MARGIN = 0.98
"""A convolution counts as faster where it takes less than this share of its time: the rest is noise."""
TRIES = 4
"""Networks that are measured at most until the wanted latency is reached."""

Changed = Callable[[Sequence[LayerPlan]], nn.Module]


class LatencyModel(Protocol):
    """Tells latencies in one runtime, by measuring them or by a model of them.

    Attributes:
        runtime: its name.
    """

    runtime: str

    def layers(self, layers: Sequence[LayerPlan]) -> list[Optional[tuple[float, float]]]:
        """Milliseconds of each convolution, dense and condensed; None where they are unknown."""

    def reactivations(self, layers: Sequence['ReactivationPlan']) -> list[Optional[float]]:
        """Milliseconds that each added reactivation takes; None where they are unknown."""

    def networks(self, models: Sequence[nn.Module], input_size: tuple[int, ...]) -> list[float]:
        """Milliseconds of whole finished networks, exported."""


def choose(
    report: SurgeryReport,
    target: Target,
    at_most: Optional[float],
    latency: Optional[LatencyModel],
    changed: Changed,
) -> SurgeryReport:
    """The report of all layers that could learn groups, cut down to those that do.

    Args:
        report: on all of them.
        target: what they have to save.
        at_most: share of it that may be left.
        latency: tells the latency where that is the target.
        changed: makes a finished copy of the network with these layers.

    Raises:
        ValueError: an argument is out of range, or the latency is asked for and nothing tells it.
    """
    check_target(target, at_most, latency)
    if latency is not None and target == 'latency':
        return _by_latency(report, at_most, latency, changed)
    if at_most is None:
        return report
    savings = [layer.mult_adds_before - layer.mult_adds_after for layer in report.layers]
    order = sorted(range(len(savings)), key=lambda i: -savings[i])
    count = _enough([savings[i] for i in order], (1 - at_most) * report.mult_adds_before)
    return _cut(report, report.layers, order[:count], at_most)


def check_target(target: str, at_most: Optional[float], latency: Optional[LatencyModel]) -> None:
    """Raise where the arguments of a choice do not fit.

    Raises:
        ValueError: an argument is out of range, or the latency is asked for and nothing tells it.
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


def _by_latency(
    report: SurgeryReport, at_most: Optional[float], latency: LatencyModel, changed: Changed
) -> SurgeryReport:
    times = latency.layers(report.layers)
    layers = [
        layer if time is None else replace(layer, latency_before=time[0], latency_after=time[1])
        for layer, time in zip(report.layers, times)
    ]
    savings = [0.0 if time is None or time[1] >= MARGIN * time[0] else time[0] - time[1] for time in times]
    order = sorted((i for i, saving in enumerate(savings) if saving > 0), key=lambda i: -savings[i])
    before = after = 0.0
    if at_most is not None or not order:
        (before,) = latency.networks([changed([])], report.input_size)
    if not order:
        return _cut(report, layers, [], at_most, NetworkLatency(latency.runtime, before, before))
    gains = [savings[i] for i in order]
    count, realised = 0, 1.0
    for attempt in range(TRIES):
        count = min(count + 1, len(order))
        if at_most is None or attempt == TRIES - 1:
            count = len(order)
        else:
            count = max(count, _enough(gains, (1 - at_most) * before / realised))
        before, after = latency.networks([changed([]), changed([layers[i] for i in order[:count]])], report.input_size)
        if at_most is None or count == len(order) or after <= at_most * before:
            break
        realised = max((before - after) / sum(gains[:count]), 0.1)
    kept = order[:count] if after < before else []
    found = NetworkLatency(latency.runtime, before, after if kept else before, after, count)
    return _cut(report, layers, kept, at_most, found)


def _cut(
    report: SurgeryReport,
    layers: Sequence[LayerPlan],
    kept: Sequence[int],
    at_most: Optional[float],
    latency: Optional[NetworkLatency] = None,
) -> SurgeryReport:
    """The report with the kept layers only; the others are skipped, with the reason."""
    skipped = [_left_out(layer, latency) for i, layer in enumerate(layers) if i not in kept]
    return SurgeryReport.of(
        [layers[i] for i in sorted(kept)], [*report.skipped, *skipped], report.mult_adds_before, report.input_size,
        at_most=at_most, latency=latency,
    )  # fmt: skip


def _left_out(layer: LayerPlan, latency: Optional[NetworkLatency]) -> SkippedLayer:
    if latency is None or layer.latency_before is None or layer.latency_after is None:
        return SkippedLayer(layer.name, 'not needed' if latency is None else f'not measured in {latency.runtime}')
    share = layer.latency_after / layer.latency_before
    if share >= MARGIN:
        return SkippedLayer(layer.name, f'not faster condensed in {latency.runtime}', share)
    reason = 'not needed' if latency.after < latency.before else f'the whole network is not faster in {latency.runtime}'
    return SkippedLayer(layer.name, reason, share)


def _enough(savings: Sequence[float], wanted: float) -> int:
    """How many of the savings, in this order, are as much as wanted; all where they are not."""
    total = 0.0
    for count, saving in enumerate(savings):
        if total >= wanted:
            return count
        total += saving
    return len(savings)
