"""Options beyond the papers' schedule inside real runners: statistics, a rewound rate, a teacher."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from cnv2_plugin.checkpoints import load_checkpoint
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import cosine_with_rewind, distillation_loss, recalibrate_norms
from cnv2_plugin.toolkits.openmmlab import DistillationHook, StagedSparsificationHook
from cnv2_plugin.toolkits.openmmlab.sparsification_hook import _other_batches

from .stand_ins import classifier, dataloader, hook_of, runner_config, train, without_sparsification


def sparse_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, GroupSparseConv2d)}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def losses(runner):
    return {i: r['loss'] for i, r in hook_of(runner, 'Recorder').records.items()}


def resumed(tmp_path, make, epoch):
    """The same run from one of its checkpoints on."""
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / f'epoch_{epoch}.pth'))
    return train(make(tmp_path, resume=True))


def with_hooks(*hooks):
    def make(work_dir, **options):
        return runner_config(work_dir, custom_hooks=[*map(dict, hooks), dict(type='Recorder')], **options)

    return make


def test_statistics_after_a_stage_are_those_of_some_training_batches(tmp_path):
    seen = {}

    class Stale(Hook):
        """What the statistics are right before and after a stage."""

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            hook = hook_of(runner, 'StagedSparsificationHook')
            seen[runner.iter + 1] = (hook.sparsifier.stage, copy.deepcopy(runner.model))

    cfg = without_sparsification(runner_config(tmp_path), recalibrate=3)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Stale(), priority='NORMAL')
    runner.train()
    done = next(i for i, (stage, _) in seen.items() if stage == 1)
    after = seen[done][1]
    expected = copy.deepcopy(after).train()
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    batches = _other_batches(runner.train_dataloader, 3, runner.seed + done)
    recalibrate_norms(expected, batches, forward=lambda b: expected(**expected.data_preprocessor(b, True), mode='loss'))
    for (name, a), b in zip(after.named_buffers(), expected.buffers()):
        if name.endswith(('running_mean', 'running_var')):
            assert torch.allclose(a, b, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize('sampler', ['DefaultSampler', 'InfiniteSampler'])
def test_measuring_statistics_changes_no_weight_and_resumes(tmp_path, sampler):
    def run(folder, recalibrate, **options):
        loader = dict(dataloader(), sampler=dict(type=sampler, shuffle=True))
        loop = dict(by_epoch=False, max_iters=16, val_interval=100)
        cfg = runner_config(
            tmp_path / folder, train_dataloader=loader, train_cfg=loop, param_scheduler=None,
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=4, by_epoch=False)), **options,
        )  # fmt: skip
        cfg.model.backbone.lgc_drop_rate = 0.3
        return train(without_sparsification(cfg, recalibrate=recalibrate, group_lasso=1e-3))

    plain, measured = run('plain', 0), run('measured', 2)
    assert losses(plain) == losses(measured)
    for name, value in weights(plain.model).items():
        assert torch.equal(value, weights(measured.model)[name]), name
    whole = measured.model.state_dict()
    if sampler == 'DefaultSampler':
        return
    assert any(not torch.equal(whole[k], v) for k, v in plain.model.state_dict().items() if 'running' in k)


def test_rewound_rate_by_the_schedulers_of_the_page(tmp_path):
    schedulers = [
        dict(type='CosineAnnealingLR', T_max=8, begin=0, end=4),
        dict(type='CosineRestartLR', periods=[4], restart_weights=[1.0], eta_min=0, begin=4, end=8),
    ]
    rates = {}

    class Rate(Hook):
        def before_train_epoch(self, runner):
            rates[runner.epoch] = runner.optim_wrapper.get_lr()['lr'][0]

    def run(**options):
        rates.clear()
        runner = Runner.from_cfg(runner_config(tmp_path, epochs=8, param_scheduler=schedulers, **options))
        runner.register_hook(Rate())
        runner.train()
        return dict(rates)

    whole = run()
    expected = {epoch: 0.05 * cosine_with_rewind(epoch / 8, at=0.5) for epoch in range(8)}
    assert whole == pytest.approx(expected)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_5.pth'))
    assert run(resume=True) == pytest.approx({epoch: expected[epoch] for epoch in (5, 6, 7)})


@pytest.mark.parametrize('teacher', [pytest.param('start', marks=pytest.mark.slow), 'first_stage'])
def test_a_copy_teaches_is_not_saved_and_a_resumed_run_learns_from_the_same(tmp_path, teacher):
    make = with_hooks(dict(type='StagedSparsificationHook', start=0.2), dict(type='DistillationHook', teacher=teacher))
    runner = train(make(tmp_path))
    records = hook_of(runner, 'Recorder').records
    taught = [i for i, r in records.items() if 'loss_distillation' in r['outputs']]
    first = next(i for i, r in records.items() if any(v.any() for k, v in r['masks'].items() if k.endswith('.stage')))
    assert taught == [*range(16)] if teacher == 'start' else taught == [*range(first + 1, 16)]
    kept = load_checkpoint(tmp_path / 'teacher.pth')['state_dict']
    assert all(not v.any() for k, v in kept.items() if k.endswith('.stage'))

    whole = load_checkpoint(tmp_path / 'epoch_4.pth')
    assert whole['state_dict'].keys() == runner.model.state_dict().keys() == kept.keys()
    after = runner.model.train_step(next(iter(runner.train_dataloader)), runner.optim_wrapper)
    assert 'loss' in after and 'loss_distillation' not in after
    for epoch in (1, 3):
        resumed(tmp_path, make, epoch)
        again = load_checkpoint(tmp_path / 'epoch_4.pth')['state_dict']
        assert all(torch.equal(whole['state_dict'][key], again[key]) for key in again)
    (tmp_path / 'teacher.pth').unlink()
    with pytest.raises(FileNotFoundError, match='teacher.pth is missing, the copy that this run learns from'):
        resumed(tmp_path, make, 3)


def test_a_teacher_by_config_gives_the_loss_written_out(tmp_path):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(5)
        teacher = MODELS.build(classifier())
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher_weights.pth')
    distil = dict(type='DistillationHook', teacher=classifier(), checkpoint=str(tmp_path / 'teacher_weights.pth'),
                  weight=0.5, temperature=2.0)  # fmt: skip
    ours = train(with_hooks(dict(type='StagedSparsificationHook'), distil)(tmp_path / 'ours'))

    written = Runner.from_cfg(runner_config(tmp_path / 'written'))
    model = written.model

    def loss(inputs, data_samples):
        features = model.extract_feat(inputs)
        divergence = distillation_loss(model.head(features), teacher.eval()(inputs, mode='tensor'), 2.0)
        return dict(model.head.loss(features, data_samples), loss_written=0.5 * divergence)

    model.loss = loss
    written.train()
    assert list(losses(ours).values()) == pytest.approx(list(losses(written).values()), rel=1e-4)
    assert 'teacher' not in str(ours.model.state_dict().keys())


class NoHead(Hook):
    """Takes the head away before training."""

    priority = 'HIGHEST'

    def before_train(self, runner):
        runner.model.head = None


def test_wrong_uses_are_told_in_a_sentence(tmp_path):
    for options, message in (
        (dict(teacher='end'), "teacher is 'end'; it takes 'start', 'first_stage', the path of a config"),
        (dict(teacher='a.py'), 'checkpoint is None; a teacher by config takes'),
        (dict(teacher='start', checkpoint='a.pth'), 'a copy takes none'),
        (dict(temperature=0), 'temperature 0'),
    ):
        with pytest.raises(ValueError, match=message):
            DistillationHook(**options)
    for options, message in ((dict(recalibrate=-1), 'recalibrate is -1'),):
        with pytest.raises(ValueError, match=message):
            StagedSparsificationHook(**options)
    with pytest.raises(ValueError, match='needs StagedSparsificationHook beside it'):
        train(with_hooks(dict(type='DistillationHook', teacher='first_stage'))(tmp_path / 'alone'))
    headless = with_hooks(dict(type='StagedSparsificationHook'), dict(type='DistillationHook'))(tmp_path / 'headless')
    runner = Runner.from_cfg(headless)
    runner.register_hook(NoHead())
    with pytest.raises(ValueError, match='ImageClassifier has no head'):
        runner.train()
