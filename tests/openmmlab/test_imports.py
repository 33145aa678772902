"""Importing with toolkits missing, broken or blocked."""

import subprocess
import sys

import pytest

BLOCK = """
import sys, importlib.abc
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise {error}
sys.meta_path.insert(0, Block())
"""


def run(blocked, script, error='ModuleNotFoundError(f"No module named {name!r}", name=name)') -> str:
    code = BLOCK.format(blocked=set(blocked), error=error) + script
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_only_timm():
    script = """
import timm, cnv2_plugin
print(type(timm.create_model('condensenetv2_a', num_classes=3)).__name__)
"""
    assert run(('mmengine', 'mmcv', 'mmdet', 'mmpretrain'), script) == 'CondenseNet\n'


@pytest.mark.slow
def test_only_mmengine():
    script = """
import torch, cnv2_plugin
from mmengine.registry import MODELS, HOOKS
for name in ('CondenseNetV2', 'SFRShuffleNetV2', 'CondenseNet'):
    print(type(MODELS.build(dict(type=name, norm_cfg=dict(type='SyncBN')))).__name__)
print(type(MODELS.build(dict(type='SEGlobalPooling', channels=32))).__name__)
print(type(HOOKS.build(dict(type='StagedSparsificationHook'))).__name__)
try:
    MODELS.build(dict(type='SFRFPN', in_channels=[8], out_channels=8, num_outs=1))
except ImportError as error:
    print(error)
"""
    lines = run(('timm', 'mmcv', 'mmdet', 'mmpretrain'), script).splitlines()
    assert lines[:5] == [
        'CondenseNetV2',
        'SFRShuffleNetV2',
        'CondenseNet',
        'SEGlobalPooling',
        'StagedSparsificationHook',
    ]
    assert 'mmdet' in lines[5] and len(lines) == 6


@pytest.mark.slow
@pytest.mark.parametrize('broken', [('timm',), ('mmengine',), ('mmdet', 'mmcv')])
def test_a_toolkit_whose_import_raises_anything_breaks_nothing(broken):
    script = f"""
import cnv2_plugin
from cnv2_plugin.toolkits import FAILURES
print(sorted(set(FAILURES)))
if 'timm' not in {broken!r}:
    import timm
    timm.create_model('condensenetv2_a', num_classes=0)
if 'mmengine' not in {broken!r}:
    from mmengine.registry import MODELS
    MODELS.build(dict(type='CondenseNetV2'))
"""
    out = run(broken, script, error='AssertionError("version not supported")')
    assert out.strip() in ("['timm']", "['mmengine']", '[]')


@pytest.mark.slow
def test_mmdet_alone_builds_its_pyramid():
    script = """
import cnv2_plugin
from mmengine.registry import DefaultScope
from mmdet.registry import MODELS
neck = MODELS.build(dict(type='SFRFPN', in_channels=[8, 8], out_channels=16, num_outs=2))
print(type(neck).__name__)
"""
    assert run(('timm', 'mmpretrain'), script) == 'SFRFPN\n'
