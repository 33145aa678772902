"""Surgery reports: what is changed in a network, what stays and why, and what it costs before and after."""

from dataclasses import dataclass
from typing import Optional

from ...layers import kept_units
from .sites import KINDS


@dataclass(frozen=True)
class LayerPlan:
    """A convolution that learns groups; multiply-adds are those of one image."""

    name: str
    in_channels: int
    out_channels: int
    groups: int
    factor: int
    mult_adds_before: int  # dense
    mult_adds_after: int  # condensed
    input_size: tuple[int, ...] = (1, 1)  # height and width of its largest input
    stride: tuple[int, ...] = (1, 1)
    latency_before: Optional[float] = None  # milliseconds of the dense convolution, where latency was asked for
    latency_after: Optional[float] = None  # milliseconds of the condensed one


@dataclass(frozen=True)
class SkippedLayer:
    """A convolution that stays as it is, and why."""

    name: str
    reason: str
    share: Optional[float] = None  # latency of the condensed over that of the dense one, where that is why


@dataclass(frozen=True)
class ReactivationPlan:
    """One added reactivation."""

    name: str  # of the new layer
    kind: str  # how the network reuses the features: 'dense', 'split', 'cross-stage' or 'residual'
    in_channels: int  # of the later features
    out_channels: int  # of the earlier features that they reactivate
    groups: int
    factor: int
    mult_adds: int  # that it adds to one image, once pruned
    size: tuple[int, ...] = (1, 1)  # height and width of the features


@dataclass(frozen=True)
class NetworkLatency:
    """Latency of the whole network as it would be exported, in milliseconds."""

    runtime: str
    dense: float  # with all learned groups dense
    before: float  # as it was, pruned
    after: float  # changed and pruned; that of before where the network is left alone
    tried: Optional[float] = None  # with the layers of the last try, taken or not; None where no layer is faster
    tried_layers: int = 0

    @property
    def share(self) -> float:
        """What is left of the latency of the dense network."""
        return self.after / self.dense


@dataclass(frozen=True)
class SurgeryReport:
    """Surgery report of learned groups: a prediction, made before anything is changed.

    Attributes:
        layers: convolutions that learn groups.
        skipped: convolutions that stay, and why.
        mult_adds_before: multiply-adds of the network (convolutions, linear layers, attention) for one image.
        input_size: ``(C, H, W)`` of the image.
        at_most: share of the dense network's multiply-adds or latency that was asked for.
        latency: of the network, where layers were chosen by it.
    """

    layers: tuple[LayerPlan, ...]
    skipped: tuple[SkippedLayer, ...]
    mult_adds_before: int
    input_size: tuple[int, ...]
    at_most: Optional[float] = None
    latency: Optional[NetworkLatency] = None

    @property
    def mult_adds_after(self) -> int:
        """Multiply-adds of the network once pruned and condensed."""
        return self.mult_adds_before - sum(layer.mult_adds_before - layer.mult_adds_after for layer in self.layers)

    @property
    def weights_before(self) -> int:
        """Weights of the layers that learn groups, dense."""
        return sum(layer.in_channels * layer.out_channels for layer in self.layers)

    @property
    def weights_after(self) -> int:
        """Weights of the layers that learn groups once pruned and condensed."""
        return sum(kept_units(p.in_channels, p.factor, p.factor - 1) * p.out_channels for p in self.layers)

    @property
    def share(self) -> float:
        """What is left of the latency where layers were chosen by it, of the multiply-adds otherwise."""
        return self.latency.share if self.latency else self.mult_adds_after / max(self.mult_adds_before, 1)

    @property
    def reached(self) -> bool:
        """Whether no more is left than was asked for."""
        return self.at_most is None or self.share <= self.at_most

    def __str__(self) -> str:
        saved = 1 - self.mult_adds_after / max(self.mult_adds_before, 1)
        lines = [
            f'{len(self.layers)} convolutions learn groups: {self.mult_adds_before / 1e6:.1f} M multiply-adds at '
            f'{"x".join(map(str, self.input_size))} become {self.mult_adds_after / 1e6:.1f} M ({saved:.1%} saved), '
            f'{self.weights_before / 1e6:.2f} M of their weights become {self.weights_after / 1e6:.2f} M.'
        ]
        if self.latency is not None:
            lines.append(self._latency_line(self.latency))
        if not self.reached:
            lines.append(f'At most {self.at_most:.2f} was asked for; {self.share:.2f} is what these layers can reach.')
        for reason in dict.fromkeys(layer.reason for layer in self.skipped):
            layers = [layer for layer in self.skipped if layer.reason == reason]
            shares = [layer.share for layer in layers if layer.share is not None]
            figures = f' ({min(shares):.2f} to {max(shares):.2f} of their latency)' if shares else ''
            more = f' and {len(layers) - 3} more' if len(layers) > 3 else ''
            shown = ', '.join(layer.name for layer in layers[:3])
            lines.append(f'{len(layers)} stay, {reason}{figures}: {shown}{more}.')
        return '\n'.join(lines)

    def _latency_line(self, found: NetworkLatency) -> str:
        if found.after < found.before:
            text = f'In {found.runtime} {found.before:.3f} ms become {found.after:.3f} ms'
            return f'{text} ({found.share:.2f} of the latency).'
        text = f'The network is left alone: in {found.runtime} it takes {found.before:.3f} ms, and'
        if found.tried is None:
            return f'{text} no convolution gets faster.'
        tried = f'{found.tried:.3f} ms ({found.tried / found.before:.2f})'
        return f'{text} would take {tried} with {found.tried_layers} convolutions condensed.'


@dataclass(frozen=True)
class ReactivationReport:
    """Surgery report of :func:`~cnv2_plugin.sparsify.add_reactivation`.

    Attributes:
        layers: added reactivations.
        refused: names of modules and why their features are not reactivated.
        mult_adds_before: multiply-adds of the network for one image.
        left_out: names of those that would have gone beyond ``at_most``.
        at_most: share of the dense network's multiply-adds or latency that was asked for.
        latency: of the network, where it was asked for.
    """

    layers: tuple[ReactivationPlan, ...]
    refused: dict[str, str]
    mult_adds_before: int
    left_out: tuple[str, ...] = ()
    at_most: Optional[float] = None
    latency: Optional[NetworkLatency] = None

    @property
    def mult_adds_after(self) -> int:
        """Multiply-adds of the network with all reactivations, pruned."""
        return self.mult_adds_before + sum(plan.mult_adds for plan in self.layers)

    def __str__(self) -> str:
        kinds = ', '.join(f'{sum(p.kind == k for p in self.layers)} {k}' for k in KINDS)
        added = self.mult_adds_after / max(self.mult_adds_before, 1) - 1
        lines = [
            f'{len(self.layers)} reactivations added ({kinds}): {self.mult_adds_before / 1e6:.1f} M multiply-adds '
            f'become {self.mult_adds_after / 1e6:.1f} M (+{added:.1%}).'
        ]
        if self.latency is not None:
            text = f'In {self.latency.runtime} {self.latency.before:.3f} ms become {self.latency.after:.3f} ms'
            lines.append(f'{text}, {self.latency.share:.2f} of the dense network.')
        if self.left_out:
            lines.append(
                f'{len(self.left_out)} are left out, which would take the network beyond {self.at_most:.2f} of the '
                f'dense one: {", ".join(self.left_out[:3])}{" ..." * (len(self.left_out) > 3)}.'
            )
        return '\n'.join([*lines, *(f'{name}: {reason}.' for name, reason in self.refused.items())])
