"""int8 files: calibrated on images as the network takes them, with a scale for each output channel."""

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

from cnv2_plugin.deploy import export_onnx
from cnv2_plugin.deploy.quantize import quantize_onnx

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')


@pytest.fixture
def quantised(tmp_path):
    """The initialisers of a tiny quantised network and the report; its channels differ in size by a thousand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor([1e-3, 1e-2, 1e-1, 1.0])[:, None, None, None])
    folder = tmp_path / 'images'
    folder.mkdir()
    for i, value in enumerate((0, 255, 128)):
        Image.fromarray(numpy.full((16, 16, 3), value, numpy.uint8)).save(folder / f'{i}.png')
    export_onnx(model, tmp_path / 'model.onnx', (3, 8, 8))
    config = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    report = quantize_onnx(tmp_path / 'model.onnx', tmp_path / 'int8.onnx', folder, config, rounds=1)
    graph = onnx.load(tmp_path / 'int8.onnx').graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    return graph, values, report


def test_the_input_has_the_range_of_normalised_images(quantised):
    graph, values, report = quantised
    node = next(n for n in graph.node if n.op_type == 'QuantizeLinear' and n.input[0] == graph.input[0].name)
    scale, zero = (float(values[name]) for name in node.input[1:3])
    assert scale * 127 == pytest.approx(4, abs=0.05) or scale * 255 == pytest.approx(4, abs=0.05)
    assert -scale * zero == pytest.approx(-2, abs=0.05)
    assert report.images == 3 and report.agreement == 1


def test_every_output_channel_has_a_scale_of_its_own(quantised):
    graph, values, _ = quantised
    kernels = [
        n for n in graph.node if n.op_type == 'DequantizeLinear' and values.get(n.input[0], numpy.empty(0)).ndim == 4
    ]
    (scales,) = (values[n.input[1]] for n in kernels)
    assert scales.shape == (4,) and scales.max() / scales.min() > 100
