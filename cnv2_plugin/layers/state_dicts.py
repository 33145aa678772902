"""State dicts of a group-sparse layer: reading a plain convolution's and the other state's, telling faults."""

from typing import TYPE_CHECKING, Any

import torch

from .permute import index_fault

if TYPE_CHECKING:
    from .sparse import GroupSparseConv2d


def adopt_plain_conv(layer: 'GroupSparseConv2d', state_dict: dict[str, Any], prefix: str) -> None:
    """Read the keys of a plain convolution as those of a layer before any pruning, in place."""
    if layer.deploy or f'{prefix}weight' not in state_dict or f'{prefix}conv.weight' in state_dict:
        return
    for key in ('weight', 'bias'):
        if f'{prefix}{key}' in state_dict:
            state_dict[f'{prefix}conv.{key}'] = state_dict.pop(f'{prefix}{key}')
    state_dict[f'{prefix}mask'] = torch.ones_like(layer.mask)
    state_dict[f'{prefix}stage'] = torch.zeros_like(layer.stage)


def adopt_average(layer: 'GroupSparseConv2d', state_dict: dict[str, Any], prefix: str) -> None:
    """Undo what averaging makes of a mask and a stage, in place: floats, and a stage that lags behind its mask."""
    mask, stage = state_dict.get(f'{prefix}mask'), state_dict.get(f'{prefix}stage')
    if layer.deploy or mask is None or stage is None or mask.shape != layer.mask.shape or mask.is_meta:
        return
    if mask.dtype != torch.bool and bool(((mask == 0) | (mask == 1)).all()):
        state_dict[f'{prefix}mask'] = mask.bool()
    said = round(float(stage))
    if 0 <= said < (done := layer.grouping.stage_of(mask != 0, said)):
        said = done
    state_dict[f'{prefix}stage'] = torch.as_tensor(said, device=stage.device)


def adopt_other_state(layer: 'GroupSparseConv2d', state_dict: dict[str, Any], prefix: str) -> list[str]:
    """Read a packed state dict into a masked layer and the other way round, in place; return its faults."""
    key = f'{prefix}conv.weight'
    weight, mask = state_dict.get(key), state_dict.get(f'{prefix}mask')
    if layer.deploy or weight is None or mask is None or mask.shape != layer.mask.shape:
        return []
    if mask.is_meta or layer.mask.is_meta:
        return []
    kept = layer.grouping.kept_index(mask)
    finished = kept.numel() == layer.groups * layer.kept_per_group()
    if not layer.packed:
        if finished and layer.grouping.is_packed(weight):
            state_dict[key] = layer.unpack_weight(weight, mask)
        return []
    if not finished:
        name = _name(layer, prefix)
        return [f'{name}: pruning is not finished in the state dict; call switch_to_masked() before loading it.']
    layer.kept = kept.to(layer.kept.device)
    if weight.shape == mask.shape:
        state_dict[key] = layer.pack_weight(weight, mask)
    return []


def state_dict_faults(layer: 'GroupSparseConv2d', state_dict: dict[str, Any], prefix: str) -> list[str]:
    """Say, in sentences, what keeps a layer from loading its entries: another state, an impossible stage or mask."""
    fault = (_index_fault if layer.deploy else _mask_fault)(layer, state_dict, prefix)
    return [f'{_name(layer, prefix)}: {fault}'] if fault else []


def _mask_fault(layer: 'GroupSparseConv2d', state_dict: dict[str, Any], prefix: str) -> str:
    if any(f'{prefix}{key}.index' in state_dict for key in ('gather', 'scatter')):
        return 'the state dict holds the condensed form; build the model with deploy=True to load it.'
    mask, stage = state_dict.get(f'{prefix}mask'), state_dict.get(f'{prefix}stage')
    if mask is None and stage is not None:
        return f'the state dict holds {prefix}stage, but lacks {prefix}mask; give both, or neither.'
    if mask is None or stage is None or mask.shape != layer.mask.shape or mask.is_meta:
        return ''
    if not 0 <= int(stage) <= layer.num_stages:
        return f'stage is {int(stage)}; a layer with factor {layer.factor} has stages 0 to {layer.num_stages}.'
    if mask.dtype != torch.bool:
        return 'the mask is an average of different masks; average networks that were pruned alike.'
    units = layer.grouping.by_unit(mask)
    expected = layer.kept_per_group(int(stage))
    if not bool((units == units[..., :1]).all()) or not bool((units[..., 0].sum(1) == expected).all()):
        return (
            f'mask and stage disagree; at stage {int(stage)} each of the {layer.groups} groups keeps {expected} of '
            f'{layer.num_units} channels (averages of weights need the masks: attach_sparsifier(..., ema=average)).'
        )
    return ''


def _index_fault(layer: 'GroupSparseConv2d', state_dict: dict[str, Any], prefix: str) -> str:
    if f'{prefix}mask' in state_dict:
        return (
            'the state dict holds the training form; build the model with deploy=False, load, then call '
            'switch_to_deploy().'
        )
    faults = (
        index_fault(f'{key}.index', state_dict.get(f'{prefix}{key}.index'), layer.num_units)
        for key in ('gather', 'scatter')
    )
    return next(filter(None, faults), '')


def _name(layer: 'GroupSparseConv2d', prefix: str) -> str:
    return prefix.rstrip('.') or type(layer).__name__
