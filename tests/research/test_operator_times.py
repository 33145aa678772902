"""Time of an ONNX file by kind of operator."""

import pytest
import torch

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from tools.research.operator_times import operator_times


def test_every_kind_of_operator_has_its_time(tmp_path):
    from cnv2_plugin.deploy import export_onnx

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Sigmoid()).eval()
    export_onnx(model, tmp_path / 'a.onnx', (3, 16, 16))
    times = operator_times(tmp_path / 'a.onnx', (3, 16, 16), calls=2)
    assert any('Conv' in kind for kind in times) and all(time >= 0 for time in times.values())
