"""What surgery does or would do to a network, in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from ...layers import kept_units


@dataclass(frozen=True)
class LayerPlan:
    """A convolution that learns groups.

    Attributes:
        name: of the module.
        in_channels: input channels.
        out_channels: output channels.
        groups: chosen number of groups.
        factor: condense factor.
        mult_adds_before: multiply-adds of one image, dense.
        mult_adds_after: multiply-adds of one image, condensed.
        input_size: height and width of its input (of the largest one, where it is called several times).
        stride: of the convolution.
        latency_before: milliseconds of the dense convolution, where latency was asked for.
        latency_after: milliseconds of the condensed one.
    """

    name: str
    in_channels: int
    out_channels: int
    groups: int
    factor: int
    mult_adds_before: int
    mult_adds_after: int
    input_size: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    latency_before: Optional[float] = None
    latency_after: Optional[float] = None

    @property
    def weights_before(self) -> int:
        """Weights of the dense convolution."""
        return self.in_channels * self.out_channels

    @property
    def weights_after(self) -> int:
        """Weights of the condensed one."""
        return kept_units(self.in_channels, self.factor, self.factor - 1) * self.out_channels


@dataclass(frozen=True)
class SkippedLayer:
    """A convolution that stays as it is.

    Attributes:
        name: of the module.
        reason: why.
        share: latency of the condensed convolution over that of the dense one, where that is why.
    """

    name: str
    reason: str
    share: Optional[float] = None


@dataclass(frozen=True)
class NetworkLatency:
    """What a runtime needs for the whole network as it would be exported.

    Attributes:
        runtime: name of the runtime.
        before: milliseconds of the dense network.
        after: milliseconds with the chosen layers condensed; ``before`` where the network is left alone.
        tried: milliseconds with the layers of the last try condensed, be it kept or not; None where no layer is faster.
        tried_layers: how many layers that are.
    """

    runtime: str
    before: float
    after: float
    tried: Optional[float] = None
    tried_layers: int = 0

    @property
    def share(self) -> float:
        """Latency after surgery over that before."""
        return self.after / self.before

    def __str__(self) -> str:
        if self.after < self.before:
            return (
                f'In {self.runtime} {self.before:.3f} ms become {self.after:.3f} ms ({self.share:.2f} of the latency).'
            )
        text = f'The network is left alone: in {self.runtime} it takes {self.before:.3f} ms'
        if self.tried is None:
            return f'{text}, and no convolution gets faster.'
        share = self.tried / self.before
        return (
            f'{text}, and would take {self.tried:.3f} ms ({share:.2f}) with {self.tried_layers} convolutions condensed.'
        )


@dataclass(frozen=True)
class SurgeryReport:
    """Prediction for a network, made before anything is changed.

    Attributes:
        layers: convolutions that learn groups.
        skipped: convolutions that stay, and why.
        mult_adds_before: multiply-adds of the network (convolutions, linear layers, attention) for one image.
        mult_adds_after: the same once pruned and condensed.
        weights_before: weights of ``layers``.
        weights_after: the same once pruned and condensed.
        input_size: ``(C, H, W)`` of the image.
        at_most: share of the dense network's multiply-adds or latency that was asked for.
        latency: of the network, where layers were chosen by it.
    """

    layers: tuple[LayerPlan, ...]
    skipped: tuple[SkippedLayer, ...]
    mult_adds_before: int
    mult_adds_after: int
    weights_before: int
    weights_after: int
    input_size: tuple[int, ...]
    at_most: Optional[float] = None
    latency: Optional[NetworkLatency] = None

    @classmethod
    def of(
        cls, layers: Sequence[LayerPlan], skipped: Sequence[SkippedLayer], mult_adds: int, input_size: Sequence[int],
        **more: Any,
    ) -> 'SurgeryReport':  # fmt: skip
        """The report on these layers of a network of ``mult_adds`` multiply-adds."""
        saved = sum(layer.mult_adds_before - layer.mult_adds_after for layer in layers)
        return cls(
            tuple(layers), tuple(skipped), mult_adds, mult_adds - saved,
            sum(layer.weights_before for layer in layers), sum(layer.weights_after for layer in layers),
            tuple(input_size), **more,
        )  # fmt: skip

    @property
    def share(self) -> float:
        """What is left of the latency where layers were chosen by it, of the multiply-adds otherwise."""
        if self.latency is not None:
            return self.latency.share
        return self.mult_adds_after / max(self.mult_adds_before, 1)

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
            lines.append(str(self.latency))
        if not self.reached:
            lines.append(f'At most {self.at_most:.2f} was asked for; {self.share:.2f} is what these layers can reach.')
        reasons: dict[str, list[SkippedLayer]] = {}
        for layer in self.skipped:
            reasons.setdefault(layer.reason, []).append(layer)
        return '\n'.join([*lines, *(_stays(reason, layers) for reason, layers in reasons.items())])


def _stays(reason: str, layers: list[SkippedLayer]) -> str:
    shown = ', '.join(layer.name for layer in layers[:3]) + (f' and {len(layers) - 3} more' if len(layers) > 3 else '')
    shares = [layer.share for layer in layers if layer.share is not None]
    figures = f' ({min(shares):.2f} to {max(shares):.2f} of their latency)' if shares else ''
    return f'{len(layers)} stay, {reason}{figures}: {shown}.'
