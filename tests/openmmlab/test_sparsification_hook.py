"""StagedSparsificationHook inside real runners."""

import json
import pickle

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS, DefaultScope
from mmengine.runner import Runner

from cnv2_plugin.checkpoints import load_checkpoint
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify.find_models import refuse_sharded
from cnv2_plugin.toolkits.openmmlab import StagedSparsificationHook, sparsification_hook
from cnv2_plugin.toolkits.openmmlab.sparsification_hook import check_masks_agree
from tests.helpers import finish_pruning, relative_difference

from .stand_ins import classifier, dataloader, hook_of, runner_config, train, without_sparsification


def sparse_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, GroupSparseConv2d)}


def due(factor: int, done: int, total: int, fraction: float) -> int:
    return max([i for i in range(factor) if done / total >= i * fraction / max(factor - 1, 1)], default=0)


def check_stages(runner, fraction=0.5):
    records = hook_of(runner, 'Recorder').records
    layers = sparse_layers(runner.model)
    assert len(records) == runner.max_iters
    for iteration, record in records.items():
        for name, layer in layers.items():
            expected = due(layer.factor, iteration + 1, runner.max_iters, fraction)
            assert int(record['masks'][f'{name}.stage']) == expected, (iteration, name)


@pytest.mark.parametrize('fraction', [0.25, 0.5, 1.0])
def test_stages_follow_whole_run_progress_by_epoch(tmp_path, fraction):
    cfg = without_sparsification(runner_config(tmp_path, epochs=5), sparse_fraction=fraction)
    runner = train(cfg)
    check_stages(runner, fraction)
    assert hook_of(runner, 'StagedSparsificationHook').sparsifier.finished


def test_stages_follow_whole_run_progress_by_iteration(tmp_path):
    cfg = runner_config(
        tmp_path,
        train_cfg=dict(by_epoch=False, max_iters=14, val_interval=100),
        train_dataloader=dict(dataloader(), sampler=dict(type='InfiniteSampler', shuffle=True)),
        param_scheduler=None,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=5, by_epoch=False)),
    )
    check_stages(train(cfg))


def test_gradient_accumulation_keeps_whole_run_progress(tmp_path):
    wrapper = dict(optimizer=dict(type='SGD', lr=0.05), accumulative_counts=3)
    check_stages(train(runner_config(tmp_path, epochs=5, optim_wrapper=wrapper)))


def test_scalars_reach_the_visualizer_and_stages_the_log(tmp_path):
    cfg = without_sparsification(runner_config(tmp_path), group_lasso=1e-3, log_interval=5)
    cfg.log_level = 'INFO'
    runner = train(cfg)
    lines = next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()
    scalars = [s for s in map(json.loads, lines) if 'sparsification/stage' in s]
    assert {5, 10, 15} <= {s['step'] for s in scalars}
    assert scalars[0]['sparsification/kept_fraction'] < 1 and scalars[0]['sparsification/group_lasso'] > 0
    kept = hook_of(runner, 'StagedSparsificationHook').sparsifier.sparsity()['total']
    last = scalars[-1]
    assert last['sparsification/stage'] == 3 and last['sparsification/kept_fraction'] == pytest.approx(kept)
    assert last['sparsification/group_lasso'] == 0
    assert any('loss_group_lasso' in json.loads(line) for line in lines)
    log = next(tmp_path.glob('*/*.log')).read_text()
    told = [line for line in log.splitlines() if 'Sparsification after' in line]
    changes = {tuple(due(f, done, 16, 0.5) for f in (3, 4)) for done in range(17)}
    assert len(told) == len(changes)
    MMLogger._instance_dict.clear()


def written_lasso(layer: GroupSparseConv2d) -> torch.Tensor:
    """The group lasso of one layer, unit by unit."""
    if layer.is_finished():
        return torch.zeros(())
    weight = (layer.conv.weight * layer.mask).flatten(1)
    columns = weight if layer.grouped_side == 'outputs' else weight.t()
    units = [columns[g :: layer.groups, i] for g in range(layer.groups) for i in range(columns.shape[1])]
    return torch.stack([unit.square().sum().clamp(min=1e-6).sqrt() for unit in units]).sum()


def trained_weights(cfg, written: float = 0.0) -> dict:
    """Parameters after training; ``written`` times the lasso is written into the model's own loss."""
    runner = Runner.from_cfg(cfg)
    if written:
        plain_loss = runner.model.loss
        layers = list(sparse_layers(runner.model).values())

        def loss(inputs, data_samples):
            return dict(plain_loss(inputs, data_samples), loss_written=written * sum(map(written_lasso, layers)))

        runner.model.loss = loss
    runner.train()
    return {name: p.detach() for name, p in runner.model.named_parameters()}


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(OptimWrapper):
    """Scales the loss and unscales the gradients, as AMP's GradScaler does, on the CPU."""

    scale = 2.0**13

    def backward(self, loss, **kwargs):
        (loss * self.scale).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        for group in self.optimizer.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    p.grad.div_(self.scale)
        super().step(**kwargs)


SGD = dict(type='SGD', lr=0.05, momentum=0.9)


@pytest.mark.slow
@pytest.mark.parametrize(
    'wrapper',
    [
        dict(optimizer=SGD),
        dict(type='ScaledOptimWrapper', optimizer=SGD, clip_grad=dict(max_norm=0.5)),
        dict(optimizer=SGD, accumulative_counts=5),
    ],
    ids=['plain', 'scaled_and_clipped', 'accumulated'],
)
def test_group_lasso_equals_a_loss_written_out(tmp_path, wrapper):
    def cfg(name, **options):
        run = runner_config(tmp_path / name, epochs=3, optim_wrapper=dict(wrapper), param_scheduler=None)
        return without_sparsification(run, sparse_fraction=1.0, **options)

    ours = trained_weights(cfg('hook', group_lasso=0.1))
    theirs = trained_weights(cfg('written'), written=0.1)
    none = trained_weights(cfg('none'))
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-6), name
    assert any(not torch.allclose(none[name], value, atol=1e-3) for name, value in theirs.items())


def test_bfloat16_autocast_trains_with_group_lasso(tmp_path):
    """The hook adds the lasso inside the autocast context of the optimiser wrapper."""

    class Autocast(OptimWrapper):
        def optim_context(self, model):
            return torch.autocast('cpu', dtype=torch.bfloat16)

    cfg = without_sparsification(runner_config(tmp_path, epochs=3), group_lasso=1e-3)
    runner = Runner.from_cfg(cfg)
    runner.optim_wrapper = Autocast(torch.optim.SGD(runner.model.parameters(), lr=0.01))
    runner.param_schedulers = None
    runner.train()
    check_stages(runner)
    losses = [r['outputs']['loss_group_lasso'] for r in hook_of(runner, 'Recorder').records.values()]
    assert losses[0].dtype == torch.float32 and losses[0].item() > 0 and losses[-1].item() == 0


def test_hook_leaves_no_trace_on_the_model(tmp_path):
    runner = train(without_sparsification(runner_config(tmp_path), group_lasso=1e-3))
    losses = runner.model.train_step(next(iter(runner.train_dataloader)), runner.optim_wrapper)
    assert 'loss' in losses and 'loss_group_lasso' not in losses
    assert pickle.loads(pickle.dumps(runner.model)).state_dict().keys() == runner.model.state_dict().keys()


def test_only_unfinished_layers_are_scheduled_when_fine_tuning(tmp_path):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pruned = MODELS.build(classifier())
    trunk = finish_pruning(pruned.backbone)
    first = next(iter(sparse_layers(trunk).values()))
    first.mask.fill_(True), first.stage.fill_(0)
    torch.save(dict(state_dict=pruned.state_dict()), tmp_path / 'pruned.pth')
    runner = train(runner_config(tmp_path, load_from=str(tmp_path / 'pruned.pth')))
    records = hook_of(runner, 'Recorder').records
    for i, (name, layer) in enumerate(sparse_layers(runner.model).items()):
        if i:
            for record in records.values():
                assert torch.equal(record['masks'][f'{name}.mask'], layer.mask)
        else:
            stages = [int(record['masks'][f'{name}.stage']) for record in records.values()]
            assert stages == [due(layer.factor, k + 1, 16, 0.5) for k in range(16)]


def test_replay_brings_an_unpruned_checkpoint_up_to_its_iteration(tmp_path):
    train(runner_config(tmp_path, epochs=4))
    checkpoint = load_checkpoint(tmp_path / 'epoch_2.pth')
    for key, value in checkpoint['state_dict'].items():
        if key.endswith('.mask'):
            value.fill_(True)
        elif key.endswith('.stage'):
            value.fill_(0)
    torch.save(checkpoint, tmp_path / 'stripped.pth')
    runner = train(runner_config(tmp_path / 'again', epochs=4, load_from=str(tmp_path / 'stripped.pth'), resume=True))
    first = min(hook_of(runner, 'Recorder').records)
    assert first == 8
    assert all(layer.is_finished() for layer in sparse_layers(runner.model).values())
    masks = hook_of(runner, 'Recorder').records[first]['masks']
    assert all(bool((masks[k] > 0).all()) for k in masks if k.endswith('.stage'))


class NoSparse(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.linear(inputs.float().mean().view(1, 1)).sum())


class OwnStep(NoSparse):
    """Trains without asking for a dict of losses."""

    def __init__(self):
        super().__init__()
        self.conv = GroupSparseConv2d(3, 4, groups=2, factor=3)

    def train_step(self, data, optim_wrapper):
        loss = self.conv(data['inputs'].float()).mean()
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


def test_refuses_a_model_without_sparse_layers(tmp_path):
    with pytest.raises(ValueError, match='no group-sparse layer'):
        runner_with(runner_config(tmp_path), NoSparse()).train()


def runner_with(cfg, model):
    options = {k: v for k, v in cfg.to_dict().items() if k not in ('model', 'custom_imports')}
    return Runner(model=model, **options)


def test_refuses_group_lasso_that_cannot_enter_the_loss(tmp_path):
    cfg = without_sparsification(runner_config(tmp_path), group_lasso=1e-3)
    with pytest.raises(RuntimeError, match='group_lasso=0'):
        runner_with(cfg, OwnStep()).train()


def test_refuses_fewer_steps_than_stages_and_says_how_many(tmp_path):
    cfg = runner_config(tmp_path, epochs=1)
    with pytest.raises(ValueError, match='at least 6 steps'):
        train(cfg)
    wrapper = dict(optimizer=dict(type='SGD', lr=0.05), accumulative_counts=4)
    with pytest.raises(ValueError, match='at least 6 steps'):
        train(runner_config(tmp_path / 'accumulated', epochs=4, optim_wrapper=wrapper))


def test_refuses_sharded_parameters():
    class FullyShardedDataParallel(torch.nn.Module):
        pass

    with pytest.raises(RuntimeError, match='sharded'):
        refuse_sharded(FullyShardedDataParallel())
    model = torch.nn.Linear(2, 2)
    model.weight.ds_id = 0
    with pytest.raises(RuntimeError, match='MMDistributedDataParallel'):
        refuse_sharded(model)


@pytest.mark.parametrize('options', [dict(sparse_fraction=0), dict(group_lasso=-1.0), dict(log_interval=0)])
def test_bad_options_are_refused_when_built(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        StagedSparsificationHook(**options)


def test_masks_that_differ_between_ranks_are_an_error(monkeypatch):
    layer = GroupSparseConv2d(8, 8, groups=2, factor=2)
    check_masks_agree([layer])
    monkeypatch.setattr(sparsification_hook, 'all_gather_object', lambda own: [own, 'other'])
    with pytest.raises(RuntimeError, match='ranks 1 differ'):
        check_masks_agree([layer])


class Probe(Hook):
    """Compares the averaged copy with the model after every iteration."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        ema = next(h for h in runner.hooks if hasattr(h, 'ema_model')).ema_model.module
        for a, b in zip(sparse_layers(runner.model).values(), sparse_layers(ema).values()):
            assert torch.equal(a.mask, b.mask) and torch.equal(a.stage, b.stage)


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('resume', [False, True])
def test_ema_copy_follows_and_its_checkpoint_has_final_masks(tmp_path, update_buffers, resume):
    ema = dict(type='EMAHook', momentum=0.3, update_buffers=update_buffers)
    hooks = [ema, dict(type='StagedSparsificationHook'), dict(type='Recorder')]

    def run(**options):
        runner = Runner.from_cfg(runner_config(tmp_path, custom_hooks=hooks, **options))
        runner.register_hook(Probe())
        runner.train()
        return runner

    runner = run()
    if resume:
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
        whole = load_checkpoint(tmp_path / 'epoch_4.pth')['state_dict']
        runner = run(resume=True)
        again = load_checkpoint(tmp_path / 'epoch_4.pth')['state_dict']
        assert all(torch.equal(whole[k], again[k]) for k in whole)
    saved = load_checkpoint(tmp_path / 'epoch_4.pth')['state_dict']
    raw = runner.model.state_dict()
    masks = [k for k in saved if k.endswith(('.mask', '.stage'))]
    assert masks and all(torch.equal(saved[k], raw[k]) for k in masks)
    weights = [k for k in saved if k.endswith('conv.weight')]
    assert any(not torch.equal(saved[k], raw[k]) for k in weights)
    cfg = runner_config(tmp_path / 'test', load_from=str(tmp_path / 'epoch_4.pth'), custom_hooks=[])
    tester = Runner.from_cfg(cfg)
    metrics = tester.test()
    assert all(layer.is_finished() for layer in sparse_layers(tester.model).values())
    tester.model.eval()
    x = torch.rand(2, 3, 16, 16)
    before = tester.model.head(tester.model.extract_feat(x))
    tester.model.backbone.switch_to_deploy()
    after = tester.model.head(tester.model.extract_feat(x))
    assert relative_difference(after, before) < 1e-5
    assert tester.test()['accuracy/top1'] == metrics['accuracy/top1']


def test_settings_of_earlier_configs_are_taken_where_they_mean_the_only_way_there_is():
    HOOKS.build(dict(type='StagedSparsificationHook', spacing='even', importance='l1'))
    with pytest.raises(ValueError, match="importance='taylor'.*leave importance out"):
        HOOKS.build(dict(type='StagedSparsificationHook', importance='taylor'))
