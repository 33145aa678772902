"""Surgery and condensed training by config, in mmengine's runner."""

from copy import deepcopy

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from cnv2_plugin.checkpoints import load_checkpoint
from cnv2_plugin.layers import GroupSparseConv2d
from tests.helpers import finish_pruning, relative_difference
from tests.openmmlab.stand_ins import CLASSES, hook_of, runner_config, train

SURGERY = dict(type='LearnedGroupSurgeryHook', groups=4, factor=3, min_channels=16, input_size=(3, 16, 16))
SPARSE = dict(type='StagedSparsificationHook', sparse_fraction=0.4)


def resnet() -> dict:
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[128.0] * 3, std=[60.0] * 3, num_classes=CLASSES),
        backbone=dict(type='ResNet', depth=50, base_channels=16, stem_channels=16, out_indices=(3,), frozen_stages=1),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=512),
    )


def config(work_dir, *hooks, **options) -> Config:
    return runner_config(work_dir, model=resnet(), custom_hooks=[SPARSE, *hooks], **options)


def sparse_layers(model) -> list[GroupSparseConv2d]:
    return [m for m in model.modules() if isinstance(m, GroupSparseConv2d)]


def logits(model):
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval().head(model.extract_feat(x))


def test_a_pretrained_classifier_learns_groups_trains_resumes_and_deploys(tmp_path):
    plain = Runner.from_cfg(runner_config(tmp_path / 'plain', model=resnet(), custom_hooks=[]))
    torch.save(dict(state_dict=plain.model.state_dict()), tmp_path / 'pretrained.pth')
    start = Runner.from_cfg(config(tmp_path / 'start', SURGERY, load_from=str(tmp_path / 'pretrained.pth')))
    start.test()
    assert sparse_layers(start.model)
    assert torch.equal(logits(start.model), logits(plain.model))
    assert not [m for m in start.model.backbone.layer1.modules() if isinstance(m, GroupSparseConv2d)]

    hooks = [SURGERY, dict(type='EMAHook', momentum=0.3), dict(type='SwitchToDeployHook')]
    whole = train(config(tmp_path / 'whole', *hooks, load_from=str(tmp_path / 'pretrained.pth')))
    assert all(m.is_finished() for m in sparse_layers(whole.model))
    assert hook_of(whole, 'LearnedGroupSurgeryHook').report.mult_adds_after > 0

    resume = str(tmp_path / 'whole' / 'epoch_2.pth')
    resumed = train(config(tmp_path / 'resumed', *hooks, load_from=resume, resume=True))
    for ours, theirs in zip(sparse_layers(resumed.model), sparse_layers(whole.model)):
        assert torch.equal(ours.mask, theirs.mask) and relative_difference(ours.conv.weight, theirs.conv.weight) < 1e-5

    cfg = Config.fromfile(tmp_path / 'whole' / 'epoch_4_deploy.py')
    assert cfg.model.type == 'LearnedGroupModel' and cfg.model.deploy and cfg.custom_hooks == []
    cfg.update(load_from=str(tmp_path / 'whole' / 'epoch_4_deploy.pth'), work_dir=str(tmp_path / 'test'))
    cfg.experiment_name = 'surgery_deployed'
    deployed = Runner.from_cfg(cfg)
    deployed.test()
    assert all(m.deploy for m in sparse_layers(deployed.model))
    averaged = hook_of(whole, 'EMAHook').ema_model.module
    assert relative_difference(logits(deployed.model), logits(averaged)) < 1e-5


def test_the_model_wrapper_builds_the_same_network():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        plain = MODELS.build(resnet())
        options = {key: value for key, value in SURGERY.items() if key != 'type'}
        wrapped = MODELS.build(dict(type='LearnedGroupModel', model=resnet(), **options))
        deployed = MODELS.build(dict(type='LearnedGroupModel', model=resnet(), deploy=True, **options))
    wrapped.load_state_dict(plain.state_dict())
    assert torch.equal(logits(wrapped), logits(plain))
    finish_pruning(wrapped)
    condensed = deepcopy(wrapped)
    for layer in sparse_layers(condensed):
        layer.switch_to_deploy()
    deployed.load_state_dict(condensed.state_dict())
    assert relative_difference(logits(deployed), logits(wrapped)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('update_buffers', [None, False, True])
def test_condensed_training_changes_nothing_but_the_work(tmp_path, update_buffers):
    averaging = [] if update_buffers is None else [dict(type='EMAHook', momentum=0.3, update_buffers=update_buffers)]
    packing = dict(type='PackedTrainingHook')
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
    masked = train(runner_config(tmp_path / 'masked', custom_hooks=[SPARSE, *averaging], optim_wrapper=optim_wrapper))
    cfg = runner_config(tmp_path / 'packed', custom_hooks=[SPARSE, packing, *averaging], optim_wrapper=optim_wrapper)
    packed = train(cfg)
    assert all(m.packed for m in sparse_layers(packed.model))
    for ours, theirs in zip(sparse_layers(packed.model), sparse_layers(masked.model)):
        assert torch.equal(ours.mask, theirs.mask)
        assert relative_difference(ours.masked_weight(), theirs.masked_weight()) < 1e-4
    saved = [load_checkpoint(tmp_path / name / 'epoch_4.pth')['state_dict'] for name in ('masked', 'packed')]
    for key, value in saved[0].items():
        assert saved[1][key].shape == value.shape, key

    cfg = deepcopy(cfg)
    cfg.update(load_from=str(tmp_path / 'packed' / 'epoch_3.pth'), resume=True, work_dir=str(tmp_path / 'resumed'))
    cfg.experiment_name = f'resumed_{update_buffers}'
    resumed = train(cfg)
    assert all(m.packed for m in sparse_layers(resumed.model))
    assert relative_difference(logits(resumed.model), logits(packed.model)) < 1e-4
    if averaging:
        ours, theirs = (hook_of(r, 'EMAHook').ema_model.module for r in (resumed, packed))
        assert relative_difference(logits(ours), logits(theirs)) < 1e-4


def test_resumed_training_needs_no_hook_to_read_the_checkpoint(tmp_path):
    packing = dict(type='CondensedTrainingHook')
    train(runner_config(tmp_path / 'packed', custom_hooks=[SPARSE, packing]))
    cfg = runner_config(
        tmp_path / 'masked', custom_hooks=[SPARSE], load_from=str(tmp_path / 'packed' / 'epoch_3.pth'), resume=True
    )
    assert not any(m.packed for m in sparse_layers(train(cfg).model))


def test_a_share_of_the_multiply_adds_is_enough(tmp_path):
    whole = Runner.from_cfg(config(tmp_path / 'whole', SURGERY))
    part = Runner.from_cfg(config(tmp_path / 'part', dict(SURGERY, at_most=0.85)))
    for runner in (whole, part):
        hook_of(runner, 'LearnedGroupSurgeryHook').before_run(runner)
    report = hook_of(part, 'LearnedGroupSurgeryHook').report
    assert report.reached and 0 < len(sparse_layers(part.model)) < len(sparse_layers(whole.model))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        options = {key: value for key, value in SURGERY.items() if key != 'type'}
        built = MODELS.build(dict(type='LearnedGroupModel', model=resnet(), at_most=0.85, deploy=True, **options))
    assert [m.in_channels for m in sparse_layers(built)] == [m.in_channels for m in sparse_layers(part.model)]
