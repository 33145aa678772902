"""Transforms that timm makes for our names, and folders with a model card."""

import json

import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from cnv2_plugin.archs import VARIANTS
from cnv2_plugin.deploy import condense
from cnv2_plugin.toolkits.timm import save_for_hub
from tests.helpers import finish_pruning, randomize_norms

from .stand_ins import in_the_hub


@pytest.mark.parametrize('name', ['condensenetv2_a', 'condensenetv2_c', 'condensenet_50_cifar', 'shufflenetv2_x0_5'])
def test_transforms_are_those_of_the_variant(name):
    variant = VARIANTS[name]
    model = timm.create_model(name, deploy=True)
    config = timm.data.resolve_model_data_config(model)
    assert config['input_size'] == variant.input_size and config['crop_pct'] == variant.crop_pct
    assert config['interpolation'] == variant.interpolation
    assert (config['mean'], config['std']) == variant.stats
    evaluate = timm.data.create_transform(**config, is_training=False)
    resize, crop, normalize = (
        next(t for t in evaluate.transforms if isinstance(t, kind))
        for kind in (transforms.Resize, transforms.CenterCrop, transforms.Normalize)
    )
    side = variant.input_size[1]
    assert resize.size == int(side / variant.crop_pct) and tuple(crop.size) == (side, side)
    assert resize.interpolation.value == variant.interpolation
    assert torch.allclose(torch.as_tensor(normalize.mean), torch.tensor(variant.stats[0]))
    image = Image.new('RGB', (300, 260), (255, 0, 0))
    seen = evaluate(image)
    red = torch.tensor([1.0, 0, 0]).sub(torch.tensor(variant.stats[0])).div(torch.tensor(variant.stats[1]))
    assert seen.shape == variant.input_size and torch.allclose(seen[:, 5, 5], red, atol=1e-5)
    train = timm.data.create_transform(**config, is_training=True)
    assert train(image).shape == variant.input_size


@pytest.mark.parametrize('deployed', [False, True])
def test_a_folder_for_the_hub_has_weights_card_and_config(deployed, tmp_path, monkeypatch):
    model = finish_pruning(randomize_norms(timm.create_model('condensenet_50_cifar', num_classes=4))).eval()
    model = condense(model) if deployed else model
    save_for_hub(model, tmp_path, model_card=dict(description='Digits.', license='apache-2.0'))
    assert {path.name for path in tmp_path.iterdir()} == {'README.md', 'config.json', 'model.safetensors'}
    from huggingface_hub import ModelCard

    card = ModelCard.load(tmp_path / 'README.md')
    assert card.data.library_name == 'timm' and card.data.license == 'apache-2.0'
    assert {'timm', 'image-classification', 'condensenet'} <= set(card.data.tags)
    assert 'import cnv2_plugin' in card.text and 'Digits.' in card.text
    assert ('standard group convolutions' in card.text) == deployed
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['architecture'] == 'condensenet_50_cifar' and bool(config['model_args'].get('deploy')) == deployed
    read = timm.create_model(in_the_hub(tmp_path, monkeypatch), pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(read(x), model(x)) and read.num_classes == 4


@pytest.mark.parametrize(
    ('fields', 'expected'),
    [
        (dict(tags=('mine', 'b')), dict(tags=['mine', 'b'], license='unknown')),
        (dict(tags='mine'), dict(tags=['mine'])),
        (dict(tags=iter(['a: b', '@me'])), dict(tags=['a: b', '@me'])),
        (dict(tags=None), dict(tags=['image-classification', 'timm', 'condensenet'])),
        (dict(license='other', license_name='Mine: v1'), dict(license='other', license_name='Mine: v1')),
        (dict(details={'Dataset': 'A: b', 'Pretrain Dataset': ['C']}), dict(datasets=['a: b', 'c'])),
    ],
    ids=['several tags', 'one tag', 'tags that YAML quotes', 'no tags', 'licence', 'data sets'],
)
def test_fields_of_one_s_own_are_read_from_the_card(fields, expected, tmp_path):
    from huggingface_hub import ModelCard

    save_for_hub(timm.create_model('condensenet_50_cifar'), tmp_path, fields)
    card = ModelCard.load(tmp_path / 'README.md')
    assert card.data.to_dict().items() >= expected.items()
    assert card.data.library_name == 'timm' and card.text.lstrip().startswith('# Model card for condensenet_50_cifar')


def test_a_card_of_the_folder_stays(tmp_path):
    (tmp_path / 'README.md').write_text('mine')
    save_for_hub(timm.create_model('condensenet_50_cifar'), tmp_path)
    assert (tmp_path / 'README.md').read_text() == 'mine'
