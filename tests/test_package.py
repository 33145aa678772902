"""Importing the package: quiet, cheap, and indifferent to missing or broken toolkits."""

import subprocess
import sys

import pytest

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise {error}('blocked')
sys.meta_path.insert(0, Block())
"""


def run(code, blocked=(), error='ModuleNotFoundError'):
    prefix = BLOCK.format(blocked=set(blocked), error=error) if blocked else ''
    return subprocess.run([sys.executable, '-c', prefix + code], capture_output=True, text=True, check=False)


TOOLKITS = ('timm', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain')


@pytest.mark.parametrize(
    ('blocked', 'error'),
    [
        ((), 'ImportError'),
        (TOOLKITS, 'ModuleNotFoundError'),
        (('timm',), 'RuntimeError'),
        (('mmengine',), 'AssertionError'),
        (('mmcv', 'mmdet', 'mmpretrain'), 'AssertionError'),
    ],
)
def test_import_says_nothing_and_works(blocked, error):
    code = 'import cnv2_plugin, cnv2_plugin.layers, cnv2_plugin.models, cnv2_plugin.sparsify, cnv2_plugin.deploy'
    result = run(code, blocked, error)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_import_loads_no_heavy_toolkit():
    code = 'import sys, cnv2_plugin; print([m for m in ("mmcv", "mmdet", "mmpretrain", "onnx", "matplotlib") if m in sys.modules])'
    assert run(code, ('timm', 'mmengine')).stdout.strip() == '[]'
    assert run(code).stdout.strip() == '[]'


def test_own_import_is_cheap():
    """Counts modules rather than seconds: beyond torch, the package loads only itself."""
    code = (
        'import sys, torch, torch.utils.checkpoint, torch.utils.flop_counter; before = set(sys.modules); import cnv2_plugin;'
        'new = {m.split(".")[0] for m in set(sys.modules) - before}; print(sorted(new - {"cnv2_plugin"}))'
    )
    assert run(code, TOOLKITS).stdout.strip() == '[]'


def test_layers_train_with_torch_alone():
    code = (
        'import torch; from cnv2_plugin.layers import LearnedGroupConv; from cnv2_plugin.sparsify import StagedSparsifier;'
        'm = LearnedGroupConv(8, 8, 2, 2); s = StagedSparsifier(m, 2); s.set_progress(1); m.switch_to_deploy();'
        'print(m(torch.randn(1, 8, 2, 2)).shape)'
    )
    assert run(code, TOOLKITS).stdout.strip() == 'torch.Size([1, 8, 2, 2])'
