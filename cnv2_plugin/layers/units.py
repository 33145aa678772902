"""Grouping by units: what the masked, the packed and the condensed form of a group-sparse 1x1 convolution share.

A unit is all weights between one group and one channel of the other side. With ``grouped_side='outputs'`` (learned
group convolution) output ``o`` is in group ``o mod G`` and the inputs are the units; with ``grouped_side='inputs'``
(sparse feature reactivation) input ``i`` is in group ``i mod G`` and the outputs are the units. Pure functions, no
modules.
"""

from torch import Tensor


def kept_units(num_units: int, factor: int, stage: int) -> int:
    """Units that stay alive in each group once ``stage`` is done.

    ``n - floor(stage * (n - ceil(n / factor)) / (factor - 1))``; where ``factor`` divides ``n`` this is
    ``n / factor`` fewer units a stage (CondenseNet, section 3.2).

    Args:
        num_units: units per group, ``n``.
        factor: condense factor ``C`` or sparse factor ``S``; the last stage is ``factor - 1``.
        stage: number of pruning stages done.
    """
    if factor == 1:
        return num_units
    prunable = num_units - -(-num_units // factor)
    return num_units - min(stage, factor - 1) * prunable // (factor - 1)


def by_unit(tensor: Tensor, groups: int, grouped_side: str) -> Tensor:
    """View a tensor of the weight's shape by its units.

    Args:
        tensor: ``(O, I, 1, 1)``.
        groups: number of groups ``G``.
        grouped_side: which side is grouped, ``'outputs'`` or ``'inputs'``.

    Returns:
        ``(G, units, members of the unit)``: ``(G, I, O / G)`` over outputs, ``(G, O, I / G)`` over inputs.
    """
    matrix = tensor.flatten(1)
    if grouped_side == 'outputs':
        return matrix.unflatten(0, (-1, groups)).permute(1, 2, 0)
    return matrix.unflatten(1, (-1, groups)).permute(2, 0, 1)


def kept_index(mask: Tensor, groups: int, grouped_side: str) -> Tensor:
    """Units that a mask ``(O, I, 1, 1)`` keeps, group by group in ascending order: int64 ``(kept,)``."""
    return by_unit(mask, groups, grouped_side)[..., 0].nonzero()[:, 1]


def pack(weight: Tensor, kept: Tensor, groups: int, grouped_side: str) -> Tensor:
    """Surviving entries of a tensor of the weight's shape, as the weight of a group convolution.

    Args:
        weight: ``(O, I, 1, 1)``.
        kept: units of each group, ``(G * K,)`` with ``K`` units a group.
        groups: number of groups ``G``.
        grouped_side: which side is grouped.

    Returns:
        ``(O, K, 1, 1)`` over outputs, ``(G * K, I / G, 1, 1)`` over inputs; rows are in the order of the groups.
    """
    units = by_unit(weight, groups, grouped_side)
    rows = units.gather(1, kept.view(groups, -1, 1).expand(-1, -1, units.size(2)))
    if grouped_side == 'outputs':
        rows = rows.transpose(1, 2)
    return rows.flatten(0, 1)[..., None, None]


def unpack(packed: Tensor, kept: Tensor, groups: int, grouped_side: str, num_units: int) -> Tensor:
    """The inverse of :func:`pack`; pruned entries are 0.

    Args:
        packed: ``(O, K, 1, 1)`` over outputs, ``(G * K, I / G, 1, 1)`` over inputs.
        kept: units of each group, ``(G * K,)``.
        groups: number of groups ``G``.
        grouped_side: which side is grouped.
        num_units: channels of the side that is not grouped.

    Returns:
        ``(O, I, 1, 1)``.
    """
    rows = packed.flatten(1).unflatten(0, (groups, -1))
    if grouped_side == 'outputs':
        rows = rows.transpose(1, 2)
    index = kept.view(groups, -1, 1).expand(-1, -1, rows.size(2))
    units = rows.new_zeros([groups, num_units, rows.size(2)]).scatter(1, index, rows)
    if grouped_side == 'outputs':
        return units.permute(2, 0, 1).flatten(0, 1)[..., None, None]
    return units.permute(1, 2, 0).flatten(1)[..., None, None]
