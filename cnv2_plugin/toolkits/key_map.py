"""Names of the same weights in timm's models and in OpenMMLab's: the one place where they are written.

| timm | mmpretrain (``ImageClassifier``), mmdet (backbone only) |
|---|---|
| trunk keys (``stem``, ``stages``, ``norm``, ``final``) | the same behind ``backbone.`` |
| ``se_head.`` | ``neck.se.`` (``SEGlobalPooling``) |
| ``conv_head.``, weight ``(F, C, 1, 1)`` | ``head.layers.0.fc.``, weight ``(F, C)`` (``StackedLinearClsHead``) |
| ``classifier.`` | ``head.layers.1.fc.`` behind a ``conv_head``, else ``head.fc.`` (``LinearClsHead``) |
"""

from collections.abc import Mapping

from torch import Tensor

_SE, _HIDDEN, _CLASSIFIER = ('se_head.', 'neck.se.'), ('conv_head.', 'head.layers.0.fc.'), 'classifier.'
_STACKED, _LINEAR = 'head.layers.1.fc.', 'head.fc.'
_BACKBONE = 'backbone.'
_TRUNK = ('stem.', 'stages.', 'norm.', 'final.')

LAYOUTS = ('timm', 'mmpretrain', 'backbone')


def layout_of(state_dict: Mapping[str, Tensor]) -> str:
    """Whose names the keys have: ``'timm'`` (or a bare trunk), or ``'mmpretrain'`` (any OpenMMLab model).

    Raises:
        ValueError: neither.
    """
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
    """Rename a state dict, whichever layout it has; the training and the deployed form alike.

    Args:
        state_dict: weights of a timm, mmpretrain or mmdet model.
        to: ``'timm'``, ``'mmpretrain'``, or ``'backbone'`` (trunk keys without prefix or head).

    Returns:
        The renamed weights, and the keys left out because the target has no place for them (a detector's neck and head,
        or ``out_norms``).

    Raises:
        ValueError: ``to`` is unknown, or the keys are of no known layout.
    """
    if to not in LAYOUTS:
        raise ValueError(f'to is {to!r}; it takes {", ".join(map(repr, LAYOUTS))}.')
    timm = _to_timm if layout_of(state_dict) == 'mmpretrain' else _keep
    renamed: dict[str, Tensor] = {}
    dropped: list[str] = []
    stacked = any(key.startswith(_HIDDEN) for key in state_dict)
    for key, value in state_dict.items():
        name, tensor = timm(key, value)
        if name and to == 'backbone' and not name.startswith(_TRUNK):
            name = None
        if name and to == 'mmpretrain':
            name, tensor = _to_mmpretrain(name, tensor, stacked)
        if name is None:
            dropped.append(key)
        else:
            renamed[name] = tensor
    return renamed, dropped


def _keep(key: str, value: Tensor):
    return key, value


def _to_timm(key: str, value: Tensor):
    trunk = key.removeprefix(_BACKBONE)
    if trunk != key:
        return (trunk if trunk.startswith(_TRUNK) else None), value
    for prefix, name in ((_SE[1], _SE[0]), (_HIDDEN[1], _HIDDEN[0]), (_STACKED, _CLASSIFIER), (_LINEAR, _CLASSIFIER)):
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            is_kernel = prefix == _HIDDEN[1] and rest == 'weight'
            return name + rest, value[:, :, None, None] if is_kernel else value
    return None, value


def _to_mmpretrain(key: str, value: Tensor, stacked: bool):
    if key.startswith(_TRUNK):
        return _BACKBONE + key, value
    classifier = (_CLASSIFIER, _STACKED if stacked else _LINEAR)
    for prefix, name in (_SE, _HIDDEN, classifier):
        if key.startswith(prefix):
            return name + key[len(prefix) :], value.flatten(1) if prefix == _HIDDEN[0] and value.ndim == 4 else value
    return None, value
