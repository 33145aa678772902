"""Condensing: masked and packed layers become standard group convolutions."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

import torch
from torch import Tensor, nn

from ..layers import GroupSparseConv2d, SelectiveLinear, SpatialGroupConv2d, UnfinishedPruningError
from ..layers.known import check_exact, is_changed, refuse

Model = TypeVar('Model', bound=nn.Module)
FINISH_FIRST = 'finish the sparsification schedule, or call layer.prune_to(layer.num_stages) on each, before condensing'


@dataclass(frozen=True)
class ClassifierCost:
    """Share of a classifier that is lost when it reads fewer inputs.

    Attributes:
        kept: inputs kept.
        inputs: inputs before.
        dropped_l1: share of the weight's L1 norm that is dropped; 0 means that the step is exact.
    """

    kept: int
    inputs: int
    dropped_l1: float


def condense(model: Model, inplace: bool = False, classifier_keep: Optional[float] = None) -> Model:
    """Replace every masked layer of a model by its exact group-convolution form.

    Args:
        model: any module that contains group-sparse layers; parts already condensed stay as they are. A module
            with an ``on_condense`` method is told. Nothing else of a foreign module is touched.
        inplace: change ``model`` itself instead of a copy.
        classifier_keep: share of the classifier's inputs to keep, those with the largest L1 norm, as CondenseNet's
            authors do with 0.5; None or 1 keeps all. Dropping is not exact: measure the accuracy, and
            see :func:`classifier_cost`.

    Returns:
        The condensed model.

    Raises:
        UnfinishedPruningError: pruning is not finished somewhere; names the layers, and nothing is changed.
        UnknownModuleError: a layer, or the classifier, carries hooks or other code that would be lost, or a part that
            does not treat channels alike; names it, and nothing is changed.
        ValueError: ``classifier_keep`` is out of range, or the model has no linear classifier; nothing is changed.
    """
    check_finished(model.named_modules())
    keep = 1.0 if classifier_keep is None else classifier_keep
    classifier = None if keep == 1 else _find_classifier(model, keep)
    for name, module in model.named_modules():
        if isinstance(module, GroupSparseConv2d) and not module.deploy:
            _check_layer(name, module)
    condensed = model if inplace else deepcopy(model)
    for module in condensed.modules():
        if isinstance(module, (GroupSparseConv2d, SpatialGroupConv2d)):
            module.switch_to_deploy()
    if classifier is not None and not isinstance(classifier[1], SelectiveLinear):
        parent, _, name = classifier[0].rpartition('.')
        setattr(condensed.get_submodule(parent), name, SelectiveLinear.from_linear(classifier[1], keep))
    on_condense: Any
    for part in condensed.modules():
        if (on_condense := getattr(part, 'on_condense', None)) is not None:
            on_condense()
    return condensed


def classifier_cost(model: nn.Module, classifier_keep: float) -> ClassifierCost:
    """Measure what ``condense(model, classifier_keep=...)`` would take from the classifier.

    Raises:
        ValueError: as for :func:`condense`.
        UnknownModuleError: as for :func:`condense`.
    """
    _, linear = _find_classifier(model, classifier_keep)
    if isinstance(linear, SelectiveLinear):
        return ClassifierCost(linear.in_features, linear.source_features, 0.0)
    importance = linear.weight.detach().double().abs().sum(0)
    kept = SelectiveLinear.from_linear(linear, classifier_keep).index
    share = 1 - (importance[kept].sum() / importance.sum().clamp(min=1e-300)).item()
    return ClassifierCost(kept.numel(), linear.in_features, max(share, 0.0))


def condense_state_dict(
    state_dict: dict[str, Tensor], model: nn.Module, classifier: str = 'classifier', keep: Optional[float] = None
) -> dict[str, Tensor]:
    """Turn the state dict of a training form into that of the deployed form.

    Args:
        state_dict: of the training form, pruning finished.
        model: the same network in either form; only its layers' shapes are read, so it may be on the meta device.
        classifier: name of the classifier.
        keep: share of the classifier's inputs to keep, see :func:`condense`.

    Raises:
        UnfinishedPruningError: pruning is not finished somewhere; names the layer.
        RuntimeError: the state dict does not fit the model.
    """
    condensed = dict(state_dict)
    for name, module in model.named_modules():
        if not isinstance(module, GroupSparseConv2d) or f'{name}.mask' not in state_dict:
            continue
        own = {key: condensed.pop(key) for key in state_dict if key.startswith(f'{name}.')}
        condensed.update(_condensed_layer(name, module, own))
    weight = f'{classifier}.weight'
    if keep is not None and weight in state_dict:
        outputs, inputs = state_dict[weight].shape
        linear = nn.Linear(inputs, outputs, dtype=state_dict[weight].dtype)
        linear.load_state_dict({key: state_dict[f'{classifier}.{key}'] for key in ('weight', 'bias')})
        selective = SelectiveLinear.from_linear(linear, keep).state_dict()
        condensed.update({f'{classifier}.{key}': value for key, value in selective.items()})
    return condensed


def _condensed_layer(name: str, module: GroupSparseConv2d, own: dict[str, Tensor]) -> dict[str, Tensor]:
    options: dict[str, Any] = {}
    if type(module) is GroupSparseConv2d:
        options = dict(grouped_side=module.grouped_side, bias=f'{name}.conv.bias' in own)
    dtype = own[f'{name}.conv.weight'].dtype
    twin = type(module)(module.in_channels, module.out_channels, module.groups, module.factor, dtype=dtype, **options)
    holder = nn.Module()
    holder.add_module('layer', twin)
    holder.load_state_dict({f'layer{key[len(name) :]}': value for key, value in own.items()})
    check_finished([(name, twin)], 'finish the sparsification schedule, or build the model with deploy=False')
    twin.switch_to_deploy()
    return {f'{name}.{key}': value for key, value in twin.state_dict().items()}


def check_finished(modules: Iterable[tuple[str, nn.Module]], remedy: str = FINISH_FIRST) -> None:
    """Raise ``UnfinishedPruningError``, naming layers and the remedy, where named modules have pruning stages left."""
    unfinished = [
        f'{name or type(layer).__name__} (stage {int(layer.stage)} of {layer.num_stages})'
        for name, layer in modules
        if isinstance(layer, GroupSparseConv2d) and not layer.is_finished()
    ]
    if unfinished:
        shown = ', '.join(unfinished[:4]) + (f' and {len(unfinished) - 4} more' if len(unfinished) > 4 else '')
        raise UnfinishedPruningError(f'Pruning is not finished in {shown}; {remedy}.')


@torch.no_grad()
def _check_layer(name: str, layer: GroupSparseConv2d) -> None:
    """Raise unless a layer is known through and through and, tried on a few pixels, computes the same condensed."""
    layer.check_known(name)
    if layer.conv.weight.is_meta or any(is_changed(part) for part in layer.children()):
        return  # hooks on parts that stay must not see what is no feature of an image
    twin = deepcopy(layer).cpu().double().eval()
    x = torch.randn(1, layer.in_channels, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, var = (getattr(getattr(twin, 'norm', None), statistic, None) for statistic in ('running_mean', 'running_var'))
    if mean is not None and var is not None:
        x = mean.view(-1, 1, 1) + x * var.clamp(min=0).sqrt().view(-1, 1, 1)
    expected = twin.forward(x.clone())
    twin.switch_to_deploy()
    difference = (twin.forward(x) - expected).abs().max()
    if difference > 1e-9 * expected.abs().max():
        raise refuse(name, layer, 'computes something else once it is condensed')


def _find_classifier(model: nn.Module, keep: float) -> tuple[str, nn.Linear]:
    """The classifier and its name: what ``get_classifier`` returns (timm), or ``head.fc`` (MMPretrain)."""
    if not 0 < keep <= 1:
        raise ValueError(f'classifier_keep is {keep}; it takes a share above 0 and at most 1.')
    modules = dict(model.named_modules())
    get_classifier = getattr(model, 'get_classifier', None)
    classifier = modules.get('head.fc') if get_classifier is None else get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f'{type(model).__name__} has no linear classifier, so classifier_keep={keep} does not apply; leave it out.'
        )
    name = next(name for name, module in modules.items() if module is classifier)
    check_exact([(name, classifier, (nn.Linear, SelectiveLinear))])
    return name, classifier
