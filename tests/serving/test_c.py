"""The C program of the page on serving, compiled as C and as C++, with the library of ONNX Runtime's wheel."""

import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from cnv2_plugin.kernels import onnxruntime_library
from tests.docs.blocks import ROOT
from tests.helpers import has_compiler, relative_difference
from tests.serving.files import classifier

LIBRARY = sorted(Path(find_spec('onnxruntime').origin).parent.glob('capi/libonnxruntime.so.*'))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs('kernels'),
    pytest.mark.skipif(not has_compiler(), reason='there is no compiler here'),
    pytest.mark.skipif(not LIBRARY, reason='this wheel of ONNX Runtime has no library that programs link to'),
]


@pytest.mark.parametrize('compiler', [('gcc', '-std=c99'), ('g++', '-x', 'c++')])
def test_the_program_answers_as_the_model(compiler, tmp_path):
    source, program = ROOT / 'docs/serving/classify.c', tmp_path / 'classify'
    (tmp_path / 'libonnxruntime.so.1').symlink_to(LIBRARY[0])
    link = ['-x', 'none', tmp_path / 'libonnxruntime.so.1', f'-Wl,-rpath,{tmp_path}']
    strict = ['-Wall', '-Wextra', '-Werror', '-I', Path(__file__).parent]
    subprocess.run([*compiler, *strict, source, *link, '-o', program], check=True)
    image = numpy.random.default_rng(0).standard_normal((1, 3, 32, 32), numpy.float32)
    image.tofile(tmp_path / 'image')
    for native in (False, True):
        model = classifier(tmp_path / 'file.onnx', native)
        command = [program, tmp_path / 'file.onnx', tmp_path / 'image', '3', '32', '32']
        done = subprocess.run([*command, *([onnxruntime_library()] if native else [])], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        given = torch.tensor([float(line) for line in done.stdout.split()])
        with torch.no_grad():
            assert relative_difference(given, model(torch.from_numpy(image))[0]) <= 2e-6
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and 'NativeStages' in refused.stderr
