"""Dense 1x1 convolutions of any network become learned group convolutions (CondenseNet, section 3, without the
normalisation in front: these layers keep theirs behind them).
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Optional

import torch
from torch import nn

from ...layers import GroupSparseConv2d
from .choice import LatencyModel, Target, choose
from .plan import MIN_CHANNELS, Patterns, make_plan
from .report import LayerPlan, SurgeryReport


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
        ValueError: nothing can learn groups (says why), an argument is out of range, a pattern fits no module, or the
            model does not run on such an image.
    """
    report = make_plan(model, groups, factor, include, exclude, min_channels, input_size)
    return choose(report, target, at_most, latency, lambda layers: _finished_copy(model, layers))


def to_learned_groups(
    model: nn.Module,
    groups: int = 4,
    factor: int = 4,
    include: Patterns = None,
    exclude: Patterns = None,
    min_channels: int = MIN_CHANNELS,
    input_size: tuple[int, int, int] = (3, 224, 224),
    deploy: bool = False,
    target: Target = 'multiply-adds',
    at_most: Optional[float] = None,
    latency: Optional[LatencyModel] = None,
) -> SurgeryReport:
    """Let the dense 1x1 convolutions of a network learn groups, in place.

    The network computes exactly what it did. Its layers are pruned by :class:`~cnv2_plugin.sparsify.StagedSparsifier`
    (or the OpenMMLab hook) and condensed by :func:`cnv2_plugin.deploy.condense` like every other of this package.
    Without ``deploy`` weights stay the same parameter objects, so an optimiser made before goes on working, and state
    dicts of the original network load.

    Args:
        model: see :func:`plan_learned_groups`.
        groups: see :func:`plan_learned_groups`.
        factor: see :func:`plan_learned_groups`.
        include: see :func:`plan_learned_groups`.
        exclude: see :func:`plan_learned_groups`.
        min_channels: see :func:`plan_learned_groups`.
        input_size: see :func:`plan_learned_groups`.
        deploy: build the group-convolution form directly, for the state dict of the condensed network; give the same
            layers by ``include`` then, since measured latencies differ from one time to the next.
        target: see :func:`plan_learned_groups`.
        at_most: see :func:`plan_learned_groups`.
        latency: see :func:`plan_learned_groups`.

    Returns:
        What was done and what it will save, as :func:`plan_learned_groups` predicts it.

    Raises:
        ValueError: as :func:`plan_learned_groups`; nothing is changed then.

    Example:
        >>> model = timm.create_model('resnet50', pretrained=True)
        >>> print(to_learned_groups(model, groups=4, factor=4))
        >>> sparsifier = StagedSparsifier(model, total_steps=len(loader) * epochs)
    """
    report = plan_learned_groups(
        model, groups, factor, include, exclude, min_channels, input_size, target, at_most, latency
    )
    _replace(model, report.layers, deploy)
    return report


def _replace(model: nn.Module, layers: Sequence[LayerPlan], deploy: bool) -> None:
    modules = dict(model.named_modules())
    learned = {modules[plan.name]: _learned(modules[plan.name], plan, deploy) for plan in layers}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in learned:
                setattr(parent, name, learned[child])


def _finished_copy(model: nn.Module, layers: Sequence[LayerPlan]) -> nn.Module:
    copy = deepcopy(model)
    _replace(copy, layers, deploy=False)
    return finish_at_random(copy)


def finish_at_random(model: nn.Module) -> nn.Module:
    """Finish the pruning of every layer with random masks, in place, so that the latency can be measured.

    It does not depend on which units are kept, but on their being out of order.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, GroupSparseConv2d) and not module.is_finished():
            module.prune_to(module.num_stages, torch.rand(module.groups, module.num_units(), generator=generator))
    return model.eval()


def _learned(conv: nn.Conv2d, plan: LayerPlan, deploy: bool) -> GroupSparseConv2d:
    """A masked layer around the weight and bias of a convolution."""
    layer = GroupSparseConv2d(
        plan.in_channels, plan.out_channels, plan.groups, plan.factor,
        bias=conv.bias is not None, stride=(conv.stride[0], conv.stride[1]),
        dilation=(conv.dilation[0], conv.dilation[1]), device='meta', dtype=conv.weight.dtype,
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
