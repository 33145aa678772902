"""Every exporter of PyTorch agrees: each form of each family, through both, in ONNX Runtime, for any batch."""

import logging
import warnings

import pytest
import torch
from torch import nn

from cnv2_plugin.deploy import condense, lower
from cnv2_plugin.layers import ChannelScatterSum, GroupSparseConv2d
from tests.deploy.test_known import FAMILIES, SIZE, network
from tests.helpers import relative_difference

onnxruntime = pytest.importorskip('onnxruntime')
EXPORTERS = {
    **{f'opset {opset}': dict(dynamo=False, opset_version=opset) for opset in (11, 13, 17)},
    'dynamo': dict(dynamo=True, verbose=False),
}


def packed(model):
    for layer in model.modules():
        if isinstance(layer, GroupSparseConv2d):
            layer.switch_to_packed()
    return model


FORMS = dict(masked=lambda model: model, packed=packed, condensed=condense, lowered=lambda model: lower(model, SIZE))


def differs(model, path, exporter, dynamic, size=SIZE):
    """The relative difference of ONNX Runtime to PyTorch."""
    images = torch.randn(2, *size)
    options = dict(EXPORTERS[exporter])
    if options['dynamo'] and torch.__version__ < '2.6':
        pytest.skip('torch.export writes ONNX from PyTorch 2.6 on')
    if dynamic and options['dynamo']:
        options['dynamic_shapes'] = ({0: torch.export.Dim('batch', min=1)},)
    elif dynamic:
        options['dynamic_axes'] = {'images': {0: 'batch'}, 'result': {0: 'batch'}}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logging.getLogger('torch.onnx').setLevel(logging.ERROR)
        torch.onnx.export(model, (images,), path, input_names=['images'], output_names=['result'], **options)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    images = torch.randn(3 if dynamic else 2, *size)
    (result,) = session.run(None, {'images': images.numpy()})
    with torch.no_grad():
        return relative_difference(torch.from_numpy(result), model(images))


@pytest.mark.parametrize('form', FORMS)
def test_the_older_exporter_agrees(form, tmp_path):
    model = FORMS[form](network('condensenetv2')).eval()
    assert differs(model, str(tmp_path / 'model.onnx'), 'opset 13', dynamic=True) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [False, True])
@pytest.mark.parametrize('exporter', EXPORTERS)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', FAMILIES)
def test_every_exporter_agrees(name, form, exporter, dynamic, tmp_path):
    model = FORMS[form](network(name)).eval()
    assert differs(model, str(tmp_path / 'model.onnx'), exporter, dynamic) <= 1e-5


@pytest.mark.parametrize('index', [[0, 2, 2, 2, 0], [1, 0, 3, 2, 1], [3, 3, 3, 3, 3]])
def test_rows_of_one_channel_are_summed(index, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 5, 1), ChannelScatterSum(torch.tensor(index), 4)).eval()
    assert differs(model, str(tmp_path / 'model.onnx'), 'opset 13', dynamic=True) <= 1e-5
    scripted = torch.jit.script(model)
    images = torch.randn(1, *SIZE)
    assert torch.equal(scripted(images), model(images))


@pytest.mark.needs('kernels')
def test_native_kernels_are_refused_by_the_older_exporter(tmp_path):
    model, path = lower(network('condensenetv2'), SIZE, 'native'), tmp_path / 'model.onnx'
    with pytest.raises(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(model, (torch.randn(1, *SIZE),), str(path), dynamo=False, opset_version=17)
    assert not path.exists()
