"""Dense 1x1 convolutions of any network become learned group convolutions (CondenseNet, section 3, without the
normalisation in front: these layers keep theirs behind them).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any, Optional, Union

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ...layers import GroupSparseConv2d, kept_units, largest_divisor
from ...layers.known import has_hooks, is_class, peculiarity
from .choice import LatencyModel, Target, choose_learned_groups, finish_at_random, latency_for
from .report import LayerPlan, SkippedLayer, SurgeryReport
from .tracing import Probe, probe

Patterns = Union[str, Iterable[str], None]

MIN_CHANNELS = 32
MIN_GROUP_WIDTH = 4
MIN_SHARE = 2e-4
MIN_SHARE_POOLED = 5e-3

_EQUIVALENT_CLASSES = ('timm.layers.conv2d_same.Conv2dSame', 'mmcv.cnn.bricks.wrappers.Conv2d')


def plan_learned_groups(
    model: nn.Module,
    groups: int = 4,
    factor: int = 4,
    include: Patterns = None,
    exclude: Patterns = None,
    min_channels: int = MIN_CHANNELS,
    input_size: tuple[int, int, int] = (3, 224, 224),
    target: Target = 'multiply-adds',
    at_most: Optional[float] = None,
    latency: Optional[LatencyModel] = None,
) -> SurgeryReport:
    """Predict what :func:`to_learned_groups` would do, and change nothing.

    Args:
        model: any network of images; it runs once, on one image of zeros, in eval mode.
        groups: number of groups; a layer whose output channels it does not divide gets the largest number that does.
        factor: condense factor; every group keeps ``ceil(in_channels / factor)`` inputs.
        include: shell-style patterns of module names (``'layer3*'``, ``'backbone'``: everything inside counts); all by
            default.
        exclude: patterns of what stays as it is.
        min_channels: fewest channels in and out that a layer must have.
        input_size: ``(C, H, W)`` of the image.
        target: ``'multiply-adds'``: the layers that save most of them come first; ``'latency'``: those that save most
            time, and only layers that get faster. Where that makes the whole network no faster, none is taken.
        at_most: share of the dense network's multiply-adds or latency to come down to; layers beyond that stay dense.
            Where it cannot be reached, everything that saves is taken and the report says what is left. By default all
            layers that save.
        latency: what tells the latency, for ``target='latency'``: :class:`cnv2_plugin.deploy.RuntimeLatency` measures
            it in a runtime.

    Returns:
        Layers, reasons, multiply-adds and latency; print it for a summary.

    Raises:
        ValueError: if nothing can learn groups (says why), an argument is out of range, a pattern fits no module, or
            the model does not run on such an image.
    """
    check_whole_numbers(groups=(groups, 2), factor=(factor, 2), min_channels=(min_channels, 1))
    teller = latency_for(target, at_most, latency)
    chosen = name_filter(include, exclude, [name for name, _ in model.named_modules()])
    seen = probe(model, input_size)
    sparse = tuple(f'{name}.' for name, m in model.named_modules() if isinstance(m, GroupSparseConv2d))
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    layers, skipped = [], []
    for name, conv in model.named_modules():
        if not isinstance(conv, nn.Conv2d) or name.startswith(sparse):
            continue
        reason = _refused_by_kind(conv) or _refused_by_use(name, conv, owners, chosen, seen)
        if reason := reason or _refused_by_width(conv, groups, factor, min_channels):
            skipped.append(SkippedLayer(name, reason))
            continue
        dense = conv.in_channels * conv.out_channels * seen.positions[name]
        condensed = kept_units(conv.in_channels, factor, factor - 1) * conv.out_channels * seen.positions[name]
        layers.append(
            LayerPlan(
                name, conv.in_channels, conv.out_channels, groups_for(conv.out_channels, groups, 4), factor,
                dense, condensed, seen.input_sizes[name], conv.stride,
            )
        )  # fmt: skip
    if not layers:
        raise ValueError(_nothing_to_do(model, skipped))

    def finished_copy(wanted: Sequence[LayerPlan]) -> nn.Module:
        copy = deepcopy(model)
        _replace(copy, wanted, deploy=False)
        return finish_at_random(copy)

    report = SurgeryReport(tuple(layers), tuple(skipped), seen.mult_adds, tuple(input_size))
    return choose_learned_groups(report, at_most, teller, finished_copy)


def to_learned_groups(
    model: nn.Module,
    groups: int = 4,
    factor: int = 4,
    include: Patterns = None,
    exclude: Patterns = None,
    min_channels: int = MIN_CHANNELS,
    input_size: tuple[int, int, int] = (3, 224, 224),
    deploy: bool = False,
    **options: Any,
) -> SurgeryReport:
    """Let the dense 1x1 convolutions of a network learn groups, in place.

    The network computes exactly what it did. Its layers are pruned by :class:`~cnv2_plugin.sparsify.StagedSparsifier`
    (or the OpenMMLab hook) and condensed by :func:`cnv2_plugin.deploy.condense` like every other of this package.
    Without ``deploy`` weights stay the same parameter objects, so an optimiser made before goes on working, and state
    dicts of the original network load.

    Args:
        model: any network of images.
        groups: see :func:`plan_learned_groups`.
        factor: see :func:`plan_learned_groups`.
        include: see :func:`plan_learned_groups`.
        exclude: see :func:`plan_learned_groups`.
        min_channels: see :func:`plan_learned_groups`.
        input_size: see :func:`plan_learned_groups`.
        deploy: build the group-convolution form directly, for the state dict of the condensed network; give the same
            layers by ``include`` then, since measured latencies differ from one time to the next.
        **options: ``target``, ``at_most`` and ``latency``, see :func:`plan_learned_groups`.

    Returns:
        The surgery report: what was done and what it will save, as :func:`plan_learned_groups` predicts it.

    Raises:
        ValueError: as :func:`plan_learned_groups`; nothing is changed then.

    Example:
        >>> model = timm.create_model('resnet50', pretrained=True)
        >>> print(to_learned_groups(model, groups=4, factor=4))
        >>> sparsifier = StagedSparsifier(model, total_steps=len(loader) * epochs)
    """
    report = plan_learned_groups(model, groups, factor, include, exclude, min_channels, input_size, **options)
    _replace(model, report.layers, deploy)
    return report


def check_whole_numbers(**arguments: tuple[Any, int]) -> None:
    """Raise unless every argument, given as its value and the least that it takes, is a whole number of that size."""
    for name, (value, least) in arguments.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f'{name} is {value!r}; it takes a whole number of at least {least}.')


def groups_for(channels: int, groups: int, width: int = 1) -> int:
    """Return the largest divisor of ``channels`` up to ``groups`` that leaves every group ``width`` channels, or 1."""
    return largest_divisor(channels, min(groups, max(1, channels // width)))


def name_filter(include: Patterns, exclude: Patterns, names: Iterable[str]) -> Callable[[str], bool]:
    """Return a test of whether a name, or that of a module around it, is included and not excluded; check patterns."""
    names = [name for name in names if name]
    given = dict(include=include, exclude=exclude)
    patterns = {key: (value,) if isinstance(value, str) else tuple(value or ()) for key, value in given.items()}
    for argument, several in patterns.items():
        for pattern in several:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f'{argument} has {pattern!r}, which fits no module; it takes names such as {names[0]!r} or '
                    f'{names[-1]!r}, with * for any characters.'
                )

    def fits(name: str, argument: str) -> bool:
        around = ['.'.join(name.split('.')[: i + 1]) for i in range(name.count('.') + 1)]
        return any(fnmatchcase(part, pattern) for part in around for pattern in patterns[argument])

    return lambda name: (include is None or fits(name, 'include')) and not fits(name, 'exclude')


def _replace(model: nn.Module, layers: Sequence[LayerPlan], deploy: bool) -> None:
    learned = {conv: _learned(conv, plan, deploy) for plan in layers for conv in [model.get_submodule(plan.name)]}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in learned:
                setattr(parent, name, learned[child])


def _learned(conv: Any, plan: LayerPlan, deploy: bool) -> GroupSparseConv2d:
    """A masked layer around the weight and bias of a convolution."""
    layer = GroupSparseConv2d(
        plan.in_channels, plan.out_channels, plan.groups, plan.factor,
        stride=(conv.stride[0], conv.stride[1]), dilation=(conv.dilation[0], conv.dilation[1]),
        device='meta', dtype=conv.weight.dtype,
    )  # fmt: skip
    layer.to_empty(device=conv.weight.device)
    layer.mask.fill_(True)
    layer.stage.zero_()
    layer.conv.weight = conv.weight
    layer.conv.bias = conv.bias
    if deploy:
        layer.prune_to(layer.num_stages)
        layer.switch_to_deploy()
    return layer.train(conv.training)


def _refused_by_kind(conv: nn.Conv2d) -> Optional[str]:
    kind = type(conv)
    known = f'{kind.__module__}.{kind.__name__}' in _EQUIVALENT_CLASSES or is_class(conv, nn.Conv2d)
    refusals = {
        'depthwise': conv.groups == conv.in_channels > 1,
        'already a group convolution': conv.groups > 1,
        'the kernel is larger than 1x1': conv.kernel_size != (1, 1),
        'padded': conv.padding not in ((0, 0), 0, 'valid', 'same'),
        'its weight is parametrized': is_parametrized(conv) or hasattr(conv, 'weight_g'),
        'it has hooks of its own': has_hooks(conv),
        f'it {peculiarity(conv)}': bool(peculiarity(conv)),
        f'{kind.__name__} does more than a plain convolution': not known,
    }
    return next((reason for reason, refused in refusals.items() if refused), None)


def _refused_by_use(
    name: str, conv: nn.Conv2d, owners: Counter, chosen: Callable[[str], bool], seen: Probe
) -> Optional[str]:
    """Why one of the right kind is left alone; reading the weight of other kinds may change their state."""
    positions, order = seen.positions.get(name, 0), [*seen.positions]
    least = MIN_SHARE_POOLED if positions == 1 else MIN_SHARE
    refusals = {
        'its weight is shared with another layer': owners[id(conv.weight)] > 1,
        'left out by include and exclude': not chosen(name),
        'frozen (requires_grad=False)': not conv.weight.requires_grad,
        'not reached by a forward pass': positions == 0,
        'the first layer': order[:1] == [name],
        'a last layer': order[-1:] == [name] or name in seen.outputs,
        'too small a share of the multiply-adds to matter': conv.weight.numel() * positions < least * seen.mult_adds,
    }
    return next((reason for reason, refused in refusals.items() if refused), None)


def _refused_by_width(conv: nn.Conv2d, groups: int, factor: int, min_channels: int) -> Optional[str]:
    if min(conv.in_channels, conv.out_channels) < min_channels:
        return f'too few channels to be worth it (fewer than {min_channels})'
    if kept_units(conv.in_channels, factor, factor - 1) < MIN_GROUP_WIDTH:
        return f'too few channels to be worth it (each group would read fewer than {MIN_GROUP_WIDTH})'
    if groups_for(conv.out_channels, groups, 4) < 2:
        return f'no number of groups from 2 to {groups} divides its output channels'
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
