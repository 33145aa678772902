"""What surgery would do to a network: which layers, what they cost before and after, and why others stay."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Optional, Union

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ...layers import GroupSparseConv2d, kept_units
from .probe import Probe, probe
from .report import LayerPlan, SkippedLayer, SurgeryReport

Patterns = Union[str, Iterable[str], None]

MIN_CHANNELS = 32
MIN_GROUP_WIDTH = 4
MIN_SHARE = 2e-4
MIN_SHARE_POOLED = 5e-3

_EQUIVALENT_CLASSES = ('timm.layers.conv2d_same.Conv2dSame', 'mmcv.cnn.bricks.wrappers.Conv2d')


def make_plan(
    model: nn.Module,
    groups: int,
    factor: int,
    include: Patterns,
    exclude: Patterns,
    min_channels: int,
    input_size: tuple[int, int, int],
) -> SurgeryReport:
    """See :func:`cnv2_plugin.sparsify.plan_learned_groups`."""
    for argument, value, least in (('groups', groups, 2), ('factor', factor, 2), ('min_channels', min_channels, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f'{argument} is {value!r}; it takes a whole number of at least {least}.')
    names = [name for name, _ in model.named_modules()]
    chosen = name_filter(include, exclude, names)
    seen = probe(model, input_size)
    refuse = _Refusals(model, seen, chosen, groups, factor, min_channels)
    layers, skipped = [], []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or refuse.inside_sparse(name):
            continue
        reason = refuse.reason(name, module)
        if reason:
            skipped.append(SkippedLayer(name, reason))
            continue
        dense = module.in_channels * module.out_channels * seen.positions[name]
        condensed = kept_units(module.in_channels, factor, factor - 1) * module.out_channels * seen.positions[name]
        layers.append(
            LayerPlan(
                name, module.in_channels, module.out_channels, groups_for(module.out_channels, groups), factor,
                dense, condensed, seen.input_sizes[name], module.stride,
            )
        )  # fmt: skip
    if not layers:
        raise ValueError(_nothing_to_do(model, skipped))
    return SurgeryReport.of(layers, skipped, seen.mult_adds, input_size)


def groups_for(out_channels: int, groups: int) -> int:
    """The largest divisor of ``out_channels`` that is at most ``groups`` and leaves every group a few outputs."""
    return max(g for g in range(1, groups + 1) if out_channels % g == 0 and (g == 1 or out_channels // g >= 4))


def name_filter(include: Patterns, exclude: Patterns, names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a module's name, or that of a module around it, is included and not excluded.

    Args:
        include: shell-style patterns; everything where None.
        exclude: shell-style patterns; nothing where None.
        names: of all modules.

    Raises:
        ValueError: a pattern fits no module.
    """
    names = [name for name in names if name]
    included, excluded = _as_patterns(include), _as_patterns(exclude)
    for argument, patterns in (('include', included or ()), ('exclude', excluded or ())):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f'{argument} has {pattern!r}, which fits no module; it takes names such as {names[0]!r} or '
                    f'{names[-1]!r}, with * for any characters.'
                )

    def fits(name: str, patterns: tuple[str, ...]) -> bool:
        parts = name.split('.')
        return any(fnmatchcase('.'.join(parts[:i]), p) for i in range(1, len(parts) + 1) for p in patterns)

    return lambda name: (included is None or fits(name, included)) and not (excluded and fits(name, excluded))


def _as_patterns(given: Patterns) -> Optional[tuple[str, ...]]:
    if given is None:
        return None
    return (given,) if isinstance(given, str) else tuple(given)


class _Refusals:
    """Why a convolution of a network stays as it is."""

    def __init__(
        self,
        model: nn.Module,
        seen: Probe,
        chosen: Callable[[str], bool],
        groups: int,
        factor: int,
        min_channels: int,
    ) -> None:
        self.seen = seen
        self.chosen = chosen
        self.groups = groups
        self.factor = factor
        self.min_channels = min_channels
        self.sparse = tuple(f'{n}.' for n, m in model.named_modules() if isinstance(m, GroupSparseConv2d))
        owners: dict[int, int] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        self.shared = {key for key, count in owners.items() if count > 1}

    def inside_sparse(self, name: str) -> bool:
        """Whether it is part of a layer that learns groups already."""
        return name.startswith(self.sparse)

    def reason(self, name: str, conv: nn.Conv2d) -> Optional[str]:
        """Why, or None where it can learn groups."""
        return self._of_kind(name, conv) or self._of_place(name, conv) or self._of_width(conv)

    def _of_kind(self, name: str, conv: nn.Conv2d) -> Optional[str]:
        if conv.groups > 1:
            depthwise = conv.groups == conv.in_channels
            return 'depthwise' if depthwise else 'already a group convolution'
        if conv.kernel_size != (1, 1):
            return 'the kernel is larger than 1x1'
        if conv.padding not in ((0, 0), 0, 'valid', 'same'):
            return 'padded'
        if is_parametrized(conv) or hasattr(conv, 'weight_g'):
            return 'its weight is parametrized'
        kind = type(conv)
        if kind is not nn.Conv2d and f'{kind.__module__}.{kind.__name__}' not in _EQUIVALENT_CLASSES:
            return f'{kind.__name__} does more than a plain convolution'
        if conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks:
            return 'it has hooks of its own'
        if id(conv.weight) in self.shared:
            return 'its weight is shared with another layer'
        return None

    def _of_place(self, name: str, conv: nn.Conv2d) -> Optional[str]:
        if not self.chosen(name):
            return 'left out by include and exclude'
        if not conv.weight.requires_grad:
            return 'frozen (requires_grad=False)'
        if name not in self.seen.positions:
            return 'not reached by a forward pass'
        if name == self.seen.order[0]:
            return 'the first layer'
        if name == self.seen.order[-1] or name in self.seen.outputs:
            return 'a last layer'
        least = MIN_SHARE_POOLED if self.seen.positions[name] == 1 else MIN_SHARE
        if conv.weight.numel() * self.seen.positions[name] < least * self.seen.mult_adds:
            return 'too small a share of the multiply-adds to pay'
        return None

    def _of_width(self, conv: nn.Conv2d) -> Optional[str]:
        if min(conv.in_channels, conv.out_channels) < self.min_channels:
            return f'too few channels to pay (fewer than {self.min_channels})'
        if kept_units(conv.in_channels, self.factor, self.factor - 1) < MIN_GROUP_WIDTH:
            return f'too few channels to pay (each group would read fewer than {MIN_GROUP_WIDTH})'
        if groups_for(conv.out_channels, self.groups) < 2:
            return f'no number of groups from 2 to {self.groups} divides its output channels'
        return None


def _nothing_to_do(model: nn.Module, skipped: Iterable[SkippedLayer]) -> str:
    linear = sum(isinstance(m, nn.Linear) for m in model.modules())
    pointwise = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.groups == 1 for m in model.modules())
    name = type(model).__name__
    if not pointwise and linear > 1:
        return (
            f'{name} has no 1x1 convolution: its pointwise layers are {linear} nn.Linear, which mix the last dimension '
            f'and cannot learn groups; build it with 1x1 convolutions (timm: conv_mlp=True) or choose another model.'
        )
    reasons = sorted({layer.reason for layer in skipped if layer.reason != 'the kernel is larger than 1x1'})
    return (
        f'{name} has no 1x1 convolution that can learn groups ({"; ".join(reasons) or "it has none"}); choose another '
        f'model, or widen include, exclude or min_channels.'
    )
