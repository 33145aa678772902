"""Notebooks run from the first to the last cell, and what is stored in them is small and tells nothing of a machine."""

import json
import re

import pytest

from tests.docs.blocks import ROOT

NOTEBOOKS = sorted((ROOT / 'docs/notebooks').glob('*.ipynb'))
NEEDED = {'timm_train_to_deploy': ('timm', 'onnxruntime'), 'mmdet_sfrfpn': ('mmdet', 'mmcv')}
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= set(NEEDED)


@each_notebook
def test_stored_outputs_are_whole_and_small(path):
    text = path.read_text()
    assert len(text) < 150_000
    found = re.search(r'(?<![\w./])/(work|root|tmp|opt|home|usr)/', text)
    assert not found, found
    cells = json.loads(text)['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in code] == list(range(1, len(code) + 1)), 'run it in one go'
    outputs = [output for cell in code for output in cell['outputs']]
    assert outputs and all(output['output_type'] != 'error' for output in outputs)
    assert all(output.get('name') != 'stderr' for output in outputs), 'warnings or logs are stored'
    assert any('image/png' in output.get('data', {}) for output in outputs), 'no picture'


@pytest.mark.slow
@each_notebook
def test_every_cell_runs(path, tmp_path, monkeypatch):
    for package in ('nbclient', 'ipykernel', *NEEDED.get(path.stem, ())):
        pytest.importorskip(package)
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    resources = dict(metadata=dict(path=str(tmp_path)))
    NotebookClient(notebook, timeout=900, kernel_name='python3', resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    assert any('image/png' in output.get('data', {}) for output in outputs)
