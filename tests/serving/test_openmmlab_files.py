"""Files that come from configs of OpenMMLab answer as the toolkit's own inference does."""

import pytest
import torch

pytest.importorskip('onnxruntime')
pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain import ImageClassificationInferencer
from PIL import Image

from cnv2_plugin.cli import main
from cnv2_plugin.config_files import config_path
from cnv2_plugin.serving import Model
from tests.helpers import finish_pruning, randomize_norms
from tests.serving.test_serving import picture


def checkpoint(name, path, classes):
    """Write a finished model of a config, as a run would."""
    cfg = Config.fromfile(config_path(name))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = finish_pruning(randomize_norms(MODELS.build(cfg.model)))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), path)


@pytest.mark.parametrize(
    ('name', 'classes', 'native'),
    [
        ('fashion_mnist/condensenetv2-small_1xb64-5e_fashion-mnist.py', 10, False),
        pytest.param('fashion_mnist/sfr-shufflenetv2-small_1xb64-5e_fashion-mnist.py', 10, True,
                     marks=pytest.mark.needs('kernels')),
        pytest.param('condensenetv2/condensenetv2-a_8xb128-350e_in1k.py', 1000, False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_classifier_answers_as_in_mmpretrain(name, classes, native, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    classes = [f'class {i}' for i in range(classes)]
    checkpoint(name, 'trained.pth', classes)
    command = ['deploy', f'cnv2_plugin::{name}', 'trained.pth', '--out', 'c.onnx']
    assert main([*command, *(['--native'] if native else [])]) == 0, capsys.readouterr().err
    image = picture(60, 90)[..., 0] if 'fashion' in name else picture(300, 280)
    Image.fromarray(image).save('a.png')
    inferencer = ImageClassificationInferencer(str(config_path(name)), pretrained='trained.pth')
    given = image if 'fashion' in name else 'a.png'
    expected = inferencer(given)[0]
    answer = Model('c.onnx')('a.png', top=None)
    assert answer.names == [classes[i] for i in answer.labels]
    tolerance = 0.02 if 'fashion' in name else 1e-5  # OpenCV's resizing is met to a grey level
    assert answer.scores == pytest.approx(expected['pred_scores'][answer.labels], abs=tolerance)
