"""From a trained model to its files: what was verified is written, and all files appear together or none does."""

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint, save_checkpoint
from cnv2_plugin.deploy import VerificationError, export_onnx
from cnv2_plugin.deploy.pipeline import Output, deploy
from tests.helpers import finish_pruning, random_arch, randomize_norms

from .test_export import exporting

SIZE = (3, 24, 24)


def whole(model):
    return model


@pytest.fixture
def model():
    return finish_pruning(
        randomize_norms(timm.create_model('condensenetv2', arch=random_arch(201), num_classes=6))
    ).eval()


def test_the_verified_model_is_written(model, tmp_path):
    written = []

    def write(condensed, path):
        written.append(condensed)
        save_checkpoint(condensed.state_dict(), path)

    done = deploy(model, [Output((tmp_path / 'x.pth',), write)], SIZE, {'the model': whole})
    assert written == [done.model] and done.difference <= 1e-5 and done.reports == [None] and done.loss is None
    state = find_state_dict(load_checkpoint(tmp_path / 'x.pth'))
    assert all(torch.equal(value, state[key]) for key, value in done.model.state_dict().items())


class Fickle(nn.Module):
    """Gives something else when it is exported."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + (1 if torch.onnx.is_in_onnx_export() or exporting() else 0)


@pytest.mark.needs('onnx', 'onnxruntime')
@pytest.mark.parametrize('fault', ['writing', 'ONNX'])
def test_a_late_refusal_leaves_every_older_file(fault, model, tmp_path):
    paths = [tmp_path / name for name in ('x.pth', 'x.py', 'x.onnx')]
    for path in paths:
        path.write_text('old')

    def write(condensed, weights, config):
        save_checkpoint(condensed.state_dict(), weights)
        config.write_text('new')
        if fault == 'writing':
            raise ValueError('the config cannot express it')

    def write_onnx(condensed, path):
        export_onnx(Fickle(condensed) if fault == 'ONNX' else condensed, path, SIZE)

    outputs = [Output(tuple(paths[:2]), write), Output((paths[2],), write_onnx)]
    with pytest.raises((ValueError, VerificationError), match='cannot express|the ONNX file differs'):
        deploy(model, outputs, SIZE, {'the model': whole})
    assert sorted(tmp_path.iterdir()) == sorted(paths) and all(path.read_text() == 'old' for path in paths)
