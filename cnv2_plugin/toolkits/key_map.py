"""Renames weights between timm's models and OpenMMLab's.

| timm | mmpretrain (``ImageClassifier``), mmdet (backbone only) |
|---|---|
| trunk keys (``stem``, ``stages``, ``norm``, ``final``) | the same behind ``backbone.`` |
| ``se_head.`` | ``neck.se.`` (``SEGlobalPooling``) |
| ``conv_head.``, weight ``(F, C, 1, 1)`` | ``head.layers.0.fc.``, weight ``(F, C)`` (``StackedLinearClsHead``) |
| ``classifier.`` | ``head.layers.1.fc.`` behind a ``conv_head``, else ``head.fc.`` (``LinearClsHead``) |
"""

from collections.abc import Mapping
from typing import Optional

from torch import Tensor

_TRUNK = ('stem.', 'stages.', 'norm.', 'final.')
_BACKBONE = 'backbone.'
_HIDDEN = ('conv_head.', 'head.layers.0.fc.')

LAYOUTS = ('timm', 'mmpretrain', 'backbone')


def layout_of(state_dict: Mapping[str, Tensor]) -> str:
    """Tell whose names the keys have: ``'timm'`` (or a bare trunk), or ``'mmpretrain'`` (any OpenMMLab model)."""
    if any(key.startswith(_BACKBONE) for key in state_dict):
        return 'mmpretrain'
    if any(key.startswith(_TRUNK) for key in state_dict):
        return 'timm'
    shown = ', '.join(list(state_dict)[:4])
    raise ValueError(
        f'The keys ({shown}, ...) are neither those of a timm model here ({", ".join(_TRUNK)}...) nor those of '
        f'an OpenMMLab model ({_BACKBONE}...); for the files of the authors use "cnv2 import-official".'
    )


def convert_keys(state_dict: Mapping[str, Tensor], to: str) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the keys of a masked or condensed model to ``'timm'``, ``'mmpretrain'`` or ``'backbone'`` (no head).

    Returns the weights, and the keys for which there is no place (a detector's neck and head, or ``out_norms``).
    """
    if to not in LAYOUTS:
        raise ValueError(f'to is {to!r}; it takes {", ".join(map(repr, LAYOUTS))}.')
    stacked = any(key.startswith(_HIDDEN) for key in state_dict)
    classifier = 'head.layers.1.fc.' if stacked else 'head.fc.'
    pairs = [(key, _BACKBONE + key) for key in _TRUNK]
    pairs += [('se_head.', 'neck.se.'), _HIDDEN, ('classifier.', classifier)]
    from_mmpretrain = layout_of(state_dict) == 'mmpretrain'
    renamed, dropped = {}, []
    for key, value in state_dict.items():
        name = _rename(key, [(theirs, ours) for ours, theirs in pairs]) if from_mmpretrain else key
        if name == 'conv_head.weight' and value.ndim == (4 if to == 'mmpretrain' else 2):
            value = value.flatten(1) if to == 'mmpretrain' else value[:, :, None, None]
        if name and to == 'backbone' and not name.startswith(_TRUNK):
            name = None
        elif name and to == 'mmpretrain':
            name = _rename(name, pairs)
        if name:
            renamed[name] = value
        else:
            dropped.append(key)
    return renamed, dropped


def _rename(key: str, pairs: list[tuple[str, str]]) -> Optional[str]:
    """Replace the prefix of a key; None where it has none of the known ones."""
    return next((new + key[len(old) :] for old, new in pairs if key.startswith(old)), None)
