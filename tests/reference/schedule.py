"""When units are pruned, how many, and which ones: plain loops over groups and channels.

A *unit* is what pruning removes at once. For ``kind='lgc'`` it is the column of one input channel within one group of
outputs (output ``o`` is in group ``o mod G``); for ``kind='sfr'`` the row of one output channel within one group of
inputs (input ``i`` is in group ``i mod G``).
"""

import math

import torch


def stage_at(progress: float, factor: int, sparse_fraction: float = 0.5) -> int:
    """Returns how many of the ``factor - 1`` pruning stages are due.

    Args:
        progress: Share of training done, in [0, 1].
        factor: Condense or sparse factor.
        sparse_fraction: Share of training over which the stages are spread.
    """
    due = 0
    for stage in range(1, factor):
        if progress >= sparse_fraction * (stage / (factor - 1)):
            due = stage
    return due


def alive_units(n: int, factor: int, stage: int) -> int:
    """Returns how many of ``n`` units each group keeps once ``stage`` stages are done."""
    if factor == 1:
        return n
    kept_at_the_end = math.ceil(n / factor)
    return n - (stage * (n - kept_at_the_end)) // (factor - 1)


def count_units(weight: torch.Tensor, kind: str) -> int:
    """Returns the number of units per group: inputs for ``'lgc'``, outputs for ``'sfr'``."""
    return {'lgc': weight.shape[1], 'sfr': weight.shape[0]}[kind]


def unit_positions(weight: torch.Tensor, groups: int, kind: str, group: int, unit: int) -> list[tuple[int, int]]:
    """Returns the ``(output, input)`` positions of one unit."""
    outputs, inputs = weight.shape[:2]
    if kind == 'lgc':
        return [(o, unit) for o in range(group, outputs, groups)]
    return [(unit, i) for i in range(group, inputs, groups)]


def prune(
    weight: torch.Tensor, mask: torch.Tensor, groups: int, factor: int, stage_from: int, stage_to: int, kind: str
) -> torch.Tensor:
    """Prunes one layer from ``stage_from`` (done) to ``stage_to``, one stage after the other.

    Args:
        weight: ``[O, I, 1, 1]``.
        mask: 0/1 or bool, the weight's shape; left as it is.
        groups: Number of groups.
        factor: Condense or sparse factor.
        stage_from: The stage that ``mask`` has reached.
        stage_to: The stage to reach.
        kind: ``'lgc'`` or ``'sfr'``.

    Returns:
        A new mask of the same dtype.
    """
    if stage_to <= stage_from:
        return mask.clone()
    values = (weight.detach() * mask.to(weight))[:, :, 0, 0].abs().tolist()
    alive = mask[:, :, 0, 0].tolist()
    n = count_units(weight, kind)
    for group in range(groups):
        # Units do not overlap: pruning one leaves the importance of the others as it is.
        importance = {}
        for unit in range(n):
            positions = unit_positions(weight, groups, kind, group, unit)
            if all(alive[o][i] for o, i in positions):
                importance[unit] = math.fsum(values[o][i] for o, i in positions)
        for stage in range(stage_from + 1, stage_to + 1):
            from_least = sorted(importance, key=lambda unit: (importance[unit], unit))
            for unit in from_least[: len(importance) - alive_units(n, factor, stage)]:
                del importance[unit]
                for o, i in unit_positions(weight, groups, kind, group, unit):
                    alive[o][i] = 0
    return torch.tensor(alive).reshape(mask.shape).to(mask)


def group_lasso(weight: torch.Tensor, mask: torch.Tensor, groups: int, kind: str) -> torch.Tensor:
    """Returns the sum over units of the L2 norm of their masked weights (a tensor that can be differentiated).

    The squared norm is clamped at 1e-6, so a pruned unit adds 1e-3. That the term is zero once the last stage is done
    is the caller's part.
    """
    masked = weight * mask.to(weight)
    total = weight.new_zeros(())
    for group in range(groups):
        for unit in range(count_units(weight, kind)):
            values = [masked[o, i, 0, 0] for o, i in unit_positions(weight, groups, kind, group, unit)]
            total = total + torch.stack(values).square().sum().clamp(min=1e-6).sqrt()
    return total
