"""Checks of what a group-sparse layer is given, and of whether it can do what it is asked for."""

import torch
from torch import Tensor

from .grouped import Grouped


class UnfinishedPruningError(RuntimeError):
    """A layer is asked for its group-convolution form before its last pruning stage."""


def check_arguments(
    name: str, in_channels: int, out_channels: int, groups: int, factor: int, grouped_side: str, bias: bool
) -> None:
    """Raise unless a layer can have this shape.

    Args:
        name: of the layer's class.
        in_channels: input channels.
        out_channels: output channels.
        groups: number of groups.
        factor: condense or sparse factor.
        grouped_side: which side is grouped.
        bias: whether the layer has a bias.

    Raises:
        ValueError: it cannot; names the argument and what it takes.
    """
    if grouped_side not in ('outputs', 'inputs'):
        raise ValueError(f"{name}: grouped_side is {grouped_side!r}; it takes 'outputs' or 'inputs'.")
    for argument, value in (
        ('in_channels', in_channels),
        ('out_channels', out_channels),
        ('groups', groups),
        ('factor', factor),
    ):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f'{name}: {argument} is {value!r}; it takes a whole number of at least 1.')
    grouped = out_channels if grouped_side == 'outputs' else in_channels
    if grouped % groups:
        divisors = [d for d in range(1, grouped + 1) if grouped % d == 0]
        nearest = sorted(sorted(divisors, key=lambda d: abs(d - groups))[:4])
        side = 'out_channels' if grouped_side == 'outputs' else 'in_channels'
        raise ValueError(
            f'{name}: groups={groups} does not divide {side}={grouped}; groups that do: '
            f'{", ".join(map(str, nearest))}, '
            f'or make {side} a multiple of {groups}, such as {grouped + groups - grouped % groups}.'
        )
    if bias and grouped_side == 'inputs':
        raise ValueError(
            f"{name}: bias=True is for grouped_side='outputs'; with grouped_side='inputs' add the bias after the layer."
        )


def check_importance(importance: Tensor, shape: tuple[int, int]) -> None:
    """Raise unless there is a finite importance of each unit.

    Args:
        importance: what :meth:`GroupSparseConv2d.prune_to` was given.
        shape: ``(groups, units)`` of the layer.

    Raises:
        ValueError: another shape, or NaN or infinite values.
    """
    if tuple(importance.shape) != shape:
        raise ValueError(
            f'importance has the shape {tuple(importance.shape)}; this layer takes one value for each unit, '
            f'(groups, units) = {shape}.'
        )
    if not bool(torch.isfinite(importance).all()):
        raise ValueError('importance holds NaN or infinite values; no mask was changed: give finite ones.')


def check_stage(stage: int, factor: int) -> None:
    """Raise unless a layer with this factor has this stage.

    Raises:
        ValueError: ``stage`` is not between 0 and ``factor - 1``.
    """
    if not 0 <= stage < factor:
        raise ValueError(f'stage is {stage}; this layer with factor {factor} has stages 0 to {factor - 1}.')


def check_finite(name: str, weight: Tensor) -> None:
    """Raise before pruning would compare NaN or infinite weights.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(
            f'{name} has NaN or infinite weights, so its least important connections cannot be told; no mask was '
            f'changed: resume from the last good checkpoint with a lower learning rate.'
        )


def check_finished(layer: Grouped, what: str) -> None:
    """Raise unless the last pruning stage of a layer is done.

    Args:
        layer: masked or packed.
        what: what is about to be done with it, such as ``'condensing'``.

    Raises:
        UnfinishedPruningError: pruning stages are left.
    """
    if not layer.is_finished():
        raise UnfinishedPruningError(
            f'{type(layer).__name__}({layer.in_channels}, {layer.out_channels}) is at pruning stage {int(layer.stage)} '
            f'of {layer.num_stages}; finish the sparsification schedule, or call prune_to({layer.num_stages}), '
            f'before {what} it.'
        )
