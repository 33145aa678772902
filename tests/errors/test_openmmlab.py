"""Wrong configs and files through OpenMMLab's registries, hooks and runners, and toolkits that are missing."""

import sys
from pathlib import Path

import pytest

from tests.errors.cases import check_sentence

V2 = dict(type='CondenseNetV2', arch='110-cifar')

CONFIGS = {
    'unknown arch': (dict(V2, arch='z'), ('arch', "'z'", "'a'", "'110-cifar'", 'dict')),
    'unknown arch of many': (
        dict(type='CondenseNet', arch='nope-cifar'),
        ('arch', "'nope-cifar'", "'98-cifar'", "'86-cifar'", "'74-cifar'")),
    'arch as number': (dict(V2, arch=3), ('arch', 'int', 'name', 'dict')),
    'arch dict with unknown field': (
        dict(V2, arch=dict(layers=[1], growth=[8], depth=3)), ('arch', 'depth', 'layers', 'growth')),
    'arch dict that does not divide': (dict(V2, arch=dict(layers=[1], growth=[10])), ('growth', '10', 'groups_3x3=8')),
    'output out of range': (dict(V2, out_indices=(5,)), ('out_indices', '(5,)', '-3', '2')),
    'outputs twice': (dict(V2, out_indices=(2, -1)), ('out_indices', '(2, -1)', '-3', '2')),
    'outputs as text': (dict(V2, out_indices='all'), ('out_indices', "'all'", 'number')),
    'frozen stages out of range': (dict(V2, frozen_stages=9), ('frozen_stages', '9', '-1', '3')),
    'frozen stages as text': (dict(V2, frozen_stages='all'), ('frozen_stages', "'all'", 'number')),
    'another normalisation': (dict(V2, norm_cfg=dict(type='GN', num_groups=2)), ('norm_cfg', "'GN'", "'BN'")),
    'normalisation as text': (dict(V2, norm_cfg='BN'), ('norm_cfg', "'BN'", "dict(type='BN')")),
    'activation as text': (dict(V2, act_cfg='ReLU'), ('act_cfg', "'ReLU'", "dict(type='ReLU')")),
    'unknown width': (dict(type='SFRShuffleNetV2', widen_factor=0.7), ('widen_factor', '0.7', '0.5', '1.0')),
    'pooling reduction': (dict(type='SEGlobalPooling', channels=8, reduction=9), ('reduction', '9', '1', 'channels=8')),
}  # fmt: skip

HOOKS = {
    'sparse fraction': (dict(type='StagedSparsificationHook', sparse_fraction=0), ('sparse_fraction', '0', '1')),
    'group lasso': (dict(type='StagedSparsificationHook', group_lasso=-1), ('group_lasso', '-1', '0')),
    'log interval': (dict(type='StagedSparsificationHook', log_interval=0), ('log_interval', '0', '1')),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_wrong_configs(name):
    registry = pytest.importorskip('mmengine.registry')
    config, expected = CONFIGS[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        registry.MODELS.build(dict(config))
    check_sentence(str(caught.value), *expected)


@pytest.mark.parametrize('name', HOOKS)
def test_wrong_hooks(name):
    registry = pytest.importorskip('mmengine.registry')
    config, expected = HOOKS[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        registry.HOOKS.build(dict(config))
    check_sentence(str(caught.value), *expected)


CONFIG = """
custom_imports = dict(imports=['cnv2_plugin'])
default_scope = 'mmpretrain'
model = dict(type='ImageClassifier', backbone=dict(type='CondenseNetV2', arch='110-cifar', out_indices=(0,)),
             neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=2, in_channels=112))
dataset = dict(type='CIFAR10', data_root='none', pipeline=[])
test_dataloader = dict(batch_size=1, dataset=dataset, sampler=dict(type='DefaultSampler'))
test_evaluator = dict(type='Accuracy')
test_cfg = dict()
"""


@pytest.mark.parametrize('damage', ['payload.pth', 'raw_payload.pth', 'truncated.pth', 'empty.pth', 'expanded.pth'])
def test_cnv2_test_reads_no_hostile_or_damaged_checkpoint(damage, files, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmpretrain')
    from cnv2_plugin.cli import main

    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)
    assert main(['test', 'config.py', str(files / damage), '--out', 'metrics.json']) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('cnv2 ') or 'Traceback' in line]
    assert len(lines) == 1
    check_sentence(lines[0], damage)
    assert not (files / 'executed').exists() and not Path('metrics.json').exists()


@pytest.mark.parametrize('config', ['payload.pth', 'raw_payload.pth', 'text.csv', 'broken.py', 'no_model.py'])
def test_cnv2_deploy_runs_nothing_that_is_no_config(config, files, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmengine')
    from cnv2_plugin.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(['deploy', str(files / config), str(files / 'good.pth'), '--out', 'x.pth']) == 1
    check_sentence(
        capsys.readouterr().err.strip().splitlines()[-1],
        config,
        *(() if config.endswith('.py') else (config[-4:], '.py', '.yaml')),
    )
    assert not (files / 'executed').exists() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('damage', ['payload.pth', 'raw_payload.pth', 'expanded.pth', 'truncated.pth'])
def test_cnv2_deploy_by_config_reads_no_hostile_checkpoint(damage, files, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmpretrain')
    from cnv2_plugin.cli import main

    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)
    assert main(['deploy', 'config.py', str(files / damage), '--out', 'x.pth', '--onnx', 'x.onnx']) == 1
    check_sentence(capsys.readouterr().err.strip().splitlines()[-1], damage)
    assert not (files / 'executed').exists() and [p.name for p in tmp_path.iterdir()] == ['config.py']


@pytest.mark.parametrize('what', ['resume', 'load_from'])
def test_cnv2_train_starts_from_no_hostile_checkpoint(what, files, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmpretrain')
    from cnv2_plugin.cli import main

    monkeypatch.chdir(tmp_path)
    hostile = str(files / 'payload.pth')
    extra = "train_dataloader = test_dataloader\noptim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\n"
    extra += (
        f'train_cfg = dict(by_epoch=True, max_epochs=1)\nload_from = {hostile if what == "load_from" else None!r}\n'
    )
    Path('config.py').write_text(CONFIG + extra)
    resume = ['--resume', hostile] if what == 'resume' else []
    assert main(['train', 'config.py', '--no-validate', *resume]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('cnv2 ') or 'Traceback' in line]
    check_sentence(lines[0], 'payload.pth')
    assert len(lines) == 1 and not (files / 'executed').exists()


@pytest.mark.parametrize(
    ('package', 'arguments', 'extra'),
    [
        ('timm', ['cost', 'condensenetv2_a'], 'timm'),
        ('matplotlib', ['sparsity', 'condensenet_50_cifar', '--plot', 'x.png'], 'analysis'),
        ('mmengine', ['train', 'x.py'], 'openmmlab'),
    ],
)
def test_missing_toolkits_are_named(package, arguments, extra, tmp_path, monkeypatch, capsys):
    from cnv2_plugin.cli import main

    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith(('cnv2_plugin.toolkits.openmmlab', f'{package}.'))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(arguments) == 1
    check_sentence(capsys.readouterr().err.strip(), package, '', f'pip install -e ".[{extra}]"')
    assert list(tmp_path.iterdir()) == []
