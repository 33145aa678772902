"""SwitchToDeployHook: what it tests, and the files it leaves."""

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from cnv2_plugin.checkpoints import CheckpointError
from cnv2_plugin.layers import GroupSparseConv2d, UnfinishedPruningError
from cnv2_plugin.toolkits.openmmlab.deploy_files import SwitchToDeployHook, deployed_config
from tests.helpers import relative_difference

from .stand_ins import hook_of, runner_config, train

SPARSE = dict(type='StagedSparsificationHook')


def outputs(model):
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval().head(model.extract_feat(x))


@pytest.mark.parametrize('ema', [None, False, True])
def test_deployed_files_build_and_give_the_outputs_of_the_last_checkpoint(tmp_path, ema):
    hooks = [SPARSE, dict(type='SwitchToDeployHook')]
    if ema is not None:
        hooks.append(dict(type='EMAHook', momentum=0.3, update_buffers=ema))
    runner = train(runner_config(tmp_path, custom_hooks=hooks, load_from=None))
    assert not any(layer.deploy for layer in runner.model.backbone.sparse_layers())
    cfg = Config.fromfile(tmp_path / 'epoch_4_deploy.py')
    assert cfg.model.backbone.deploy is True and cfg.custom_hooks == []
    cfg.update(
        load_from=str(tmp_path / 'epoch_4_deploy.pth'), work_dir=str(tmp_path / 'test'), experiment_name='deployed'
    )
    deployed = Runner.from_cfg(cfg)
    metrics = deployed.test()
    assert deployed.model.backbone.deploy
    reference = Runner.from_cfg(
        runner_config(tmp_path / 'ref', custom_hooks=[], load_from=str(tmp_path / 'epoch_4.pth'))
    )
    assert reference.test()['accuracy/top1'] == metrics['accuracy/top1']
    assert relative_difference(outputs(deployed.model), outputs(reference.model)) < 1e-5
    meta = torch.load(tmp_path / 'epoch_4_deploy.pth')['meta']
    assert meta['dataset_meta']['classes'] == ('dark', 'grey', 'bright')
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


@pytest.mark.parametrize('ema', [None, False, True])
def test_testing_measures_the_condensed_model(tmp_path, ema):
    averaging = [] if ema is None else [dict(type='EMAHook', momentum=0.3, update_buffers=ema)]
    train(runner_config(tmp_path, custom_hooks=[SPARSE, *averaging]))
    checkpoint = str(tmp_path / 'epoch_4.pth')
    plain = Runner.from_cfg(runner_config(tmp_path / 'plain', custom_hooks=averaging, load_from=checkpoint))
    expected = plain.test()['accuracy/top1']
    hooks = [dict(type='SwitchToDeployHook'), *averaging]
    tester = Runner.from_cfg(runner_config(tmp_path / 'test', custom_hooks=hooks, load_from=checkpoint))
    assert tester.test()['accuracy/top1'] == expected
    assert tester.model.backbone.deploy and all(layer.deploy for layer in tester.model.backbone.sparse_layers())
    assert relative_difference(outputs(tester.model), outputs(plain.model)) < 1e-5


def test_training_and_testing_in_one_run(tmp_path):
    hooks = [SPARSE, dict(type='SwitchToDeployHook'), dict(type='EMAHook', momentum=0.3, update_buffers=True)]
    runner = train(runner_config(tmp_path, custom_hooks=hooks))
    before = outputs(runner.model)
    runner.test()
    for model in (runner.model, hook_of(runner, 'EMAHook').ema_model.module):
        assert all(m.deploy for m in model.modules() if isinstance(m, GroupSparseConv2d))
        assert relative_difference(outputs(model), before) < 1e-5


def test_unfinished_models_are_neither_tested_nor_saved(tmp_path):
    with pytest.raises(UnfinishedPruningError, match='finish the sparsification'):
        train(runner_config(tmp_path, epochs=1, custom_hooks=[dict(type='SwitchToDeployHook')]))
    assert not list(tmp_path.glob('*deploy*')) and (tmp_path / 'epoch_1.pth').exists()
    cfg = runner_config(tmp_path / 'test', custom_hooks=[dict(type='SwitchToDeployHook')])
    with pytest.raises(UnfinishedPruningError):
        Runner.from_cfg(cfg).test()


@pytest.mark.parametrize('ema', [False, True])
def test_broken_weights_are_neither_tested_nor_saved(tmp_path, ema):
    averaging = [dict(type='EMAHook', momentum=0.3)] if ema else []
    runner = train(runner_config(tmp_path, custom_hooks=[SPARSE, *averaging]))
    broken = hook_of(runner, 'EMAHook').ema_model.module if ema else runner.model
    broken.backbone.stem.weight.data.fill_(torch.nan)
    for act, source in (('before_test', 'the model to test'), ('after_train', 'the trained model')):
        with pytest.raises(CheckpointError, match=f'backbone.stem.weight of {source} has NaN'):
            getattr(SwitchToDeployHook(), act)(runner)
    assert not any(layer.deploy for layer in runner.model.backbone.sparse_layers())
    assert not list(tmp_path.glob('*deploy*'))


def test_a_runner_without_config_is_refused_before_training(tmp_path):
    cfg = runner_config(tmp_path, custom_hooks=[SPARSE, dict(type='SwitchToDeployHook')])
    model = Runner.from_cfg(cfg).model
    options = {k: v for k, v in cfg.to_dict().items() if k not in ('model', 'custom_imports', 'experiment_name')}
    with pytest.raises(ValueError, match='Runner.from_cfg'):
        Runner(model=model, **options).train()


def test_deployed_config_drops_what_belongs_to_training():
    cfg = Config(
        dict(
            model=dict(
                type='RetinaNet',
                backbone=dict(type='mmengine.CondenseNetV2', init_cfg=dict(type='Pretrained', checkpoint='x.pth')),
                neck=[dict(type='SFRFPN'), dict(type='FPN')],
            ),
            custom_hooks=[SPARSE, dict(type='EMAHook'), dict(type='NumClassCheckHook')],
            load_from='y.pth',
            resume=True,
        )
    )
    new = deployed_config(cfg)
    assert new.model.backbone.deploy and new.model.backbone.init_cfg is None
    assert new.model.neck[0].deploy and 'deploy' not in new.model.neck[1]
    assert [hook['type'] for hook in new.custom_hooks] == ['NumClassCheckHook']
    assert new.load_from is None and new.resume is False
    assert 'deploy' not in cfg.model.backbone and cfg.resume is True
