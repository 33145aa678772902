"""What a group-sparse layer accepts from a state dict: which forms it adopts, and what is wrong with the others."""

from typing import Any

import torch

from .grouped import Grouped
from .units import by_unit, kept_index


def adopt_plain_conv(layer: Grouped, state_dict: dict[str, Any], prefix: str) -> None:
    """Read the keys of a plain convolution as those of a layer before any pruning, in place."""
    if layer.deploy or f'{prefix}weight' not in state_dict or f'{prefix}conv.weight' in state_dict:
        return
    for key in ('weight', 'bias'):
        if f'{prefix}{key}' in state_dict:
            state_dict[f'{prefix}conv.{key}'] = state_dict.pop(f'{prefix}{key}')
    state_dict[f'{prefix}mask'] = torch.ones_like(layer.mask)
    state_dict[f'{prefix}stage'] = torch.zeros_like(layer.stage)


def adopt_other_form(layer: Grouped, state_dict: dict[str, Any], prefix: str) -> list[str]:
    """Read a packed state dict in the masked form and the other way round, in place.

    Returns:
        What is wrong with it.
    """
    key = f'{prefix}conv.weight'
    weight, mask = state_dict.get(key), state_dict.get(f'{prefix}mask')
    if weight is None or mask is None or mask.shape != layer.mask.shape or mask.is_meta or layer.mask.is_meta:
        return []
    kept = kept_index(mask, layer.groups, layer.grouped_side)
    finished = kept.numel() == layer.groups * layer.kept_per_group()
    if layer.packed and not finished:
        name = _name(layer, prefix)
        return [f'{name}: pruning is not finished in the state dict; call switch_to_masked() before loading it.']
    if layer.packed:
        layer.kept = kept.to(layer.kept.device)
    if layer.packed and weight.shape == mask.shape:
        state_dict[key] = layer.pack_weight(weight, mask)
    elif finished and not layer.packed and weight.shape != mask.shape:
        state_dict[key] = layer.unpack_weight(weight, mask)
    return []


def state_dict_faults(layer: Grouped, state_dict: dict[str, Any], prefix: str) -> list[str]:
    """What is wrong with the entries of a layer: another form, an impossible stage, mask or index.

    Args:
        layer: the layer that would load them.
        state_dict: of the layer, or of a model that contains it.
        prefix: of the layer's keys, with the last dot.

    Returns:
        Sentences that name the layer; empty where nothing is wrong.
    """
    name = _name(layer, prefix)
    condensed = any(f'{prefix}{key}.index' in state_dict for key in ('gather', 'scatter'))
    if layer.deploy and f'{prefix}mask' in state_dict:
        return [
            f'{name}: the state dict holds the training form; build the model with deploy=False, load, then '
            f'call switch_to_deploy().'
        ]
    if condensed and not layer.deploy:
        return [f'{name}: the state dict holds the condensed form; build the model with deploy=True to load it.']
    if layer.deploy:
        return _index_faults(layer, state_dict, prefix)
    return _mask_faults(layer, state_dict, prefix)


def _mask_faults(layer: Grouped, state_dict: dict[str, Any], prefix: str) -> list[str]:
    name = _name(layer, prefix)
    mask, stage = state_dict.get(f'{prefix}mask'), state_dict.get(f'{prefix}stage')
    if mask is None or stage is None or mask.shape != layer.mask.shape or mask.is_meta:
        return []
    if not 0 <= int(stage) <= layer.num_stages:
        return [
            f'{name}: stage is {int(stage)}; a layer with factor {layer.factor} has stages 0 to {layer.num_stages}.'
        ]
    units = by_unit(mask.bool(), layer.groups, layer.grouped_side)
    whole = bool((units == units[..., :1]).all())
    expected = layer.kept_per_group(int(stage))
    if not whole or not bool((units[..., 0].sum(1) == expected).all()):
        return [
            f'{name}: mask and stage disagree; at stage {int(stage)} each of the {layer.groups} groups keeps '
            f'{expected} of {layer.num_units()} channels.'
        ]
    return []


def _index_faults(layer: Grouped, state_dict: dict[str, Any], prefix: str) -> list[str]:
    for key in ('gather', 'scatter'):
        index = state_dict.get(f'{prefix}{key}.index')
        if index is None or index.is_meta or index.numel() == 0:
            continue
        if int(index.min()) < 0 or int(index.max()) >= layer.num_units():
            return [
                f'{_name(layer, prefix)}: {key}.index must lie in 0 to {layer.num_units() - 1}, but holds '
                f'{int(index.min())} to {int(index.max())}.'
            ]
    return []


def _name(layer: Grouped, prefix: str) -> str:
    return prefix.rstrip('.') or type(layer).__name__
