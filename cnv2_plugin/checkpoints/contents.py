"""Where in a checkpoint the model is: in which container, behind which prefix, raw or averaged."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Optional

from torch import Tensor, nn

from .file_safety import CheckpointError

_AVERAGED = re.compile(r'(?:^|[._])(?:ema|averaged?|avg|swa|shadow)(?:[._\d]|$)', re.IGNORECASE)
_RAW = ('state_dict', 'model_state_dict', 'model', 'model_state', 'net', 'network', 'weights', 'params', 'module',
        '_orig_mod', 'backbone', 'encoder', 'student', 'online_model', 'current_model_state')  # fmt: skip
"""Names of containers and prefixes that hold a model as it was trained, the first of them preferred."""
_WRAPPERS = ('module.', '_orig_mod.', 'model.', 'net.', 'network.')
"""Prefixes that are dropped where nothing tells how the names of the model begin."""
_INSIDE = ('_orig_mod.', '_fsdp_wrapped_module.', '_checkpoint_wrapped_module.')
_ANCHORS = ('stem.weight', 'stem.conv.weight', 'features.init_conv.weight', 'conv1.0.weight', 'conv1.conv.weight')
"""First tensors of the networks of this package, of their authors, of torchvision and of MMPretrain."""
_HEADS = ('classifier.weight', 'fc.weight', 'head.weight')
_DEEPEST, _MOST = 4, 64
"""How deep containers are looked for, and how many there may be."""


@dataclass(frozen=True)
class Weights:
    """The weights that were found in a checkpoint.

    Attributes:
        state_dict: tensors by the model's own names.
        key: container, as dotted names; empty at the top.
        prefix: what was dropped from the names.
        averaged: whether they are averaged ones.
        said: what a user should know of the choice, empty where there was nothing to choose.
    """

    state_dict: dict[str, Tensor]
    key: str
    prefix: str
    averaged: bool
    said: str = ''


def find_weights(
    checkpoint: Mapping[str, Any],
    use_ema: bool = True,
    key: Optional[str] = None,
    prefix: Optional[str] = None,
    known: Collection[str] = (),
) -> Weights:
    """Find the weights of the model in a checkpoint.

    Args:
        checkpoint: what :func:`cnv2_plugin.checkpoints.load_checkpoint` returned.
        use_ema: take averaged weights where there are any.
        key: the container to take, as dotted names, in place of the one that is found.
        prefix: what to drop from the names, in place of what is found.
        known: names of tensors of the model, as far as they are known.

    Raises:
        CheckpointError: there are no tensors, or several sets of them of the same shapes among which nothing chooses;
            names them.
    """
    held = dict(_containers(checkpoint))
    if key is not None:
        held = {name: tensors for name, tensors in held.items() if f'{name}.'.startswith(f'{key}.')}
    sets = [each for name, tensors in held.items() for each in _split(name, tensors, prefix, known)]
    if not sets:
        where = f' under {key}' * (key is not None) + f' behind the prefix {prefix}' * (prefix is not None)
        raise CheckpointError(
            f'the checkpoint holds no tensors by name{where}; its keys are '
            f'{", ".join(map(str, list(checkpoint)[:6])) or "none"}. Give a file with model weights (a state_dict), or '
            f'say where they are with --key NAME or --prefix PREFIX (key=, prefix=).'
        )
    sets, anchors = _relabelled(sets, held), {*_anchors(known), *_ANCHORS}
    most = max(len(each.state_dict) for each in sets)
    averaged = [
        each for each in sets if each.averaged and (2 * len(each.state_dict) > most or anchors & each.state_dict.keys())
    ]
    raw = [each for each in sets if not each.averaged]
    if key is None and use_ema and not averaged:
        _check_named_averages(checkpoint)
    choice = averaged if averaged and (use_ema or not raw and key is not None) else raw
    if not choice:
        raise CheckpointError('the checkpoint holds averaged weights only; leave out --no-ema (use_ema=False).')
    chosen = min(choice, key=lambda each: _rank(each, anchors))
    rivals = [each for each in choice if _is_rival(each, chosen)]
    if rivals:
        raise CheckpointError(
            f'the checkpoint holds several sets of tensors of the same shapes, '
            f'{" and ".join(_place(each) for each in (chosen, *rivals))}; choose one with --key NAME or '
            f'--prefix PREFIX (key=, prefix=).'
        )
    return _completed(chosen, raw if chosen.averaged else averaged)


def find_state_dict(
    checkpoint: dict[str, Any], use_ema: bool = True, key: Optional[str] = None, prefix: Optional[str] = None
) -> dict[str, Tensor]:
    """The weights in a checkpoint, averaged ones where there are any, by the model's own names.

    Args:
        checkpoint: what :func:`cnv2_plugin.checkpoints.load_checkpoint` returned.
        use_ema: prefer averaged weights.
        key: the container to take, as dotted names, in place of the one that is found.
        prefix: what to drop from the names, in place of what is found.

    Raises:
        CheckpointError: there are no tensors in it, or several sets of which nothing says which one is meant.
    """
    return find_weights(checkpoint, use_ema, key, prefix).state_dict


def _containers(checkpoint: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict of tensors by name, with the dotted names that lead to it."""
    waiting: list[tuple[str, Any, int]] = [('', checkpoint, 0)]
    seen = 0
    while waiting and seen < _MOST:
        path, node, depth = waiting.pop(0)
        if isinstance(node, nn.Module):
            node = node.state_dict()
        tensors = {name: value for name, value in node.items() if isinstance(value, Tensor) and isinstance(name, str)}
        if tensors:
            seen += 1
            yield path, tensors
        if depth < _DEEPEST and len(tensors) < len(node):
            inner = [(name, value) for name, value in node.items() if isinstance(value, (Mapping, nn.Module))]
            waiting += [(f'{path}.{name}'.lstrip('.'), value, depth + 1) for name, value in inner[:_MOST]]


def _split(key: str, tensors: dict[str, Tensor], prefix: Optional[str], known: Collection[str]) -> list[Weights]:
    """The models in one container: what stands behind each prefix that leads to the first tensors of a model."""
    for wrapper in _INSIDE:
        tensors = {name.replace(f'.{wrapper}', '.'): value for name, value in tensors.items()}
    if prefix is None:
        starts = _prefixes(tensors, known)
    else:
        starts = {prefix if not prefix or prefix.endswith('.') else f'{prefix}.'}
    longest_first = sorted(starts, key=len, reverse=True)
    groups: dict[str, dict[str, Tensor]] = {start: {} for start in longest_first}
    for name, value in tensors.items():
        start = next((start for start in longest_first if name.startswith(start)), None)
        if start is not None:
            groups[start][name[len(start) :]] = value
    most = max(map(len, groups.values()))
    return [
        Weights(state, key, start, bool(_AVERAGED.search(f'{key}.{start}')))
        for start, state in groups.items()
        if 2 * len(state) > most
    ]


def _anchors(known: Collection[str]) -> tuple[str, ...]:
    """Some names that a model must have, and that are no ends of others of its names."""
    names = list(known)
    some = names[:: max(len(names) // 4, 1)] + names[-1:]
    return tuple(name for name in some if not any(other.endswith(f'.{name}') for other in names)) or _ANCHORS


def _prefixes(tensors: dict[str, Tensor], known: Collection[str]) -> set[str]:
    """What stands in front of the first tensors of a model, else the prefixes of wrappers that all names have."""
    for anchors in (_anchors(known), _ANCHORS):
        found: set[str] = set()
        for name in tensors:
            if name.endswith(anchors):
                starts = (name[: -len(anchor)] for anchor in anchors if name.endswith(anchor))
                found.update(start for start in starts if not start or start.endswith('.'))
        heads_beside = [s for s in found if s.endswith('backbone.') and not any(s + head in tensors for head in _HEADS)]
        found -= set(heads_beside)  # MMPretrain's names: the head stands beside the backbone
        found |= {start[: -len('backbone.')] for start in heads_beside}
        if len(found) > _MOST:
            raise CheckpointError(
                f'the checkpoint holds {len(found)} models; choose one with --prefix PREFIX (prefix=).'
            )
        if found:
            return found
    counted = [name for name, value in tensors.items() if '.' in name or value.numel() > 1] or list(tensors)
    start, wrapper = '', '.'
    while wrapper:
        wrapper = next((each for each in _WRAPPERS if all(name.startswith(start + each) for name in counted)), '')
        start += wrapper
    return {start}


def _relabelled(sets: list[Weights], held: Mapping[str, dict[str, Tensor]]) -> list[Weights]:
    """Exchange the names where a toolkit stores averaged weights under ``state_dict`` and the raw ones elsewhere.

    mmengine's hook counts its ``steps`` beside the raw ones; Lightning's callback calls them ``current_model_state``.
    """
    raw = {'current_model_state'} & held.keys()
    raw |= {name for name, tensors in held.items() if name.endswith('ema_state_dict') and 'steps' in tensors}
    if not raw:
        return sets
    return [replace(each, averaged=each.key == 'state_dict' or each.averaged and each.key not in raw) for each in sets]


def _check_named_averages(checkpoint: Mapping[Any, Any]) -> None:
    for name, value in checkpoint.items():
        if _AVERAGED.search(str(name)):
            lists = value.values() if isinstance(value, Mapping) else [value]
            if any(isinstance(each, (list, tuple)) and each and isinstance(each[0], Tensor) for each in lists):
                raise CheckpointError(
                    f'the averaged weights under {name} are a list without names; take the raw ones with --no-ema '
                    f'(use_ema=False), or save the averaged ones by name.'
                )


def _rank(found: Weights, anchors: set[str]) -> tuple[bool, int, int]:
    parts = [part for part in f'{found.key}.{found.prefix}'.split('.') if part and not part.isdecimal()]
    places = [_RAW.index(part) if part in _RAW else len(_RAW) for part in parts]
    return not anchors & found.state_dict.keys(), max(places, default=0), -len(found.state_dict)


def _shapes(found: Weights) -> dict[str, Any]:
    return {name: value.shape for name, value in found.state_dict.items() if value.is_floating_point()}


def _is_rival(other: Weights, chosen: Weights) -> bool:
    """Whether another set could be meant as well: of the same shapes, with other numbers."""
    if other is chosen or not _shapes(chosen) or _shapes(other) != _shapes(chosen):
        return False
    pairs = ((value, other.state_dict[name]) for name, value in chosen.state_dict.items() if value.is_floating_point())
    return any(one.dtype != two.dtype or not one.equal(two) for one, two in pairs)


def _completed(chosen: Weights, others: list[Weights]) -> Weights:
    """The choice with what to say of it, and with the buffers of raw weights where only parameters were averaged."""
    whole = next((each for each in others if _shapes(chosen).items() <= _shapes(each).items()), None)
    if not chosen.averaged:
        plain = not chosen.prefix and chosen.key in ('', 'state_dict')
        more = ', though there are averaged ones' if others else ''
        return replace(chosen, said='' if plain and not more else f'took raw weights {_place(chosen)}{more}')
    said = f'took averaged weights {_place(chosen)}' + ('; --no-ema takes the raw ones' if others else '')
    if whole is None or len(whole.state_dict) <= len(chosen.state_dict):
        return replace(chosen, said=said)
    missing = len(whole.state_dict) - len(chosen.state_dict)
    return replace(
        chosen,
        state_dict={**whole.state_dict, **chosen.state_dict},
        said=f'{said}, from which {missing} buffers are taken that were not averaged',
    )


def _place(found: Weights) -> str:
    place = f'`{found.key}`' if found.key else 'at the top'
    return f'{place} behind the prefix `{found.prefix}`' if found.prefix else place
