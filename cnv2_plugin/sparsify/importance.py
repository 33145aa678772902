"""How much each prunable unit matters: what a stage ranks by."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import GroupSparseConv2d
from ..layers.norm import is_batch_norm

IMPORTANCES = ('l1', 'norm', 'activation', 'taylor')
"""L1 norm as in the papers, the same scaled by the normalisation in front or by the activations that the weights read,
first-order Taylor expansion of the loss."""

QUANTILES = 1024
"""Values of a normal distribution that stand for the features in front of an activation."""


class UnitImportance:
    """Importance of the units of group-sparse layers, and what it has to see of training for that.

    - ``'l1'``: sum of the unit's absolute weights (CondenseNet, section 3.2).
    - ``'norm'``: the same, each weight times the absolute scale of the batch normalisation in front of its input: what
      of a weight is left once the normalisation is folded in (scale as importance: Network Slimming, arXiv 1708.06519,
      section 3).
    - ``'activation'``: the same, each weight times the root mean square of what it reads (arXiv 2306.11695, section 3,
      there measured on data). Behind a batch normalisation with scale and shift that is the root mean square of
      ``act(shift + scale * u)`` for a normal ``u``, so no data is seen and all ranks rank alike.
    - ``'taylor'``: how much the loss would change to first order without the unit, ``|sum of weight * gradient|``,
      summed over the steps since the layer's last stage (arXiv 1906.10771, section 3.1).

    Args:
        kind: one of :data:`IMPORTANCES`.
        layers: those that are going to be pruned, by name.

    Attributes:
        kind: as given.
        seen: sums over steps by layer, ``(groups, units)``; of ``'taylor'`` only.

    Raises:
        ValueError: there is no such kind, or it is ``'norm'`` or ``'activation'`` and a layer has no normalisation in
            front, or for ``'activation'`` one with an activation of its own.
    """

    def __init__(self, kind: str, layers: Mapping[str, GroupSparseConv2d]) -> None:
        check_importance_kind(kind)
        self.kind = kind
        self.seen: dict[str, Tensor] = {}
        if kind in INPUT_MAGNITUDES:
            for name, layer in layers.items():
                _scale(name, layer, kind)

    @torch.no_grad()
    def observe(self, layers: Mapping[str, GroupSparseConv2d]) -> None:
        """Add what the gradients that are there say; without a gradient, or with an infinite one, nothing is added."""
        for name, layer in layers.items() if self.kind == 'taylor' else ():
            weight = layer.conv.weight
            if weight.grad is None:
                continue
            change = layer.by_unit(weight.grad.float() * weight.float()).sum(2).abs()
            change = torch.where(change.isfinite().all(), change, 0)
            self.seen[name] = self.seen[name] + change if name in self.seen else change

    @torch.no_grad()
    def of(self, name: str, layer: GroupSparseConv2d) -> Optional[Tensor]:
        """Importance of each unit of a layer, ``(groups, units)``; None stands for the layer's own, the L1 norm.

        Raises:
            ValueError: no gradient of this layer was seen since its last stage, or a value is NaN or infinite.
        """
        if self.kind == 'l1':
            return None
        if self.kind in INPUT_MAGNITUDES:
            magnitude = INPUT_MAGNITUDES[self.kind](layer, _scale(name, layer, self.kind))
            importance = layer.by_unit(layer.conv.weight.double() * magnitude[:, None, None]).abs().sum(2)
        elif name in self.seen:
            importance = self.seen[name]
        else:
            raise ValueError(
                f"{name} has a stage to do but no gradient was seen since the last one, so importance='taylor' cannot "
                f'rank it; call sparsifier.step() after each backward pass and before zero_grad(), or use '
                f"importance='l1'."
            )
        if not bool(importance.isfinite().all()):
            raise ValueError(
                f'the normalisation in front of {name} has NaN or infinite scales, so its least important connections '
                f'cannot be told; no mask was changed: resume from the last good checkpoint with a lower learning rate.'
            )
        return importance

    def forget(self, names: Iterable[str]) -> None:
        """Begin anew for layers that have just been pruned."""
        for name in names:
            self.seen.pop(name, None)

    def load_seen(self, seen: Mapping[str, Tensor], layers: Mapping[str, GroupSparseConv2d]) -> None:
        """Go on from saved sums.

        Args:
            seen: :attr:`seen` as it was.
            layers: all layers by name.

        Raises:
            ValueError: they are not of these layers.
        """
        for name, total in seen.items():
            shape = (layers[name].groups, layers[name].num_units()) if name in layers else None
            if tuple(total.shape) != shape:
                raise ValueError(
                    f'the saved state has gradients of {name} with the shape {tuple(total.shape)}, but this model has '
                    f'{shape or "no such layer"}; resume with the same model.'
                )
        self.seen = {name: total.to(layers[name].conv.weight.device) for name, total in seen.items()}


def check_importance_kind(kind: str) -> None:
    """Raise unless there is such an importance.

    Raises:
        ValueError: there is none.
    """
    if kind not in IMPORTANCES:
        raise ValueError(f'importance is {kind!r}; it takes {", ".join(map(repr, IMPORTANCES[:-1]))} or '
                         f'{IMPORTANCES[-1]!r}.')  # fmt: skip


def _scale(name: str, layer: GroupSparseConv2d, kind: str) -> Tensor:
    """Scales ``(I,)`` of the normalisation in front of a layer."""
    norm = getattr(layer, 'norm', nn.Identity())
    scale = getattr(norm, 'weight', None)
    if not isinstance(scale, Tensor) or scale.shape != (layer.in_channels,):
        raise ValueError(
            f'{name or type(layer).__name__} has no normalisation with a scale for each of its {layer.in_channels} '
            f"inputs in front of it, so importance='{kind}' does not apply; use 'l1' or 'taylor'."
        )
    if kind == 'activation' and _may_activate(norm):
        raise ValueError(
            f'the normalisation in front of {name or type(layer).__name__}, a {type(norm).__name__}, may do more than '
            f"normalise, so what the weights read is not known and importance='activation' does not apply; use another."
        )
    return scale


def _may_activate(norm: nn.Module) -> bool:
    """Whether a norm has layers of its own, or is a batch norm whose ``forward`` computes other things."""
    if is_batch_norm(norm):
        return False
    return isinstance(norm, _BatchNorm) or not all(isinstance(child, nn.Identity) for child in norm.children())


def _activation_magnitude(layer: GroupSparseConv2d, scale: Tensor) -> Tensor:
    """Root mean square of each input of a layer, ``(I,)``, for features that are normal in front of the activation."""
    ranks = torch.arange(QUANTILES, dtype=torch.float64, device=scale.device) + 0.5
    quantiles = torch.special.ndtri(ranks / QUANTILES)
    shift = getattr(layer.get_submodule('norm'), 'bias', None)
    features = scale[:, None] * quantiles.to(scale.dtype) + (0 if shift is None else shift[:, None])
    act = copy.deepcopy(layer.get_submodule('act')).eval()
    activated = act.forward(features[None, ..., None])[0, ..., 0]  # no hooks: these are no features of an image
    return activated.double().square().mean(1).sqrt()


INPUT_MAGNITUDES: dict[str, Callable[[GroupSparseConv2d, Tensor], Tensor]] = {
    'norm': lambda layer, scale: scale.double(),
    'activation': _activation_magnitude,
}
"""How large each input of a layer is, from the layer and the scales of its normalisation, by the importance that weighs
weights by it."""
