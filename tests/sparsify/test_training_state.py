"""The count of steps, masks and stages hold through what trainers do with models and optimisers besides training."""

import copy
import pickle

import pytest
import torch
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation
from cnv2_plugin.sparsify import AddedReactivation, AttachedSparsifier, StagedSparsifier, attach_sparsifier
from tests.sparsify.test_attach import network, sgd, train
from tests.sparsify.test_sparsify import masks, same_masks


def test_restoring_what_was_before_the_first_step_resets_the_count():
    """As finders of learning rates and batch sizes do."""
    model = network()
    optimizer = sgd(model)
    sparsifier = attach_sparsifier(model, optimizer, 40)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 30)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, 1)
    assert (sparsifier.steps_done, sparsifier.stage) == (1, 0)
    assert all(mask.all() for mask in masks(model).values())


@pytest.mark.parametrize('twin', [copy.deepcopy, lambda trio: pickle.loads(pickle.dumps(trio))], ids=['copy', 'pickle'])
@pytest.mark.parametrize('group_lasso', [0.0, 0.01])
def test_copies_of_model_optimiser_and_sparsifier_go_on_counting(twin, group_lasso):
    model = network()
    optimizer = sgd(model)
    sparsifier = attach_sparsifier(model, optimizer, 20, group_lasso=group_lasso)
    train(model, optimizer, 3)
    trio = twin((model, optimizer, sparsifier))
    train(trio[0], trio[1], 17, 3)
    assert trio[2].steps_done == 20 and trio[2].finished
    assert sparsifier.steps_done == 3 and sparsifier.stage == 0
    train(model, optimizer, 17, 3)
    assert sparsifier.steps_done == 20
    for key, value in model.state_dict().items():
        assert torch.equal(value, trio[0].state_dict()[key]), key


class WithTeacher(nn.Module):
    """A network and its momentum teacher, as methods of semi- and self-supervised learning hold them."""

    def __init__(self, wrap=lambda module: module):
        super().__init__()
        self.student = network()
        self.teacher = nn.ModuleDict(dict(inside=wrap(copy.deepcopy(self.student))))

    def follow(self, momentum=0.99):
        for ours, theirs in zip(self.student.parameters(), self.teacher.parameters()):
            theirs.data.mul_(momentum).add_(ours.data, alpha=1 - momentum)


@pytest.mark.parametrize('drive', ['by hand', 'attached'])
@pytest.mark.parametrize('frozen', [False, True])
def test_a_momentum_teacher_inside_the_model_gets_the_masks_of_the_student(drive, frozen):
    model = WithTeacher()
    model.teacher.requires_grad_(not frozen)
    optimizer = torch.optim.SGD(model.student.parameters(), 0.1, momentum=0.9)
    if drive == 'by hand':
        sparsifier = StagedSparsifier(model, 30)
    else:
        sparsifier = attach_sparsifier(model, optimizer, 30)
    for step in range(30):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 8, 3, 3, generator=generator)
        logits = model.student(x).mean((2, 3))
        F.cross_entropy(logits, torch.randint(4, (4,), generator=generator)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if drive == 'by hand':
            sparsifier.step()
        model.follow()
    assert sparsifier.finished
    assert same_masks(masks(model.student), masks(model.teacher['inside']))


def test_twins_that_both_train_choose_for_themselves_and_so_do_frozen_layers():
    model = nn.ModuleList([network(0), network(1), network(2).requires_grad_(False)])
    alone = copy.deepcopy(model[2])
    sparsifier = StagedSparsifier(model, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(8):
        x = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(step))
        sum(part(x).square().mean() for part in model).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.step()
    for layer in (m for m in alone.modules() if isinstance(m, GroupSparseConv2d)):
        layer.prune_to(layer.num_stages)
    assert same_masks(masks(model[2]), masks(alone))
    assert not same_masks(masks(model[0]), masks(model[1]))


def test_attached_twice_or_stepped_by_hand_is_refused():
    model = network()
    optimizer = sgd(model)
    sparsifier = attach_sparsifier(model, optimizer, 20)
    with pytest.raises(ValueError, match='attached already.*detach'):
        attach_sparsifier(model, optimizer, 20)
    with pytest.raises(ValueError, match='attached already.*detach'):
        AttachedSparsifier(sparsifier, sgd(model))
    with pytest.raises(RuntimeError, match='SGD.*remove.*step'):
        sparsifier.step()
    train(model, optimizer, 2)
    assert sparsifier.steps_done == 2
    sparsifier.driver.detach()
    sparsifier.step()
    assert attach_sparsifier(model, optimizer, 20).steps_done == 2


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation in two calls, as common implementations have it."""

    def __init__(self, parameters, name):
        super().__init__(parameters, dict(rho=0.05))
        setattr(self, name, torch.optim.SGD(self.param_groups, 0.05))
        self.name = name
        self.param_groups = getattr(self, name).param_groups

    @torch.no_grad()
    def first_step(self):
        for parameter in self.param_groups[0]['params']:
            if parameter.grad is not None:
                self.state[parameter]['moved'] = parameter.grad * 0.05
                parameter.add_(self.state[parameter]['moved'])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for parameter in self.param_groups[0]['params']:
            if parameter.grad is not None:
                parameter.sub_(self.state[parameter]['moved'])
        getattr(self, self.name).step()
        self.zero_grad()


@pytest.mark.parametrize('name', ['base_optimizer', '_base_optimizer', 'whatever'])
def test_two_calls_of_sam_are_one_step(name):
    model = network()
    optimizer = Sam(model.parameters(), name)
    sparsifier = attach_sparsifier(model, optimizer, 20)
    for step in range(20):
        x = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.first_step()
        model(x).square().mean().backward()
        optimizer.second_step()
        assert sparsifier.steps_done == step + 1
    assert sparsifier.finished


def test_a_training_whose_steps_are_not_seen_is_refused():
    class Hidden(Sam):
        """Keeps the optimiser inside where nobody finds it."""

        def __init__(self, parameters):
            super().__init__(parameters, 'inside')
            inside = self.__dict__.pop('inside')
            self.call = lambda: inside.step()

        def second_step(self):
            self.call()

    model = network()
    optimizer = Hidden(model.parameters())
    attach_sparsifier(model, optimizer, 20)
    with pytest.raises(RuntimeError, match='no step of Hidden.*attach'):
        for _ in range(6):
            model(torch.randn(4, 8, 3, 3)).square().mean().backward()
            optimizer.second_step()


@pytest.mark.parametrize('kind', ['lbfgs', 'scaled'])
def test_many_backward_passes_before_the_first_step_is_counted_are_no_fault(kind):
    model = network()
    if kind == 'lbfgs':
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=20)
        sparsifier = attach_sparsifier(model, optimizer, 20)
        optimizer.step(lambda: [loss := model(torch.ones(2, 8, 3, 3)).square().mean(), loss.backward()][0])
    else:
        optimizer = sgd(model)
        sparsifier = attach_sparsifier(model, optimizer, 20)
        for _ in range(10):
            model(torch.randn(2, 8, 3, 3)).square().mean().backward()
        optimizer.step()
    assert sparsifier.steps_done == 1


def test_frozen_layers_may_join_the_optimiser_later():
    model = network()
    model[:2].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), 0.05)
    sparsifier = attach_sparsifier(model, optimizer, 20, start=0.2)
    train(model, optimizer, 4)
    model[:2].requires_grad_(True)
    optimizer.add_param_group(dict(params=model[:2].parameters()))
    train(model, optimizer, 16, 4)
    assert sparsifier.finished and sparsifier.steps_done == 20


@pytest.mark.parametrize('state', ['masked', 'packed', 'unfinished'])
@pytest.mark.parametrize('make', [LearnedGroupConv, SparseFeatureReactivation, AddedReactivation, GroupSparseConv2d])
def test_reset_parameters_starts_again(make, state):
    """As loops over folds do, by calling it on every module that has it."""
    layer = make(16, 8, 2, 4)
    layer.prune_to(1 if state == 'unfinished' else 3)
    if state == 'packed':
        layer.switch_to_packed()
    before = copy.deepcopy(layer.state_dict())
    layer.apply(lambda module: getattr(module, 'reset_parameters', lambda: None)())
    assert int(layer.stage) == 0 and layer.mask.all() and layer.conv.weight.shape == layer.mask.shape
    assert (layer.conv.weight == 0).all() == (make is AddedReactivation)
    assert make is AddedReactivation or not torch.equal(before['conv.weight'], layer.conv.weight)
    layer.prune_to(3)
    assert layer.is_finished()


@pytest.mark.parametrize('length, done', [(40, 8), (16, 8)])
def test_more_epochs_of_the_same_batches_keep_the_steps(length, done):
    sparsifier = StagedSparsifier(network(), 20, steps_per_epoch=4)
    for _ in range(8):
        sparsifier.step()
    resumed = StagedSparsifier(network(), length, steps_per_epoch=4)
    resumed.load_state_dict(sparsifier.state_dict())
    assert resumed.steps_done == done
    with pytest.raises(ValueError, match='8 of total_steps=20.* 8.*more steps'):
        StagedSparsifier(network(), 8, steps_per_epoch=4).load_state_dict(sparsifier.state_dict())


@pytest.mark.parametrize('decay', [0.97, 0.9998])
@pytest.mark.parametrize('kind', [ModelEma, ModelEmaV2, ModelEmaV3])
def test_averages_stay_finished_and_load(kind, decay):
    """Averaging may leave a stage behind, but no mask."""
    model = network()
    optimizer = sgd(model)
    average = kind(model, decay=decay)
    attach_sparsifier(model, optimizer, 20)
    train(model, optimizer, 40, ema=average)
    copied = average.ema if kind is ModelEma else average.module
    again = network(seed=1)
    again.load_state_dict(copied.state_dict())
    update_bn([torch.randn(4, 8, 3, 3)], again)
    for averaged in (copied, again):
        assert StagedSparsifier(averaged, 20).finished
        assert same_masks(masks(averaged), masks(model))
    x = torch.randn(2, 8, 3, 3)
    assert torch.allclose(condense(again.eval())(x), again.eval()(x), atol=1e-5)


def test_fsdp2_is_refused_before_the_first_step():
    fsdp = pytest.importorskip('torch.distributed.fsdp')
    if not hasattr(fsdp, 'fully_shard'):
        pytest.skip('this PyTorch has no fully_shard')
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh('cpu', (1,))
        model = fsdp.fully_shard(network(), mesh=mesh)
        with pytest.raises(RuntimeError, match='sharded.*DistributedDataParallel'):
            attach_sparsifier(model, sgd(model), 20)
        with pytest.raises(RuntimeError, match='sharded.*DistributedDataParallel'):
            StagedSparsifier(model, 20)
    finally:
        torch.distributed.destroy_process_group()


def test_options_of_earlier_versions():
    assert StagedSparsifier(network(), 20, spacing='even', importance='l1').stage == 0
    with pytest.raises(ValueError, match="spacing='cubic'.*'even'"):
        StagedSparsifier(network(), 20, spacing='cubic')
    with pytest.raises(TypeError, match='spacin'):
        StagedSparsifier(network(), 20, spacin='even')
