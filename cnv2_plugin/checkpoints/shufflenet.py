"""ShuffleNetV2 weights of torchvision and MMPretrain under our keys."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ..layers import SparseFeatureReactivation
from ..models import ShuffleNetTrunk
from ..models.base import start_reactivation_at_zero
from .contents import find_state_dict
from .io import CheckpointError, load_checkpoint, misfit

_RENAMES = [
    (r'backbone\.', ''),
    (r'conv1\.(?:0|conv)\.', 'stem.conv.'),
    (r'conv1\.(?:1|bn)\.', 'stem.norm.'),
    (r'(?:conv5\.0|layers\.\d+\.conv)\.', 'final.conv.'),
    (r'(?:conv5\.1|layers\.\d+\.bn)\.', 'final.norm.'),
    (r'(?:head\.)?fc\.', 'classifier.'),
    *((rf'stage{i + 2}\.(\d+)\.', rf'stages.{i}.layers.\1.') for i in range(3)),
    (r'layers\.(\d+)\.(\d+)\.', r'stages.\1.layers.\2.'),
]
"""Beginnings of keys, torchvision's and MMPretrain's; each rule sees what the ones before it made."""

_BRANCHES = {'branch1': '0.conv 0.norm 1.conv 1.norm', 'branch2': '0.conv 0.norm - 1.conv 1.norm 2.conv 2.norm'}
"""Ours for each number that torchvision gives a layer of a branch; the activation has none."""

_OURS = re.compile(r'(stem|stages|final|classifier)\..+')
_BRANCH = re.compile(r'(stages\.\d+\.layers\.\d+)\.(branch[12])\.(\d)\.(?:(conv|bn)\.)?(?!conv|norm)(.+)')


def remap_shufflenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a ShuffleNetV2 of torchvision (``stage2.0.``) or MMPretrain (``layers.0.0.``) to ours.

    Keys that are ours already stay. MMPretrain's ``backbone.`` prefix goes, ``head.fc`` becomes ``classifier``.

    Raises:
        CheckpointError: a key is of none of them; names it.
    """
    remapped = {}
    for key, value in state.items():
        new = _ours(key)
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
    wanted = {
        key: value
        for key, value in own.items()
        if not key.startswith(('classifier.', *reactivation))
        and (key in state or not key.endswith('num_batches_tracked'))
    }
    fault = misfit(wanted, {key: state[key] for key in state if key in wanted or key not in (*own, *head)})
    if fault:
        raise CheckpointError(f'the source {fault}; give a ShuffleNetV2 of the same width, without reactivation.')
    model.load_state_dict({key: value for key, value in state.items() if key not in head}, strict=False)
    start_reactivation_at_zero(model)
    return head


def _state_dict(source: Union[str, Path, nn.Module, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return dict(source.state_dict())
    return find_state_dict(load_checkpoint(source) if isinstance(source, (str, Path)) else dict(source))


def _ours(key: str) -> Optional[str]:
    """Our name of a key, None where it is of no known network."""
    for start, ours in _RENAMES:
        key = re.sub(f'^{start}', ours, key)
    branch = _BRANCH.fullmatch(key)
    if branch:
        block, name, number, kind, rest = branch.groups()
        names = dict(enumerate(_BRANCHES[name].split()))
        part = f'{number}.{"norm" if kind == "bn" else "conv"}' if kind else names.get(int(number), '-')
        key = '' if part == '-' else f'{block}.{name}.{part}.{rest}'
    return key if _OURS.fullmatch(key) else None
