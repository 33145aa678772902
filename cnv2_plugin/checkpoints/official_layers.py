"""The two learned sparse convolutions of a released file, put back into our training form."""

from collections.abc import Mapping
from typing import Optional

import torch
from torch import Tensor

from ..layers import kept_units
from .io import CheckpointError
from .official_arch import read_count, read_mask

_IDENTITY = dict(weight=1.0, bias=0.0, running_mean=0.0, running_var=1.0)


class ReadOnce:
    """A state dict that remembers what was taken from it.

    Args:
        state: tensors by name.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = dict(state)
        self.left = set(state)

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def take(self, key: str, shape: Optional[tuple[int, ...]] = None) -> Tensor:
        """A tensor that must be there, and of this shape where one is given.

        Raises:
            CheckpointError: it is not.
        """
        if key not in self.state:
            raise CheckpointError(f'the file lacks {key}; it is incomplete, or of another network.')
        tensor = self.state[key]
        if shape is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(f'{key} has the shape {tuple(tensor.shape)}; the rest of the file needs {shape}.')
        self.left.discard(key)
        return tensor

    def check_all_read(self) -> None:
        """Raise where tensors are left that nothing reads.

        Raises:
            CheckpointError: there are some; names them.
        """
        if self.left:
            left = sorted(self.left)
            raise CheckpointError(
                f'the file holds {len(left)} tensors that this network has no place for, such as '
                f'{", ".join(left[:3])}; it is of another network.'
            )


def read_norm(source: ReadOnce, prefix: str, channels: int) -> dict[str, Tensor]:
    """Batch normalisation; ``num_batches_tracked`` may be absent."""
    norm = {name: source.take(f'{prefix}.{name}', (channels,)) for name in _IDENTITY}
    if bool((norm['running_var'] < 0).any()):
        raise CheckpointError(f'{prefix}.running_var has negative values; the file is damaged.')
    counter = f'{prefix}.num_batches_tracked'
    norm['num_batches_tracked'] = source.take(counter).long().reshape(()) if counter in source else torch.tensor(0)
    return norm


def read_lgc(
    source: ReadOnce, prefix: str, inputs: int, outputs: int, groups: int, factor: int, converted: bool
) -> dict[str, Tensor]:
    """A learned group convolution as our state dict: ``conv.weight``, ``mask``, ``stage``, ``norm.*``."""
    if not converted:
        return _read_masked(source, prefix, inputs, outputs, inputs, groups, factor, by_output=True)
    kept = kept_units(inputs, factor, factor - 1)
    index = source.take(f'{prefix}.index', (groups * kept,)).long().view(groups, kept)
    weight = source.take(f'{prefix}.conv.weight', (outputs, kept, 1, 1))
    _check_index(f'{prefix}.index', index, inputs)
    dense = weight.new_zeros(outputs // groups, groups, inputs)
    rows = weight.view(groups, outputs // groups, kept).transpose(0, 1)
    dense.scatter_(2, index.expand(outputs // groups, -1, -1), rows)
    norm = _scatter_norm(read_norm(source, f'{prefix}.norm', groups * kept), index.flatten(), inputs, prefix)
    mask = torch.zeros(groups, inputs, dtype=torch.bool).scatter_(1, index, True)
    mask = mask.repeat(outputs // groups, 1)
    return _layer(dense.view(outputs, inputs), mask, factor - 1, norm)


def read_sfr(
    source: ReadOnce, prefix: str, inputs: int, outputs: int, groups: int, factor: int, converted: bool
) -> dict[str, Tensor]:
    """A sparse feature reactivation as our state dict: ``conv.weight``, ``mask``, ``stage``, ``norm.*``."""
    if not converted:
        return _read_masked(source, prefix, inputs, outputs, outputs, groups, factor, by_output=False)
    kept = kept_units(outputs, factor, factor - 1)
    rows = source.take(f'{prefix}.conv.weight', (groups * kept, inputs // groups, 1, 1))
    one_hot = source.take(f'{prefix}.index', (groups * kept, outputs))
    if not bool(((one_hot == 0) | (one_hot == 1)).all()) or not bool((one_hot.sum(1) == 1).all()):
        bad = int(((one_hot.sum(1) != 1) | ((one_hot != 0) & (one_hot != 1)).any(1)).nonzero()[0])
        raise CheckpointError(f'{prefix}.index row {bad} is not one-hot; each row names one channel with a single 1.')
    index = one_hot.argmax(1).view(groups, kept)
    _check_index(f'{prefix}.index', index, outputs)
    dense = rows.new_zeros(groups, outputs, inputs // groups)
    dense.scatter_(1, index[..., None].expand(-1, -1, inputs // groups), rows.view(groups, kept, -1))
    mask = torch.zeros(groups, outputs, dtype=torch.bool).scatter_(1, index, True)
    mask = mask.t().repeat(1, inputs // groups)
    norm = read_norm(source, f'{prefix}.norm', inputs)
    return _layer(dense.permute(1, 2, 0).reshape(outputs, inputs), mask, factor - 1, norm)


def _read_masked(
    source: ReadOnce, prefix: str, inputs: int, outputs: int, units: int, groups: int, factor: int, by_output: bool
) -> dict[str, Tensor]:
    weight = source.take(f'{prefix}.conv.weight', (outputs, inputs, 1, 1)).flatten(1)
    stored = source.take(f'{prefix}._mask', (outputs, inputs, 1, 1)).flatten(1)
    mask = read_mask(source.state, prefix)
    stage = read_count(source.state, f'{prefix}._stage')
    pruned = read_count(source.state, f'{prefix}._count')
    source.left -= {f'{prefix}._stage', f'{prefix}._count'}
    if stage >= factor:
        raise CheckpointError(f'{prefix}._stage is {stage}; a layer with factor {factor} has stages 0 to {factor - 1}.')
    of_member = mask if by_output else mask.t()
    period = of_member.view(-1, groups, units)
    if not bool((period == period[:1]).all()):
        raise CheckpointError(
            f'{prefix}._mask differs within a group of {groups}; a group keeps or drops a channel as a whole.'
        )
    kept = kept_units(units, factor, stage)
    counts = period[0].sum(1)
    if not bool((counts == kept).all()):
        raise CheckpointError(
            f'{prefix}._mask keeps {int(counts.min())} to {int(counts.max())} of {units} channels, but at stage '
            f'{stage} with factor {factor} each group keeps {kept}.'
        )
    if pruned != units - kept:
        raise CheckpointError(
            f'{prefix}._count is {pruned}, but its mask drops {units - kept} channels at stage {stage}.'
        )
    averaged = not bool(((stored == 0) | (stored == 1)).all())
    if averaged:
        weight = torch.where(mask, weight * stored.to(weight.dtype), weight)
    return _layer(weight, mask, stage, read_norm(source, f'{prefix}.norm', inputs))


def _layer(weight: Tensor, mask: Tensor, stage: int, norm: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        'conv.weight': weight[..., None, None].contiguous(),
        'mask': mask[..., None, None].contiguous(),
        'stage': torch.tensor(stage),
        **{f'norm.{key}': value for key, value in norm.items()},
    }


def _check_index(key: str, index: Tensor, channels: int) -> None:
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= channels):
        raise CheckpointError(
            f'{key} must lie in 0 to {channels - 1}, but holds {int(index.min())} to {int(index.max())}.'
        )
    for group, row in enumerate(index.tolist()):
        if len(set(row)) != len(row):
            raise CheckpointError(f'{key} names a channel twice in group {group}; the file is damaged.')


def _scatter_norm(norm: dict[str, Tensor], index: Tensor, channels: int, prefix: str) -> dict[str, Tensor]:
    """Gathered entries back in their channels; entries that no group reads become the identity."""
    whole = {}
    for name, default in _IDENTITY.items():
        gathered = norm[name]
        whole[name] = torch.full((channels,), default, dtype=gathered.dtype).scatter_(0, index, gathered)
        differing = (whole[name][index] != gathered).nonzero()
        if differing.numel():
            raise CheckpointError(
                f'{prefix}.norm.{name} has different values for the copies of channel {int(index[differing[0, 0]])}; '
                f'the copies of one channel are equal in a converted file.'
            )
    whole['num_batches_tracked'] = norm['num_batches_tracked']
    return whole
