"""An installation without native kernels."""

import pytest

from cnv2_plugin import kernels
from cnv2_plugin.cli import main
from cnv2_plugin.deploy import export_onnx, lower
from cnv2_plugin.kernels import library
from tests.kernels.cases import finished

TINY = dict(layers=(1, 2), growth=(8, 16), groups_1x1=4, groups_3x3=4, groups_sfr=2, condense_factor=4, sparse_factor=2)


@pytest.mark.needs('onnx', 'onnxruntime')
def test_an_installation_without_kernels_says_how_to_get_them(monkeypatch, tmp_path, capsys):
    model = finished('condensenetv2', arch=TINY, num_classes=5)
    monkeypatch.setattr(library, 'FILE', tmp_path / 'missing.so')
    library.load.cache_clear()
    try:
        assert not kernels.available()
        with pytest.raises(kernels.KernelsMissingError, match=r'C\+\+17 compiler'):
            lower(model, (3, 32, 32), 'native')
        assert main(['export', 'condensenetv2_a', '--out', str(tmp_path / 'a.onnx'), '--native']) == 1
        assert 'not built in this installation' in capsys.readouterr().err
        assert main(['env', '--json']) == 0
        assert 'not built in this installation' in capsys.readouterr().out
        export_onnx(model, tmp_path / 'standard.onnx', (3, 32, 32))
    finally:
        library.load.cache_clear()
