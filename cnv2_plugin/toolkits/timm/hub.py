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
    arguments = dict(arch=json.loads(json.dumps(asdict(model.arch))), **(dict(deploy=True) if model.deploy else {}))
    if isinstance(model.classifier, SelectiveLinear):
        arguments['classifier_keep'] = model.classifier.keep
    save_for_hf(model, str(directory), model_args=arguments, safe_serialization=True)
    path, card = Path(directory) / 'config.json', Path(directory) / 'README.md'
    config = json.loads(path.read_text())
    config['model_args'].pop('num_classes', None)  # transformers refuses it there; it stays at the top level
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2))
    if not card.exists():
        with atomic_path(card) as temporary:
            temporary.write_text(_card(model, model_card or {}))


def _card(model: nn.Module, fields: Mapping[str, Any]) -> str:
    layers = [m for m in model.modules() if isinstance(m, GroupSparseConv2d)]
    finished = sum(layer.is_finished() for layer in layers)
    training = f'training form: masked convolutions, pruning finished in {finished} of {len(layers)}'
    details = {
        'Form': 'deployed: standard group convolutions' if model.deploy else training,
        'Parameters (M)': f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f}',
        'Classes': model.num_classes,
        'Image size': ' x '.join(map(str, model.pretrained_cfg['input_size'][1:])),
    }
    fields = dict(license='unknown', details=details, usage=_USAGE) | dict(fields)
    fields['tags'] = _listed(fields.get('tags') or ['image-classification', 'timm', 'condensenet'])
    details = fields['details']
    datasets = [_listed(details[key]) for key in ('Dataset', 'Pretrain Dataset') if key in details]
    # The header is made by the hub's own library: timm 1.0.9 has fixed tags, and no version quotes for YAML.
    header = ModelCardData(
        library_name=fields.get('library_name', 'timm'), pipeline_tag='image-classification', tags=fields['tags'],
        license=fields['license'], license_name=fields.get('license_name'), license_link=fields.get('license_link'),
        datasets=[name.lower() for names in datasets for name in names] or None,
    )  # fmt: skip
    text = generate_readme(fields, model.pretrained_cfg['architecture']).split('\n---\n', 1)[1]
    return f'---\n{header.to_yaml()}\n---\n{text}'


def _listed(value: Union[str, Iterable[str]]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
