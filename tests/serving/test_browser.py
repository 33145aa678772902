"""Standard files in the browser's runtime, onnxruntime-web, on one thread of Node: outputs are ONNX Runtime's."""

import numpy
import pytest

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from cnv2_plugin.deploy import export_onnx
from tests.kernels.cases import finished
from tools.research import browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def runtime():
    try:
        return browser.runtime()
    except browser.BrowserRuntimeMissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(('name', 'bound'), [('condensenetv2_a', 1e-6), ('sfr_shufflenetv2_x0_5', 5e-7)])
def test_files_answer_in_the_browser_s_runtime(name, bound, tmp_path):
    """Of condensenetv2_a either runtime is 3e-7 to 7e-7 away from the exact result."""
    export_onnx(finished(name), tmp_path / 'standard.onnx', (3, 64, 64))
    images = numpy.random.default_rng(0).standard_normal((2, 3, 64, 64), numpy.float32)
    (given,) = browser.run_files([tmp_path / 'standard.onnx'], images)
    assert given.difference <= bound


def test_the_table_is_printed(capsys):
    assert browser.main(['sfr_shufflenetv2_x0_5', '--input-size', '3', '32', '32', '--rounds', '1', '--markdown']) == 0
    printed = capsys.readouterr().out
    assert '| sfr_shufflenetv2_x0_5 | lowered |' in printed
