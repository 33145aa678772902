"""The learned sparse convolutions of a released file, put back into our training form.

Weights and masks are turned so that a row is a unit, which a group keeps or drops as a whole, and column
``m * groups + g`` belongs to member ``m`` of group ``g``: the layout of a reactivation, and the transposed one of a
learned group convolution.
"""

from typing import Optional

import torch
from torch import Tensor

from ..layers import GroupSparseConv2d, SparseFeatureReactivation, kept_units
from ..layers.permute import index_fault
from .io import CheckpointError
from .official_arch import read_count, read_mask

_IDENTITY = dict(weight=1.0, bias=0.0, running_mean=0.0, running_var=1.0)


class ReadOnce(dict[str, Tensor]):
    """A state dict whose tensors are taken out as they are read."""

    def take(self, key: str, shape: Optional[tuple[int, ...]] = None) -> Tensor:
        """A tensor; raises ``CheckpointError`` unless it is there, and of this shape where one is given."""
        if key not in self:
            raise CheckpointError(f'the file lacks {key}; it is incomplete, or of another network.')
        tensor = self.pop(key)
        if shape is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(f'{key} has the shape {tuple(tensor.shape)}; the rest of the file needs {shape}.')
        return tensor

    def check_all_read(self) -> None:
        """Raise ``CheckpointError`` where tensors are left that nothing reads; names them."""
        if self:
            raise CheckpointError(
                f'the file holds {len(self)} tensors that this network has no place for, such as '
                f'{", ".join(sorted(self)[:3])}; it is of another network.'
            )


def read_norm(source: ReadOnce, prefix: str, channels: int) -> dict[str, Tensor]:
    """Batch normalisation; ``num_batches_tracked`` may be absent."""
    norm = {name: source.take(f'{prefix}.{name}', (channels,)) for name in _IDENTITY}
    if bool((norm['running_var'] < 0).any()):
        raise CheckpointError(f'{prefix}.running_var has negative values; the file is damaged.')
    counter = f'{prefix}.num_batches_tracked'
    norm['num_batches_tracked'] = source.take(counter).long().reshape(()) if counter in source else torch.tensor(0)
    return norm


def read_sparse(source: ReadOnce, prefix: str, layer: GroupSparseConv2d, converted: bool) -> dict[str, Tensor]:
    """A learned sparse convolution as our state dict; ``layer`` may be on the meta device."""
    outputs, inputs = layer.conv.weight.shape[:2]
    if converted:
        read = _converted_sfr if isinstance(layer, SparseFeatureReactivation) else _converted_lgc
        index, rows, norm = read(source, prefix, outputs, inputs, layer.groups, layer.factor)
        groups, kept, members = rows.shape
        units = outputs if isinstance(layer, SparseFeatureReactivation) else inputs
        dense = rows.new_zeros(groups, units, members)
        weight = dense.scatter_(1, index[..., None].expand_as(rows), rows).permute(1, 2, 0).reshape(units, -1)
        mask = torch.zeros(groups, units, dtype=torch.bool).scatter_(1, index, True).t().repeat(1, members)
        stage = layer.factor - 1
    else:
        weight, mask, stage = _masked(source, prefix, layer)
        norm = read_norm(source, f'{prefix}.norm', inputs)
    if not isinstance(layer, SparseFeatureReactivation):
        weight, mask = weight.t(), mask.t()
    return {
        'conv.weight': weight[..., None, None].contiguous(),
        'mask': mask[..., None, None].contiguous(),
        'stage': torch.tensor(stage),
        **{f'norm.{key}': value for key, value in norm.items()},
    }


Converted = tuple[Tensor, Tensor, dict[str, Tensor]]
"""Kept index ``(groups, kept)``, weights ``(groups, kept, members)`` and normalisation of a converted layer."""


def _converted_lgc(source: ReadOnce, prefix: str, outputs: int, inputs: int, groups: int, factor: int) -> Converted:
    kept = kept_units(inputs, factor, factor - 1)
    index = source.take(f'{prefix}.index', (groups * kept,)).long().view(groups, kept)
    weight = source.take(f'{prefix}.conv.weight', (outputs, kept, 1, 1))
    _check_index(f'{prefix}.index', index, inputs)
    norm = _scatter_norm(read_norm(source, f'{prefix}.norm', groups * kept), index.flatten(), inputs, prefix)
    return index, weight.view(groups, outputs // groups, kept).transpose(1, 2), norm


def _converted_sfr(source: ReadOnce, prefix: str, outputs: int, inputs: int, groups: int, factor: int) -> Converted:
    kept = kept_units(outputs, factor, factor - 1)
    weight = source.take(f'{prefix}.conv.weight', (groups * kept, inputs // groups, 1, 1))
    one_hot = source.take(f'{prefix}.index', (groups * kept, outputs))
    wrong = (one_hot.sum(1) != 1) | ((one_hot != 0) & (one_hot != 1)).any(1)
    if bool(wrong.any()):
        raise CheckpointError(
            f'{prefix}.index row {int(wrong.nonzero()[0])} is not one-hot; each row names one channel with a single 1.'
        )
    index = one_hot.argmax(1).view(groups, kept)
    _check_index(f'{prefix}.index', index, outputs)
    return index, weight.view(groups, kept, -1), read_norm(source, f'{prefix}.norm', inputs)


def _masked(source: ReadOnce, prefix: str, layer: GroupSparseConv2d) -> tuple[Tensor, Tensor, int]:
    """Weight and mask with a unit a row, and the pruning stage."""
    groups, factor, shape = layer.groups, layer.factor, tuple(layer.conv.weight.shape)
    mask = read_mask(source, prefix)
    weight, stored = (source.take(f'{prefix}.{name}', shape).flatten(1) for name in ('conv.weight', '_mask'))
    stage, pruned = (read_count(source, f'{prefix}.{name}') for name in ('_stage', '_count'))
    del source[f'{prefix}._stage'], source[f'{prefix}._count']
    if stage >= factor:
        raise CheckpointError(f'{prefix}._stage is {stage}; a layer with factor {factor} has stages 0 to {factor - 1}.')
    if not bool(((stored == 0) | (stored == 1)).all()):  # an averaged mask
        weight = torch.where(mask, weight * stored.to(weight.dtype), weight)
    if not isinstance(layer, SparseFeatureReactivation):
        weight, mask = weight.t(), mask.t()
    if not torch.equal(mask, mask[:, :groups].repeat(1, mask.shape[1] // groups)):
        raise CheckpointError(
            f'{prefix}._mask differs within a group of {groups}; a group keeps or drops a channel as a whole.'
        )
    units, counts = len(mask), mask[:, :groups].sum(0)
    kept = kept_units(units, factor, stage)
    if not bool((counts == kept).all()):
        raise CheckpointError(
            f'{prefix}._mask keeps {int(counts.min())} to {int(counts.max())} of {units} channels, but at stage '
            f'{stage} with factor {factor} each group keeps {kept}.'
        )
    if pruned != units - kept:
        raise CheckpointError(
            f'{prefix}._count is {pruned}, but its mask drops {units - kept} channels at stage {stage}.'
        )
    return weight, mask, stage


def _check_index(key: str, index: Tensor, channels: int) -> None:
    if fault := index_fault(key, index, channels):
        raise CheckpointError(fault)
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
