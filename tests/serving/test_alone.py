"""A fresh environment that holds this package's wheel, ONNX Runtime, NumPy and Pillow, and nothing else."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
from PIL import Image

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from tests.serving.files import classifier
from tests.serving.test_serving import expected, picture

ALONE = ('numpy', 'PIL', 'onnxruntime', 'packaging', 'flatbuffers', 'google', 'coloredlogs', 'humanfriendly')
"""With what ONNX Runtime imports itself, in some versions."""


def clean_environment():
    """That of this process, without the places where its Python finds packages."""
    return {key: value for key, value in os.environ.items() if not key.startswith(('PYTHON', 'VIRTUAL_ENV'))}


@pytest.fixture(scope='module')
def python(platform_wheel, tmp_path_factory):
    """The environment's Python, which sees the packages that are meant and no others."""
    folder = tmp_path_factory.mktemp('alone') / 'environment'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    (packages,) = (folder / 'lib').glob('python3*/site-packages')
    for spec in filter(None, map(find_spec, ALONE)):
        for place in map(Path, spec.submodule_search_locations):
            for path in (place, place.with_name(f'{spec.name}.libs'), place.with_name('pillow.libs')):
                if path.is_dir() and not (packages / path.name).exists():
                    (packages / path.name).symlink_to(path)
    python = folder / 'bin/python'
    install = ['-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-index', platform_wheel]
    subprocess.run([sys.executable, *install], check=True, env=clean_environment())
    return python


@pytest.mark.slow
@pytest.mark.needs('c++', 'kernels')
@pytest.mark.parametrize('native', [False, True])
def test_a_wheel_without_pytorch_answers_as_the_model_in_pytorch(native, python, tmp_path):
    model, image = classifier(tmp_path / 'c.onnx', native), picture(50, 70)
    Image.fromarray(image).save(tmp_path / 'a.png')

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = 'import importlib.util as u, cnv2_plugin.kernels as k; print(u.find_spec("torch"), k.onnxruntime_library())'
    nothing, library = run(python, '-c', code).split()
    assert nothing == 'None' and Path(library).is_relative_to(python.parents[1])
    out = run(python.with_name('cnv2'), 'predict', 'c.onnx', 'a.png', '--json', '--out', 'drawn')
    (answer,) = json.loads(out)['answers'].values()
    scores = expected(model, image)
    assert answer['scores'] == pytest.approx(numpy.sort(scores)[::-1], abs=2e-6)
    assert (tmp_path / 'drawn/a.png').is_file()
