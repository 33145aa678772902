"""Importing the package: quiet, cheap, and indifferent to missing or broken toolkits."""

import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise {error}('blocked')
sys.meta_path.insert(0, Block())
"""


QUIET = ['-W', 'ignore::FutureWarning:onnxscript.converter']
"""onnxscript 0.1 warns about itself, and the torchvision of PyTorch 2.4 loads it."""


def run(code, blocked=(), error='ModuleNotFoundError'):
    prefix = BLOCK.format(blocked=set(blocked), error=error) if blocked else ''
    return subprocess.run([sys.executable, *QUIET, '-c', prefix + code], capture_output=True, text=True, check=False)


TOOLKITS = ('timm', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain')


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('blocked', 'error'),
    [
        ((), 'ImportError'),
        (TOOLKITS, 'ModuleNotFoundError'),
        (('timm',), 'RuntimeError'),
        pytest.param(('mmengine',), 'AssertionError', marks=pytest.mark.slow),
        pytest.param(('mmcv', 'mmdet', 'mmpretrain'), 'AssertionError', marks=pytest.mark.slow),
    ],
)
def test_import_says_nothing_and_works(blocked, error):
    code = 'import cnv2_plugin, cnv2_plugin.layers, cnv2_plugin.models, cnv2_plugin.sparsify, cnv2_plugin.deploy'
    result = run(code, blocked, error)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


HEAVY = ('mmcv', 'mmdet', 'mmpretrain', 'onnx', 'matplotlib')


@pytest.mark.parametrize('blocked', [(), ('timm', 'mmengine')])
def test_import_loads_no_heavy_package(blocked):
    code = f"""
import sys
for toolkit in ('timm', 'mmengine'):
    try:
        __import__(toolkit)
    except ModuleNotFoundError:
        pass
before = set(sys.modules)
import cnv2_plugin
print([m for m in {HEAVY} if m in set(sys.modules) - before])
"""
    assert run(code, blocked).stdout.strip() == '[]'


def test_own_import_is_cheap():
    """Counts modules rather than seconds: beyond torch, the package loads only itself."""
    code = """
import sys, torch, torch.utils.checkpoint
before = set(sys.modules)
import cnv2_plugin
print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - {'cnv2_plugin'}))
"""
    assert run(code, TOOLKITS).stdout.strip() == '[]'


def test_layers_train_with_torch_alone():
    code = """
import torch
from cnv2_plugin.layers import LearnedGroupConv
from cnv2_plugin.sparsify import StagedSparsifier
from cnv2_plugin.toolkits.key_map import convert_keys
layer = LearnedGroupConv(8, 8, 2, 2)
StagedSparsifier(layer, 2).set_progress(1)
layer.switch_to_deploy()
print(layer(torch.randn(1, 8, 2, 2)).shape)
"""
    assert run(code, TOOLKITS).stdout.strip() == 'torch.Size([1, 8, 2, 2])'


def test_users_type_checkers_see_the_annotations(tmp_path):
    """Collects the files that go into a wheel, without compiling anything."""
    command = [sys.executable, 'setup.py', '-q', 'egg_info', '-e', tmp_path, 'build_py', '-d', tmp_path / 'wheel']
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / 'wheel/cnv2_plugin/py.typed').is_file()
    assert (tmp_path / 'wheel/cnv2_plugin/layers/sparse.py').is_file()


def test_no_type_is_ignored_without_a_reason_or_for_a_whole_file():
    """The style check asks for a code after each; the reason is a second comment, or one in the line above."""
    comments = []
    for file in (ROOT / 'cnv2_plugin').rglob('*.py'):
        lines = comments_of(file)
        comments += lines.values()
        ignores = {line: text for line, text in lines.items() if text.startswith('# type: ignore')}
        assert all(text.partition(']  # ')[2].strip() or line - 1 in lines for line, text in ignores.items()), file
    assert not [text for text in comments if text.startswith('# mypy:')]
    settings = pytest.importorskip('tomllib').loads((ROOT / 'pyproject.toml').read_text())['tool']['mypy']
    keys = {*settings, *(key for override in settings['overrides'] for key in override)}
    assert not keys & {'ignore_errors', 'disable_error_code', 'follow_imports'}


def comments_of(file):
    with tokenize.open(file) as stream:
        tokens = list(tokenize.generate_tokens(stream.readline))
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def test_core_needs_torch_alone():
    lines = (ROOT / 'requirements/core.txt').read_text().split()
    assert [re.split('[<>=]', line)[0] for line in lines] == ['torch']
