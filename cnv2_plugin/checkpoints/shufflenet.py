"""ShuffleNetV2 weights of torchvision and MMPretrain under our keys."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor, nn

from ..layers import SparseFeatureReactivation
from ..models import ShuffleNetTrunk
from ..models.base import start_reactivation_at_zero
from .io import CheckpointError, find_state_dict, load_checkpoint

_TORCHVISION_PARTS = {
    '1': {0: '0.conv', 1: '0.norm', 2: '1.conv', 3: '1.norm'},
    '2': {0: '0.conv', 1: '0.norm', 3: '1.conv', 4: '1.norm', 5: '2.conv', 6: '2.norm'},
}
_STEM_AND_LAST = {'0': 'conv', '1': 'norm'}


def remap_shufflenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a ShuffleNetV2 of torchvision (``stage2.0.``) or MMPretrain (``layers.0.0.``) to ours.

    Keys that are ours already stay. MMPretrain's ``backbone.`` prefix goes, ``head.fc`` becomes ``classifier``.

    Raises:
        CheckpointError: a key is of none of them; names it.
    """
    remapped = {}
    for key, value in state.items():
        new = _ours(key.removeprefix('backbone.'))
        if new is None:
            raise CheckpointError(
                f'{key} is no key of a ShuffleNetV2 of torchvision, MMPretrain or this package; give its state dict.'
            )
        remapped[new] = value
    return remapped


def is_foreign_shufflenet(state: Mapping[str, Any]) -> bool:
    """Whether the keys are torchvision's or MMPretrain's."""
    return any(key.startswith(('conv1.', 'backbone.conv1.')) for key in state)


@torch.no_grad()
def init_from_shufflenet(model: nn.Module, source: Union[str, Path, nn.Module, Mapping[str, Tensor]]) -> list[str]:
    """Start an SFR-ShuffleNetV2 from a trained ShuffleNetV2 of the same width.

    Every reactivation gets a zero convolution weight, so that the model computes exactly what the source does. Its
    normalisation keeps weight 1: the convolution has a gradient from the first step (a zero normalisation weight
    before ReLU would never learn), and pruning compares weights that training has moved.

    Args:
        model: SFR-ShuffleNetV2 or ShuffleNetV2 in training form, of timm or OpenMMLab.
        source: model, state dict or checkpoint file of torchvision, MMPretrain or this package.

    Returns:
        Keys of the source that ``model`` has no place for: the classifier, for a backbone or other classes.

    Raises:
        CheckpointError: the source is no ShuffleNetV2 of this width; names what does not fit.
        ValueError: ``model`` is no ShuffleNetV2, or is deployed.
    """
    if not isinstance(model, ShuffleNetTrunk):
        raise ValueError(f'model is a {type(model).__name__}; give an SFR-ShuffleNetV2 of this package.')
    if model.deploy:
        raise ValueError('the model is in its deployed form; start from one that is built with deploy=False.')
    state = remap_shufflenet(_state_dict(source))
    own = model.state_dict()
    head = [
        key for key in state if key.startswith('classifier.') and own.get(key, torch.empty(0)).shape != state[key].shape
    ]
    reactivation = {f'{name}.' for name, m in model.named_modules() if isinstance(m, SparseFeatureReactivation)}
    wanted = [
        key for key in own if not any(key.startswith(p) for p in reactivation) and not key.startswith('classifier.')
    ]
    missing = [key for key in wanted if key not in state and not key.endswith('num_batches_tracked')]
    wrong = [key for key in wanted if key in state and state[key].shape != own[key].shape]
    unknown = [key for key in state if key not in own and key not in head]
    for what, keys in (
        ('lacks', missing),
        ('has another shape for', wrong),
        ('has no place in the model for', unknown),
    ):
        if keys:
            raise CheckpointError(
                f'the source {what} {", ".join(keys[:3])}{f" and {len(keys) - 3} more" if len(keys) > 3 else ""}; '
                f'give a ShuffleNetV2 of the same width, without reactivation.'
            )
    model.load_state_dict({key: value for key, value in state.items() if key not in head}, strict=False)
    start_reactivation_at_zero(model)
    return head


def _state_dict(source: Union[str, Path, nn.Module, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return dict(source.state_dict())
    return find_state_dict(load_checkpoint(source) if isinstance(source, (str, Path)) else dict(source))


def _ours(key: str) -> Union[str, None]:
    for pattern, rename in _RULES:
        match = pattern.fullmatch(key)
        if match:
            return rename(match)
    return None


_RULES = [
    (re.compile(r'(stem|stages|final|classifier)\..+'), lambda m: m[0]),
    (re.compile(r'conv1\.([01])\.(.+)'), lambda m: f'stem.{_STEM_AND_LAST[m[1]]}.{m[2]}'),
    (re.compile(r'conv5\.([01])\.(.+)'), lambda m: f'final.{_STEM_AND_LAST[m[1]]}.{m[2]}'),
    (
        re.compile(r'stage(\d+)\.(\d+)\.branch(?:(1)\.([0-3])|(2)\.([013456]))\.(.+)'),
        lambda m: (
            f'stages.{int(m[1]) - 2}.layers.{m[2]}.branch{m[3] or m[5]}.'
            f'{_TORCHVISION_PARTS[m[3] or m[5]][int(m[4] or m[6])]}.{m[7]}'
        ),
    ),
    (re.compile(r'conv1\.(conv|bn)\.(.+)'), lambda m: f'stem.{_openmmlab(m[1])}.{m[2]}'),
    (re.compile(r'layers\.(\d+)\.(conv|bn)\.(.+)'), lambda m: f'final.{_openmmlab(m[2])}.{m[3]}'),
    (
        re.compile(r'layers\.(\d+)\.(\d+)\.branch([12])\.(\d)\.(conv|bn)\.(.+)'),
        lambda m: f'stages.{m[1]}.layers.{m[2]}.branch{m[3]}.{m[4]}.{_openmmlab(m[5])}.{m[6]}',
    ),
    (re.compile(r'(?:head\.fc|fc)\.(weight|bias)'), lambda m: f'classifier.{m[1]}'),
]


def _openmmlab(part: str) -> str:
    return 'norm' if part == 'bn' else part
