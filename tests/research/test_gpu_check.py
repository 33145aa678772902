"""The check on a card runs without one too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('timm')
pytest.importorskip('torchvision')
pytest.importorskip('onnxruntime')

from tools.research import gpu_check

ROOT = Path(__file__).parents[2]


def test_without_a_card_it_says_so_and_succeeds(monkeypatch, capsys):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert gpu_check.main([]) == 0 and 'no CUDA device' in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_finds_its_python_and_the_check():
    environment = {**os.environ, 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': ''}
    result = subprocess.run(['bash', 'tools/gpu_check.sh'], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and 'no CUDA device' in result.stdout, result.stderr


@pytest.mark.slow
def test_the_script_measures_and_compares_every_form(tmp_path, capsys):
    figures = tmp_path / 'figures.json'
    options = ['--device', 'cpu', '--budget', '30', '--batches', '1', '--size', '64', '--rounds', '2', '--json']
    assert gpu_check.main(['condensenet_50_cifar', *options, str(figures)]) == 0
    content = json.loads(figures.read_text())
    assert {(row[1], row[2]) for row in content['inference']} >= {
        (form, runtime) for form in ('training', 'condensed', 'lowered') for runtime in ('PyTorch', 'ONNX Runtime')
    }
    assert any('torch.compile' in what for what in content['left_out'])
    assert 'raise --budget' in capsys.readouterr().out
