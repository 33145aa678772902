"""A sparsifier attached to an optimiser: AMP, accumulation, EMA, resumed, with group lasso, wrapped optimisers."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cnv2_plugin.checkpoints import load_checkpoint
from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import LearnedGroupConv, SparseFeatureReactivation
from cnv2_plugin.sparsify import AttachedSparsifier, StagedSparsifier, attach_sparsifier
from tests.helpers import installed
from tests.sparsify.test_sparsify import masks, same_masks


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(LearnedGroupConv(8, 16, 4, 4), SparseFeatureReactivation(16, 8, 2, 3), nn.Conv2d(8, 4, 1))


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def train(model, optimizer, steps, start=0, extra=None, ema=None):
    for step in range(start, start + steps):
        x = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean()
        (loss if extra is None else loss + extra()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            getattr(ema, 'update_parameters', None)(model) if isinstance(ema, AveragedModel) else ema.update(model)


def test_one_line_does_what_calling_it_does():
    called, attached = network(), network()
    sparsifier = StagedSparsifier(called, 20, start=0.1)
    optimizer = sgd(called)
    for step in range(20):
        train(called, optimizer, 1, step)
        sparsifier.step()
    optimizer = sgd(attached)
    seen = []
    one_line = attach_sparsifier(attached, optimizer, 20, start=0.1, on_change=lambda s: seen.append(s.stage))
    train(attached, optimizer, 20)
    assert one_line.finished and one_line.steps_done == 20 and seen[-1] == 3
    for key, value in called.state_dict().items():
        assert torch.equal(value, attached.state_dict()[key]), key


@pytest.mark.parametrize('when', ['before', 'after'])
@pytest.mark.parametrize('cut', [1, 4, 11])
def test_the_count_travels_with_the_optimiser(cut, when, tmp_path):
    whole = network()
    optimizer = sgd(whole)
    attach_sparsifier(whole, optimizer, 20, group_lasso=1e-3)
    train(whole, optimizer, cut)
    torch.save(dict(state_dict=whole.state_dict(), optimizer=optimizer.state_dict()), tmp_path / 'checkpoint.pth')
    train(whole, optimizer, 20 - cut, cut)

    saved = load_checkpoint(tmp_path / 'checkpoint.pth')
    resumed = network(seed=1)
    optimizer = sgd(resumed)
    if when == 'after':
        sparsifier = attach_sparsifier(resumed, optimizer, 20, group_lasso=1e-3)
    resumed.load_state_dict(saved['state_dict'])
    optimizer.load_state_dict(saved['optimizer'])
    if when == 'before':
        sparsifier = attach_sparsifier(resumed, optimizer, 20, group_lasso=1e-3)
    train(resumed, optimizer, 20 - cut, cut)
    assert sparsifier.steps_done == 20 and sparsifier.finished
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_a_checkpoint_of_a_sparsified_training_loads_where_nothing_is_attached():
    model = network()
    optimizer = sgd(model)
    attach_sparsifier(model, optimizer, 20)
    train(model, optimizer, 3)
    other = sgd(model)
    other.load_state_dict(optimizer.state_dict())
    train(model, other, 1)


@pytest.mark.parametrize('when', ['before', 'after'])
@pytest.mark.parametrize('length, done', [(40, 10), (10, 2), (60, 15)])
def test_another_length_keeps_the_progress(length, done, when):
    """Other batch sizes and more epochs change the number of steps."""
    model = network()
    optimizer = sgd(model)
    attach_sparsifier(model, optimizer, 20)
    train(model, optimizer, 5)
    again = sgd(model)
    if when == 'after':
        sparsifier = attach_sparsifier(model, again, length)
    again.load_state_dict(optimizer.state_dict())
    if when == 'before':
        sparsifier = attach_sparsifier(model, again, length)
    assert sparsifier.steps_done == done and not sparsifier.finished
    train(model, again, length - done)
    assert sparsifier.finished and sparsifier.steps_done == length


def test_a_training_that_was_done_goes_on_with_its_final_masks():
    model = network()
    optimizer = sgd(model)
    attach_sparsifier(model, optimizer, 20)
    train(model, optimizer, 20)
    final = masks(model)
    again = sgd(model)
    again.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match='total_steps=20.* 15.*more steps'):
        attach_sparsifier(model, again, 15)
    again.load_state_dict(optimizer.state_dict())
    sparsifier = attach_sparsifier(model, again, 50)
    train(model, again, 30)
    assert sparsifier.steps_done == 50 and sparsifier.finished and same_masks(masks(model), final)


def test_steps_that_the_scaler_skips_do_not_count():
    model = network()
    optimizer = sgd(model)
    sparsifier = attach_sparsifier(model, optimizer, 20)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
    for step in range(6):
        scaler.scale(model(torch.randn(2, 8, 3, 3)).square().mean()).backward()
        if step % 3 == 2:
            model[2].weight.grad[0] = float('inf')
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert sparsifier.steps_done == 4


@pytest.mark.parametrize('fused', [False, True])
def test_group_lasso_is_that_of_the_loss_with_or_without_scaling(fused):
    by_loss, by_hook = network(), network()
    lasso = StagedSparsifier(by_loss, 100, group_lasso=0.1)
    optimizer = torch.optim.SGD(by_loss.parameters(), 0.05)
    train(by_loss, optimizer, 3, extra=lasso.regularization)
    optimizer = torch.optim.SGD(by_hook.parameters(), 0.05, fused=fused)
    attach_sparsifier(by_hook, optimizer, 100, group_lasso=0.1)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    for step in range(3):
        x = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(step))
        scaler.scale(by_hook(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    plain = network()
    train(plain, torch.optim.SGD(plain.parameters(), 0.05), 3)
    for ours, theirs in zip(by_hook.parameters(), by_loss.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(by_hook[0].conv.weight, plain[0].conv.weight, atol=1e-4)


@pytest.mark.parametrize(
    'average',
    [
        lambda model: ModelEmaV3(model, decay=0.99),
        lambda model: ModelEmaV2(model, decay=0.99),
        lambda model: ModelEma(model, decay=0.99),
        lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99)),
        lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True),
    ],
    ids=['V3', 'V2', 'V1', 'AveragedModel', 'AveragedModel with buffers'],
)
@pytest.mark.parametrize('given', [True, False], ids=['given', 'found'])
def test_averages_get_the_masks(average, given):
    model = network()
    ema = average(model)
    other = average(network(seed=1))
    optimizer = sgd(model)
    attach_sparsifier(model, optimizer, 20, ema=[ema] if given else None)
    train(model, optimizer, 20, ema=ema)
    copied = ema.ema if isinstance(ema, ModelEma) else ema.module
    assert same_masks(masks(copied), masks(model))
    assert all(mask.all() for mask in masks(other.ema if isinstance(ema, ModelEma) else other.module).values())
    assert [int(b) for n, b in copied.named_buffers() if n.endswith('stage')] == [3, 2]
    x = torch.randn(2, 8, 3, 3)
    assert torch.allclose(condense(copied.eval())(x), copied.eval()(x), atol=1e-5)


MUON = pytest.param('muon', marks=pytest.mark.skipif(installed('timm<=1.0.9'), reason='timm 1.0.9 has no Muon'))


@pytest.mark.parametrize('name', ['lookahead_adamw', 'lamb', MUON])
def test_optimisers_of_timm(name):
    model = network()
    optimizer = create_optimizer_v2(model, name, lr=1e-3)
    sparsifier = attach_sparsifier(model, optimizer, 20)
    train(model, optimizer, 20)
    assert sparsifier.finished and sparsifier.steps_done == 20
    again = create_optimizer_v2(model, name, lr=1e-3)
    again.load_state_dict(optimizer.state_dict())
    assert attach_sparsifier(model, again, 20).steps_done == 20


class Outer(torch.optim.SGD):
    """An optimiser around another one, each with hooks of its own, as implementations of SAM are."""

    def __init__(self, parameters):
        super().__init__(parameters, 0.05)
        self.inner = torch.optim.SGD(self.param_groups, 0.05)
        self.param_groups = self.inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.inner.param_groups = self.param_groups


def test_the_count_travels_with_whichever_optimiser_is_saved():
    model = network()
    outer = Outer(model.parameters())
    attach_sparsifier(model, outer, 20)
    train(model, outer, 3)
    for optimizer in (outer, outer.inner):
        again = Outer(model.parameters())
        again.load_state_dict(optimizer.state_dict())
        assert attach_sparsifier(model, again, 20).steps_done == 3
        assert 'staged_sparsifier' not in again.param_groups[0]


class Share(torch.optim.SGD):
    """Steps a share of the parameters by an optimiser inside; the others come later: ``ZeroRedundancyOptimizer``."""

    def __init__(self, parameters, arrive):
        parameters = list(parameters)
        super().__init__(parameters, 0.05)
        self.optim = torch.optim.SGD(parameters[::2], 0.05)
        self.arrive = arrive

    def step(self, closure=None):
        self.optim.step(closure)
        self.arrive()


@pytest.mark.parametrize('backwards', [False, True])
def test_stages_wait_for_the_weights_of_other_processes(backwards):
    model, counts = network(), []
    parameters = [*model.parameters()][:: -1 if backwards else 1]
    optimizer = Share(parameters, lambda: counts.append(sparsifier.steps_done))
    sparsifier = attach_sparsifier(model, optimizer, 20)
    train(model, optimizer, 20)
    assert counts == [*range(20)] and sparsifier.steps_done == 20 and sparsifier.finished
    assert optimizer.state_dict()['param_groups'][0]['staged_sparsifier']['steps_done'] == 20


def test_of_several_optimisers_the_one_of_the_sparse_layers_is_taken():
    model = network()
    optimizers = [torch.optim.SGD(part.parameters(), 0.05) for part in (model[2], model[:2])]
    attached = AttachedSparsifier(StagedSparsifier(model, 20), optimizers)
    train(model, optimizers[0], 2)
    train(model, optimizers[1], 3)
    assert attached.sparsifier.steps_done == 3


def test_without_an_optimiser_progress_is_told():
    model = network()
    ema, stages = copy.deepcopy(model), []
    attached = AttachedSparsifier(StagedSparsifier(model, 20), ema=ema, on_change=lambda s: stages.append(s.stage))
    assert attached.set_progress(0.2) and not attached.set_progress(0.2) and attached.set_progress(1)
    assert stages == [1, 3] and same_masks(masks(ema), masks(model))


def test_detached_it_counts_no_more():
    model = network()
    optimizer = sgd(model)
    attached = AttachedSparsifier(StagedSparsifier(model, 20, group_lasso=0.1), optimizer)
    train(model, optimizer, 2)
    attached.detach()
    train(model, optimizer, 2)
    assert attached.sparsifier.steps_done == 2
    assert attach_sparsifier(model, optimizer, 20, group_lasso=0.1).steps_done == 2


def test_copies_of_the_optimiser_hold_the_count():
    model = network()
    optimizer = sgd(model)
    attach_sparsifier(model, optimizer, 20)
    train(model, optimizer, 5)
    assert copy.deepcopy(optimizer.state_dict())['param_groups'][0]['staged_sparsifier']['steps_done'] == 5


def test_what_does_not_fit_is_told():
    model = network()
    with pytest.raises(ValueError, match='SGD trains no sparse layer of Sequential'):
        attach_sparsifier(model, sgd(network()), 20)
    with pytest.raises(TypeError, match='Linear has no step hooks'):
        attach_sparsifier(model, nn.Linear(2, 2), 20)
    with pytest.raises(ValueError, match='averaged Linear has other sparse layers'):
        attach_sparsifier(model, sgd(model), 20, ema=nn.Linear(2, 2))


def test_sharded_weights_are_refused():
    class FullyShardedDataParallel(nn.Sequential):
        pass

    wrapped, sharded = FullyShardedDataParallel(network()), network()
    sharded[0].conv.weight.ds_id = 0
    for model in (wrapped, sharded):
        with pytest.raises(RuntimeError, match='sharded .*DistributedDataParallel .*MMDistributedDataParallel'):
            attach_sparsifier(model, sgd(model), 20)
