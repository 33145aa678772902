"""Import of the files that the authors of CondenseNet and CondenseNetV2 released, or that their code writes."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ..archs import CondenseNetArch, variants_of
from ..layers import GroupSparseConv2d
from ..layers.permute import index_fault
from ..models import CondenseNetTrunk
from ..models.condense import condense_state_dict
from .contents import find_state_dict
from .io import CheckpointError, check_finite, load_checkpoint
from .official_arch import read_layout, settle_arch
from .official_layers import ReadOnce, read_norm, read_sparse

_CUSTOM = {'CondenseNetV2': 'condensenetv2', 'CondenseNet': 'condensenet'}
_LAYER = re.compile(r'stages\.(\d+)\.layers\.(\d+)\.(.+)')
_DENSE_LAYER = {'norm_2': 'conv_2.norm', 'conv_2': 'conv_2.conv', 'se.fc1': 'se.fc.0', 'se.fc2': 'se.fc.2'}
_TRUNK = {'stem': 'features.init_conv', 'norm.0': 'features.norm_last'}
"""The authors' names where ours differ, of modules of a dense layer and of the rest of the trunk."""


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A released file in our form.

    Attributes:
        state_dict: our training form, masks and stages set; loads strictly into
            ``timm.create_model(model_name, **model_kwargs)``.
        model_name: timm name.
        model_kwargs: arguments beside it; ``arch`` where the shape is not a published one.
        form: what the file held, ``'training'`` or ``'converted'``.
        stage: pruning stages done, of the layers with the most stages.
        arch: shape.
        classifier_keep: share of the classifier's inputs that the file reads where its authors dropped some, else None.
    """

    state_dict: dict[str, Tensor]
    model_name: str
    model_kwargs: dict[str, Any]
    form: str
    stage: int
    arch: CondenseNetArch
    classifier_keep: Optional[float] = None

    @property
    def finished(self) -> bool:
        """Whether every layer is at its last stage, so that there is a deployed form."""
        factors = {'conv_1': self.arch.condense_factor, 'sfr': self.arch.sparse_factor}
        return all(
            int(value) >= factors[key.split('.')[-2]] - 1
            for key, value in self.state_dict.items()
            if key.endswith('.stage')
        )

    @property
    def deploy_kwargs(self) -> dict[str, Any]:
        """Arguments of ``timm.create_model`` for the model that :meth:`deployed_state_dict` fits."""
        keep = {} if self.classifier_keep is None else dict(classifier_keep=self.classifier_keep)
        return {**self.model_kwargs, 'deploy': True, **keep}

    def deployed_state_dict(self) -> dict[str, Tensor]:
        """The exact deployed form; loads strictly into ``timm.create_model(model_name, **deploy_kwargs)``.

        Raises:
            UnfinishedPruningError: the file is from before the last pruning stage.
        """
        trunk = CondenseNetTrunk(self.arch, deploy=True, device='meta')
        return condense_state_dict(self.state_dict, trunk, keep=self.classifier_keep)


def import_official(
    path: Union[str, Path], trust: bool = False, use_ema: bool = True, **arch_overrides: Any
) -> ImportedCheckpoint:
    """Read a released file of CondenseNet or CondenseNetV2, in training or converted form, exactly.

    What no tensor tells (where hard-swish starts, the stem's stride, groups and factors before the first pruning
    stage) comes from ``arch_overrides``, else from the ``args`` in the file, else from the published network whose
    shape agrees in everything that can be told.

    Args:
        path: the file; DDP's ``module.`` prefixes, ``state_dict``, ``state_dict_ema`` and bare dicts are understood.
        trust: unpickle arbitrary objects; only for files whose origin you know.
        use_ema: prefer averaged weights where the file has them.
        **arch_overrides: fields of :class:`cnv2_plugin.archs.CondenseNetArch`.

    Raises:
        CheckpointError: the file cannot be read, is damaged, of another network, or leaves fields of the shape open.
        ValueError: an override is no field of the shape.

    Example:
        >>> imported = import_official('converted_condensenet_4.pth.tar')
        >>> model = timm.create_model(imported.model_name, **imported.model_kwargs)
        >>> model.load_state_dict(imported.state_dict)
    """
    checkpoint = load_checkpoint(path, trust)
    state = find_state_dict(checkpoint, use_ema)
    try:
        return import_official_state_dict(state, checkpoint.get('args'), **arch_overrides)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error


def import_official_state_dict(
    state: Mapping[str, Tensor], args: Any = None, **arch_overrides: Any
) -> ImportedCheckpoint:
    """As :func:`import_official`, from a state dict with the authors' keys and the ``args`` beside it."""
    check_finite(state, 'the released file')
    layout = read_layout(state)
    arch = settle_arch(layout, args, arch_overrides)
    source = ReadOnce(state)
    ours = _read_trunk(source, arch, layout.form == 'converted')
    classes, keep = _read_head(source, arch, ours)
    source.check_all_read()
    kwargs: dict[str, Any] = dict(num_classes=classes)
    if ours['stem.weight'].shape[1] != 3:
        kwargs['in_chans'] = ours['stem.weight'].shape[1]
    name = next((v.name for v in variants_of(layout.family).values() if v.arch == arch), None)
    if name is None:
        name = _CUSTOM[layout.family]
        kwargs['arch'] = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(arch).items()}
    stages = [int(value) for key, value in ours.items() if key.endswith('.stage')]
    return ImportedCheckpoint(ours, name, kwargs, layout.form, max(stages), arch, keep)


def is_official(state: Mapping[str, Any]) -> bool:
    """Whether the keys are the authors'."""
    return 'features.init_conv.weight' in state


def _theirs(name: str) -> str:
    """The authors' name of a module of our trunk."""
    match = _LAYER.match(name)
    if match is None:
        return _TRUNK[name]
    layer = f'features.denseblock_{int(match[1]) + 1}.denselayer_{int(match[2]) + 1}'
    return f'{layer}.{_DENSE_LAYER.get(match[3], match[3])}'


def _read_trunk(source: ReadOnce, arch: CondenseNetArch, converted: bool) -> dict[str, Tensor]:
    """All tensors of our trunk, by the structure of the trunk itself."""
    channels = source[f'{_theirs("stem")}.weight'].shape[1]
    try:
        trunk = CondenseNetTrunk(arch, in_chans=max(channels, 1), device='meta')
    except ValueError as error:
        raise CheckpointError(f'the tensors make no network: {error}') from error
    ours: dict[str, Tensor] = {}
    done: tuple[str, ...] = ()
    for name, module in trunk.named_modules():
        if name.startswith(done):
            continue
        if isinstance(module, GroupSparseConv2d):
            part = read_sparse(source, _theirs(name), module, converted)
            done += (f'{name}.',)
        elif isinstance(module, nn.BatchNorm2d):
            part = read_norm(source, _theirs(name), module.num_features)
        else:
            part = {
                key: source.take(f'{_theirs(name)}.{key}', tuple(value.shape))
                for key, value in module.named_parameters(recurse=False)
            }
        ours.update({f'{name}.{key}': value for key, value in part.items()})
    return ours


def _read_head(source: ReadOnce, arch: CondenseNetArch, ours: dict[str, Tensor]) -> tuple[int, Optional[float]]:
    """Add the head to ``ours``; returns the number of classes and the share of inputs that the classifier reads."""
    width = ours['norm.0.weight'].shape[0]
    if arch.head_width is not None:
        hidden = width // 16
        ours['se_head.fc1.weight'] = source.take('features.se_last.fc.0.weight', (hidden, width))
        ours['se_head.fc2.weight'] = source.take('features.se_last.fc.2.weight', (width, hidden))
        ours['conv_head.weight'] = source.take('fc.weight', (arch.head_width, width))[..., None, None]
        ours['conv_head.bias'] = source.take('fc.bias', (arch.head_width,))
        width = arch.head_width
    selected = 'classifier.index' in source
    name = 'classifier.linear' if selected else 'classifier'
    index = source.take('classifier.index').long() if selected else torch.arange(width)
    weight = source.take(f'{name}.weight')
    if weight.ndim != 2 or index.shape != weight.shape[1:]:
        raise CheckpointError(
            f'{name}.weight has the shape {tuple(weight.shape)}; it takes (classes, {index.numel()})'
            f'{", one for each entry of classifier.index" * selected}.'
        )
    if index_fault('classifier.index', index, width) or index.unique().numel() != index.numel():
        raise CheckpointError(
            f'classifier.index must list different inputs between 0 and {width - 1}, but holds {int(index.min())} to '
            f'{int(index.max())}, {index.unique().numel()} of {index.numel()} different.'
        )
    whole = weight.new_zeros(weight.shape[0], width)
    whole[:, index] = weight
    ours['classifier.weight'] = whole
    ours['classifier.bias'] = source.take(f'{name}.bias', (weight.shape[0],))
    return weight.shape[0], index.numel() / width if selected else None
