"""What adding reactivation does to a network, in numbers."""

from dataclasses import dataclass
from typing import Optional

from .reactivate_sites import KINDS


@dataclass(frozen=True)
class ReactivationPlan:
    """One added reactivation.

    Attributes:
        name: of the new layer.
        kind: how the network reuses the features, see :data:`KINDS`.
        in_channels: channels of the later features.
        out_channels: channels of the earlier features that they reactivate.
        groups: chosen number of groups.
        factor: sparse factor.
        mult_adds: multiply-adds that it adds to one image, once pruned.
        size: height and width of the features.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    groups: int
    factor: int
    mult_adds: int
    size: tuple[int, ...] = (1, 1)


@dataclass(frozen=True)
class AddedLatency:
    """What a runtime needs for the whole network as it would be exported.

    Attributes:
        runtime: name of the runtime.
        dense: milliseconds with the learned groups of surgery dense.
        before: milliseconds as it was, pruned.
        after: milliseconds with its reactivations; ``before`` where none is added.
    """

    runtime: str
    dense: float
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f'In {self.runtime} {self.before:.3f} ms become {self.after:.3f} ms, {self.after / self.dense:.2f} of the '
            f'dense network.'
        )


@dataclass(frozen=True)
class ReactivationReport:
    """What :func:`~cnv2_plugin.sparsify.add_reactivation` did.

    Attributes:
        layers: added reactivations.
        refused: names of modules and why their features are not reactivated.
        mult_adds_before: multiply-adds of the network for one image.
        mult_adds_after: the same with all reactivations, pruned.
        left_out: names of those that would have gone beyond ``at_most``.
        at_most: share of the dense network's multiply-adds or latency that was asked for.
        latency: of the network, where it was asked for.
    """

    layers: tuple[ReactivationPlan, ...]
    refused: dict[str, str]
    mult_adds_before: int
    mult_adds_after: int
    left_out: tuple[str, ...] = ()
    at_most: Optional[float] = None
    latency: Optional[AddedLatency] = None

    def __str__(self) -> str:
        kinds = ', '.join(f'{sum(p.kind == k for p in self.layers)} {k}' for k in KINDS)
        added = self.mult_adds_after / max(self.mult_adds_before, 1) - 1
        lines = [
            f'{len(self.layers)} reactivations added ({kinds}): {self.mult_adds_before / 1e6:.1f} M multiply-adds '
            f'become {self.mult_adds_after / 1e6:.1f} M (+{added:.1%}).'
        ]
        if self.latency is not None:
            lines.append(str(self.latency))
        if self.left_out:
            lines.append(
                f'{len(self.left_out)} are left out, which would take the network beyond {self.at_most:.2f} of the '
                f'dense one: {", ".join(self.left_out[:3])}{" ..." * (len(self.left_out) > 3)}.'
            )
        return '\n'.join([*lines, *(f'{name}: {reason}.' for name, reason in self.refused.items())])
