"""Writes a model as the folder that timm and the Hugging Face hub load: weights, configuration and model card."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional, Union

from huggingface_hub import ModelCardData
from timm.models._hub import generate_readme, save_for_hf
from torch import nn

from ...checkpoints import atomic_path
from ...layers import GroupSparseConv2d, SelectiveLinear

_USAGE = """
```python
import timm
import cnv2_plugin

model = timm.create_model('local-dir:FOLDER', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
```

FOLDER is this folder (timm 1.0.16 or newer); once it is on the hub, `hf-hub:USER/NAME` takes the place of
`local-dir:FOLDER`.
"""


def save_for_hub(model: nn.Module, directory: Union[str, Path], model_card: Optional[Mapping[str, Any]] = None) -> None:
    """Write a trained or deployed timm model so that ``create_model('local-dir:DIRECTORY', pretrained=True)`` loads it.

    The folder holds ``model.safetensors``, ``config.json`` and a model card, ``README.md``, as ``hf-hub:`` sources do.
    An existing card is kept. timm reads ``local-dir:`` since 1.0.16; older versions need the hub.

    Args:
        model: made by ``timm.create_model``.
        directory: folder; made where it does not exist.
        model_card: fields of timm's model cards to add or replace: ``description``, ``license``, ``details``,
            ``usage``, ``citation``, ``tags`` (one or several; by default the task, ``timm`` and ``condensenet``).

    Raises:
        ValueError: the model was not made by ``timm.create_model``.
    """
    if not getattr(model, 'pretrained_cfg', None) or not hasattr(model, 'arch'):
        raise ValueError(
            f'{type(model).__name__} carries no timm configuration; make it with timm.create_model before saving it.'
        )
    arch = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(model.arch).items()}
    arguments = dict(arch=arch, **(dict(deploy=True) if model.deploy else {}))
    if isinstance(model.classifier, SelectiveLinear):
        arguments['classifier_keep'] = model.classifier.keep
    save_for_hf(model, str(directory), model_args=arguments, safe_serialization=True)
    _name_classes_once(Path(directory) / 'config.json')
    card = Path(directory) / 'README.md'
    if not card.exists():
        with atomic_path(card) as temporary:
            temporary.write_text(_card(model, model_card or {}))


def _name_classes_once(path: Path) -> None:
    """Remove the number of classes from ``model_args``, where transformers refuses it; it stays at the top level."""
    config = json.loads(path.read_text())
    config.get('model_args', {}).pop('num_classes', None)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2))


def _card(model: nn.Module, fields: Mapping[str, Any]) -> str:
    name = model.pretrained_cfg['architecture']
    layers = [m for m in model.modules() if isinstance(m, GroupSparseConv2d)]
    form = 'deployed: standard group convolutions'
    if not model.deploy:
        finished = sum(layer.is_finished() for layer in layers)
        form = f'training form: masked convolutions, pruning finished in {finished} of {len(layers)}'
    details = {
        'Form': form,
        'Parameters (M)': f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f}',
        'Classes': model.num_classes,
        'Image size': ' x '.join(map(str, model.pretrained_cfg['input_size'][1:])),
    }
    fields = dict(license='unknown', details=details, usage=_USAGE) | dict(fields)
    fields['tags'] = _listed(fields.get('tags') or ['image-classification', 'timm', 'condensenet'])
    text = generate_readme(fields, name).split('\n---\n', 1)[1]
    return f'---\n{_header(fields).to_yaml()}\n---\n{text}'


def _header(fields: Mapping[str, Any]) -> ModelCardData:
    """Make the card's header with the hub's own library: timm 1.0.9 has fixed tags, and no version quotes for YAML."""
    details = fields['details']
    datasets = [_listed(details[key]) for key in ('Dataset', 'Pretrain Dataset') if key in details]
    return ModelCardData(
        library_name=fields.get('library_name', 'timm'), pipeline_tag='image-classification', tags=fields['tags'],
        license=fields['license'], license_name=fields.get('license_name'), license_link=fields.get('license_link'),
        datasets=[name.lower() for names in datasets for name in names] or None,
    )  # fmt: skip


def _listed(value: Union[str, Iterable[str]]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
