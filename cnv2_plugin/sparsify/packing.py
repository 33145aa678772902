"""Packing: after the last pruning stage, training goes on with the surviving weights only (the optimisation phase of
CondenseNet, section 3.2); the optimiser's state and the averaged weights are carried over.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import GroupSparseConv2d
from ..models.condense import check_finished
from .attach import Averages, Optimizers
from .find_models import as_list, averaged_copy, optimizers_in, plain_name

Layers = Mapping[str, GroupSparseConv2d]
Convert = Callable[[Tensor], Tensor]

_WRAPPERS = ('DistributedDataParallel', 'FullyShardedDataParallel', 'DeepSpeedEngine')


@dataclass(frozen=True)
class PackedTraining:
    """Result of :func:`pack_model`.

    Attributes:
        layers: names of the layers that are trained by their surviving weights now.
        weights_before: weights of those layers before.
        weights_after: weights of those layers now.
    """

    layers: tuple[str, ...]
    weights_before: int
    weights_after: int


def pack_model(model: nn.Module, optimizer: Optimizers = None, ema: Averages = None) -> PackedTraining:
    """Go on training with group convolutions after the last pruning stage, in place.

    Every masked layer keeps its surviving weights only. Outputs, gradients of the surviving weights and running
    statistics stay those of the masked form, so training goes on as it would have, but no pruned weight is multiplied,
    differentiated or updated any more. Normalisations stay in front of the gather: one channel that several groups read
    has one normalisation, which only ``switch_to_deploy`` copies. Weights are replaced by new parameters; the optimiser
    gets them with its state (momentum, Adam's moments), in the place of the old ones. Optimisers that scale a step by
    the norm of a whole weight (LAMB, LARS) see the norm without the pruned entries from here on.

    The state dict keeps its names, masks and stages, and loads into the masked form as it is (pruned weights are 0
    then); :func:`restore_masked` turns the model itself back.

    Args:
        model: finished; not wrapped by DDP.
        optimizer: the optimiser or optimisers of the model's parameters, or wrappers of them (timm's Lookahead,
            accelerate, mmengine).
        ema: averaged models (timm's ``ModelEma``, mmengine's ``ExponentialMovingAverage``); they get the model's masks.

    Raises:
        UnfinishedPruningError: if pruning stages are left; names the layers. Nothing is changed then.
        ValueError: if the model is wrapped, an averaged model does not fit, or the optimiser has a state that is not of
            the weight's shape. Nothing is changed then.
        TypeError: if an optimiser has no parameters. Nothing is changed then.
    """
    masked = {name: layer for name, layer in _training_layers(model).items() if not layer.packed}
    layers = {name: layer for name, layer in masked.items() if layer.kept_per_group() < layer.num_units}
    check_finished(layers.items(), 'pack_model belongs behind the last stage: wait until StagedSparsifier.finished')
    sizes = _switch(layers, optimizer, ema, GroupSparseConv2d.switch_to_packed, GroupSparseConv2d.pack_weight)
    return PackedTraining(tuple(layers), *sizes)


condense_while_training = pack_model
"""The name of :func:`pack_model` in earlier versions."""


def restore_masked(model: nn.Module, optimizer: Optimizers = None, ema: Averages = None) -> None:
    """Undo :func:`pack_model`, in place; pruned weights and their optimiser state are 0 then.

    Args:
        model: not wrapped by DDP; what is not packed stays as it is.
        optimizer: as given to :func:`pack_model`.
        ema: likewise.

    Raises:
        ValueError: as for :func:`pack_model`.
        TypeError: as for :func:`pack_model`.
    """
    layers = {name: layer for name, layer in _training_layers(model).items() if layer.packed}
    _switch(layers, optimizer, ema, GroupSparseConv2d.switch_to_masked, GroupSparseConv2d.unpack_weight)


def masked_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict saved while the model was packed in masked form; one of the masked form stays as it is.

    Args:
        state_dict: of the model, or of a wrapper of it.
        model: the same network, packed or not.
    """
    layers = _training_layers(model)
    masked = dict(state_dict)
    for key, mask in state_dict.items():
        prefix, dot, last = key.rpartition('.')
        weight, layer = f'{prefix}{dot}conv.weight', layers.get(plain_name(prefix))
        if last == 'mask' and weight in masked and layer is not None and layer.grouping.is_packed(masked[weight]):
            masked[weight] = layer.unpack_weight(masked[weight], mask)
    return masked


def masked_optimizer_state(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, Any]:
    """Turn the state dict of a packed model's optimiser into one of the masked model's.

    Args:
        state: ``optimizer.state_dict()``.
        optimizer: optimiser of the packed model.
        model: the packed model.
    """
    owners = {id(layer.conv.weight): layer for layer in _training_layers(model).values() if layer.packed}
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    indices = [i for group in state['param_groups'] for i in group['params']]
    masked = dict(state['state'])
    for i, parameter in zip(indices, parameters):
        layer = owners.get(id(parameter))
        if layer is not None and i in masked:
            masked[i] = _converted(masked[i], parameter.shape, layer.unpack_weight)
    return {**state, 'state': masked}


def _training_layers(model: nn.Module) -> dict[str, GroupSparseConv2d]:
    wrapper = next((type(m).__name__ for m in model.modules() if type(m).__name__.endswith(_WRAPPERS)), None)
    if wrapper:
        raise ValueError(
            f'The model is wrapped by {wrapper}, which keeps hold of the old weights; give the module inside, and wrap '
            f'it again afterwards.'
        )
    return {
        plain_name(name): layer
        for name, layer in model.named_modules()
        if isinstance(layer, GroupSparseConv2d) and not layer.deploy
    }


def _switch(
    layers: Layers,
    optimizer: Optimizers,
    ema: Averages,
    switch: Callable[[GroupSparseConv2d], None],
    convert: Callable[[GroupSparseConv2d, Tensor], Tensor],
) -> tuple[int, int]:
    """Switch layers and averages of them, with the gradients and the optimisers' state; weights before and after."""
    averages = [_matching(layers, averaged_copy(average)) for average in as_list(ema)]
    optimizers = _checked(layers, optimizer)
    sizes = 0, 0
    for name, layer in layers.items():
        old = layer.conv.weight
        for theirs in (average[name] for average in averages):
            theirs.take_pruning(layer)
            switch(theirs)
        switch(layer)
        _carry_over(old, layer.conv.weight, partial(convert, layer), optimizers)
        sizes = sizes[0] + old.numel(), sizes[1] + layer.conv.weight.numel()
    return sizes


def _matching(layers: Layers, average: nn.Module) -> dict[str, GroupSparseConv2d]:
    theirs = _training_layers(average)
    for name, layer in layers.items():
        if name not in theirs or theirs[name].mask.shape != layer.mask.shape or theirs[name].packed != layer.packed:
            raise ValueError(
                f'{name} of the model has no counterpart of its form in the averaged {type(average).__name__}; give '
                f'the average of this model.'
            )
    return theirs


def _checked(layers: Layers, given: Optimizers) -> list[Any]:
    """The optimisers and those that they wrap, if what they keep of the weights can be carried over."""
    optimizers = [o for o in optimizers_in(given) if isinstance(getattr(o, 'param_groups', None), list)]
    if given is not None and not optimizers:
        raise TypeError(f'{type(given).__name__} holds no param_groups; give the optimiser that trains the model.')
    for optimizer, (name, layer) in product(optimizers, layers.items()):
        weight = layer.conv.weight
        for key, value in getattr(optimizer, 'state', {}).get(weight, {}).items():
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != weight.shape:
                raise ValueError(
                    f'{type(optimizer).__name__} keeps {key} of shape {tuple(value.shape)} for {name}.conv.weight of '
                    f'shape {tuple(weight.shape)}; only states that are one number or of its shape are carried.'
                )
    return optimizers


def _carry_over(old: Tensor, new: Tensor, convert: Convert, optimizers: Iterable[Any]) -> None:
    """Put the new parameter in the old one's place in every optimiser, with its gradient and converted state."""
    if old.grad is not None:
        new.grad = convert(old.grad)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['params'] = [new if p is old else p for p in group['params']]
        states = getattr(optimizer, 'state', {})  # wrappers leave it to the optimiser inside
        if old in states:
            states[new] = _converted(states.pop(old), old.shape, convert)


def _converted(state: Mapping[str, Any], shape: torch.Size, convert: Convert) -> dict[str, Any]:
    return {
        key: convert(value) if isinstance(value, Tensor) and value.shape == shape else value
        for key, value in state.items()
    }
