"""The two learned sparse 1x1 convolutions, masked and condensed, in eval mode.

Batch normalisation is passed as a dict with ``weight``, ``bias``, ``running_mean`` and ``running_var``; the activation
as a function. Features are ``[N, C, H, W]``, weights and masks ``[O, I, 1, 1]``.
"""

from collections.abc import Callable

import torch

Norm = dict[str, torch.Tensor]
Activation = Callable[[torch.Tensor], torch.Tensor]

NORM_KEYS = ('weight', 'bias', 'running_mean', 'running_var')


def relu(x: torch.Tensor) -> torch.Tensor:
    """Returns ``max(x, 0)``."""
    return x.clamp(min=0)


def hard_swish(x: torch.Tensor) -> torch.Tensor:
    """Returns ``x * min(max(x + 3, 0), 6) / 6``."""
    return x * (x + 3).clamp(0, 6) / 6


def batch_norm(x: torch.Tensor, norm: Norm, eps: float = 1e-5) -> torch.Tensor:
    """Applies batch normalisation with the running statistics."""
    weight, bias, mean, var = (norm[key].reshape(1, -1, 1, 1) for key in NORM_KEYS)
    return (x - mean) / (var + eps).sqrt() * weight + bias


def conv1x1(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Applies a 1x1 convolution: each output is a weighted sum of the inputs."""
    return torch.einsum('oi,nihw->nohw', weight[:, :, 0, 0], x)


def lgc_masked(x: torch.Tensor, norm: Norm, weight: torch.Tensor, mask: torch.Tensor, act: Activation) -> torch.Tensor:
    """Learned group convolution as it is trained: a full convolution whose weight is masked."""
    return conv1x1(act(batch_norm(x, norm)), weight * mask.to(weight))


def sfr_masked(x: torch.Tensor, norm: Norm, weight: torch.Tensor, mask: torch.Tensor, act: Activation) -> torch.Tensor:
    """Sparse feature reactivation as it is trained: what is to be added to the old features."""
    return conv1x1(act(batch_norm(x, norm)), weight * mask.to(weight))


def condense_lgc(norm: Norm, weight: torch.Tensor, mask: torch.Tensor, groups: int) -> dict:
    """Turns a masked learned group convolution into a gather and a group convolution.

    Returns:
        ``index`` (int64, the gathered inputs, group by group), ``norm`` (one entry per gathered input), ``weight``
        (``[O, inputs per group, 1, 1]``, outputs group by group) and ``groups``.
    """
    outputs, inputs = weight.shape[:2]
    index, rows = [], []
    for group in range(groups):
        members = [o for o in range(outputs) if o % groups == group]
        selected = [i for i in range(inputs) if mask[group, i, 0, 0]]
        index += selected
        rows += [weight[o, selected] for o in members]
    index = torch.tensor(index)
    return {
        'index': index,
        'norm': {key: norm[key][index] for key in NORM_KEYS},
        'weight': torch.stack(rows),
        'groups': groups,
    }


def lgc_condensed(x: torch.Tensor, condensed: dict, act: Activation) -> torch.Tensor:
    """Runs what `condense_lgc` returns: gather, BN, activation, group convolution, shuffle."""
    groups, weight = condensed['groups'], condensed['weight']
    gathered = act(batch_norm(x[:, condensed['index']], condensed['norm']))
    n_in, n_out = gathered.shape[1] // groups, weight.shape[0] // groups
    out = x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])
    for group in range(groups):
        own_inputs = gathered[:, group * n_in : (group + 1) * n_in]
        out[:, group::groups] = conv1x1(own_inputs, weight[group * n_out : (group + 1) * n_out])
    return out


def condense_sfr(norm: Norm, weight: torch.Tensor, mask: torch.Tensor, groups: int) -> dict:
    """Turns a masked sparse feature reactivation into a group convolution and an index layer.

    Returns:
        ``index`` (int64, the old feature that each row of the convolution updates), ``norm``, ``weight``
        (``[rows, inputs per group, 1, 1]``, rows group by group), ``groups`` and ``out_channels``.
    """
    outputs, inputs = weight.shape[:2]
    index, rows = [], []
    for group in range(groups):
        members = [i for i in range(inputs) if i % groups == group]
        selected = [o for o in range(outputs) if mask[o, group, 0, 0]]
        index += selected
        rows += [weight[o, members] for o in selected]
    return {
        'index': torch.tensor(index),
        'norm': {key: norm[key] for key in NORM_KEYS},
        'weight': torch.stack(rows),
        'groups': groups,
        'out_channels': outputs,
    }


def sfr_rows(x: torch.Tensor, norm: Norm, weight: torch.Tensor, groups: int, act: Activation) -> torch.Tensor:
    """BN, activation, inputs into group order, group convolution: one channel per row of the condensed weight."""
    x = act(batch_norm(x, norm))
    per_group = weight.shape[0] // groups
    rows = []
    for group in range(groups):
        rows.append(conv1x1(x[:, group::groups], weight[group * per_group : (group + 1) * per_group]))
    return torch.cat(rows, 1)


def sfr_condensed(x: torch.Tensor, condensed: dict, act: Activation) -> torch.Tensor:
    """Runs what `condense_sfr` returns; old features that no row updates get 0."""
    rows = sfr_rows(x, condensed['norm'], condensed['weight'], condensed['groups'], act)
    out = x.new_zeros(x.shape[0], condensed['out_channels'], *x.shape[2:])
    for row, feature in enumerate(condensed['index'].tolist()):
        out[:, feature] += rows[:, row]
    return out
