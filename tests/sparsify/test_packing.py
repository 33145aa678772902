"""The packed training form computes, learns and saves what the masked one does."""

from copy import deepcopy

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

import cnv2_plugin  # noqa: F401
from cnv2_plugin.analysis import count_cost
from cnv2_plugin.deploy import condense
from cnv2_plugin.deploy.condense import condense_state_dict
from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation, UnfinishedPruningError
from cnv2_plugin.sparsify import (
    StagedSparsifier,
    condense_while_training,
    masked_optimizer_state,
    masked_state_dict,
    pack_model,
    restore_masked,
)
from tests.helpers import finish_pruning, random_arch, randomize_norms, relative_difference

EXACT = 1e-11

LAYERS = {
    'lgc': lambda: LearnedGroupConv(13, 24, 4, 3),
    'sfr': lambda: SparseFeatureReactivation(12, 31, 3, 5),
    'plain': lambda: GroupSparseConv2d(14, 18, 3, 4, bias=True, stride=2),
    'wide lgc': lambda: LearnedGroupConv(100, 24, 2, 3),
    'wide sfr': lambda: SparseFeatureReactivation(64, 31, 4, 5),
    'wide plain': lambda: GroupSparseConv2d(140, 18, 3, 4, bias=True, stride=2),
    'plain over inputs': lambda: GroupSparseConv2d(12, 14, 3, 4, grouped_side='inputs', stride=2),
}


def layer_of(name: str) -> GroupSparseConv2d:
    torch.manual_seed(1)
    return finish_pruning(randomize_norms(LAYERS[name]())).double().train()


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model('condensenetv2', arch=random_arch(seed), num_classes=5)
    return finish_pruning(randomize_norms(model)).double().train()


def images(seed: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train_step(model, optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model(images(seed)).square().mean().backward()
    optimizer.step()


def weights_agree(masked: nn.Module, packed: nn.Module) -> None:
    ours = dict(packed.named_parameters())
    packs = {f'{n}.conv.weight': m for n, m in packed.named_modules() if isinstance(m, GroupSparseConv2d) and m.packed}
    assert packs
    for name, weight in masked.named_parameters():
        expected = packs[name].pack_weight(weight) if name in packs else weight
        assert relative_difference(ours[name].detach(), expected.detach()) < EXACT, name
    buffers = dict(packed.named_buffers())
    for name, value in masked.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            assert relative_difference(buffers[name], value) < EXACT, name


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_output_input_gradient_and_surviving_gradients_are_those_of_the_masked_form(name, memory_format):
    masked = layer_of(name)
    packed = deepcopy(masked)
    packed.switch_to_packed()
    assert packed.packed and packed.conv.weight.numel() < masked.conv.weight.numel()
    x = torch.randn(3, masked.in_channels, 7, 6, dtype=torch.float64).to(memory_format=memory_format)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [masked(inputs[0]), packed(inputs[1])]
    toward = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(toward)
    assert relative_difference(outputs[1], outputs[0]) < EXACT
    assert relative_difference(inputs[1].grad, inputs[0].grad) < EXACT
    assert relative_difference(packed.conv.weight.grad, packed.pack_weight(masked.conv.weight.grad)) < EXACT
    theirs = dict(packed.named_parameters())
    for key, parameter in masked.named_parameters():
        if key != 'conv.weight':
            assert relative_difference(theirs[key].grad, parameter.grad) < EXACT


@pytest.mark.parametrize('name', LAYERS)
def test_a_layer_goes_back_and_on_to_deployment(name):
    masked = layer_of(name).eval()
    x = torch.randn(2, masked.in_channels, 8, 8, dtype=torch.float64)
    expected = masked(x)
    packed = deepcopy(masked)
    packed.switch_to_packed()
    packed.switch_to_packed()
    assert torch.equal(packed.masked_weight(), masked.masked_weight())
    back = deepcopy(packed)
    back.switch_to_masked()
    back.switch_to_masked()
    assert torch.equal(back.masked_weight(), masked.masked_weight()) and not back.packed
    assert torch.equal(back(x), expected)
    packed.switch_to_deploy()
    assert packed.deploy and not packed.packed
    assert relative_difference(packed(x), expected) < EXACT
    masked.switch_to_deploy()
    for key, value in masked.state_dict().items():
        assert torch.equal(packed.state_dict()[key], value)


@pytest.mark.parametrize(
    'make',
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-2),
        lambda p: create_optimizer_v2(list(p), 'lamb', lr=1e-2),
        lambda p: create_optimizer_v2(list(p), 'lookahead_momentum', lr=1e-2, momentum=0.9),
    ],
)
@pytest.mark.parametrize('seed', [0, 3])
def test_training_goes_on_as_the_masked_form_would(make, seed):
    masked = model_of(seed)
    optimizer = make(masked.parameters())
    for step in range(2):
        train_step(masked, optimizer, step)
    packed = deepcopy(masked)
    packed_optimizer = make(packed.parameters())
    packed_optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    report = pack_model(packed, packed_optimizer)
    assert report.weights_after < report.weights_before
    norm_based = 'Lamb' in type(optimizer).__name__
    if norm_based:
        with torch.no_grad():
            for layer in masked.sparse_layers():
                layer.conv.weight.mul_(layer.mask)
                for value in optimizer.state[layer.conv.weight].values():
                    if isinstance(value, torch.Tensor) and value.shape == layer.mask.shape:
                        value.mul_(layer.mask)
    for step in range(2, 5):
        train_step(masked, optimizer, step)
        train_step(packed, packed_optimizer, step)
    weights_agree(masked, packed)


def test_ema_is_carried_over_and_its_masks_follow_the_model():
    masked = model_of()
    optimizer = torch.optim.SGD(masked.parameters(), 0.05, momentum=0.9)
    average = ModelEmaV3(masked, decay=0.8)
    for step in range(2):
        train_step(masked, optimizer, step)
        average.update(masked)
    packed, packed_average = deepcopy(masked), deepcopy(average)
    packed_optimizer = torch.optim.SGD(packed.parameters(), 0.05, momentum=0.9)
    packed_optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    stale = next(m for m in packed_average.modules() if isinstance(m, GroupSparseConv2d))
    stale.mask.fill_(True), stale.stage.fill_(0)
    pack_model(packed, packed_optimizer, packed_average)
    for step in range(2, 4):
        for model, o, ema in ((masked, optimizer, average), (packed, packed_optimizer, packed_average)):
            train_step(model, o, step)
            ema.update(model)
    weights_agree(average.module, packed_average.module)
    x = images(9)
    assert relative_difference(packed_average.module.eval()(x), average.module.eval()(x)) < EXACT
    restore_masked(packed, packed_optimizer, packed_average)
    assert relative_difference(packed_average.module(x), average.module(x)) < EXACT


def test_restored_model_and_optimizer_train_on():
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0)
    train_step(model, optimizer, 0)
    reference = deepcopy(model)
    reference_optimizer = torch.optim.AdamW(reference.parameters(), 1e-2, weight_decay=0)
    reference_optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    pack_model(model, optimizer)
    train_step(model, optimizer, 1)
    restore_masked(model, optimizer)
    train_step(model, optimizer, 2)
    for step in (1, 2):
        train_step(reference, reference_optimizer, step)
    for (name, ours), theirs in zip(model.named_modules(), reference.modules()):
        if isinstance(ours, GroupSparseConv2d):
            assert relative_difference(ours.masked_weight().detach(), theirs.masked_weight().detach()) < EXACT, name


def test_either_form_loads_the_checkpoint_of_the_other():
    masked = model_of().eval()
    packed = deepcopy(masked)
    pack_model(packed)
    expected = masked(images(0))
    fresh = timm.create_model('condensenetv2', arch=random_arch(0), num_classes=5).double().eval()
    fresh.load_state_dict(packed.state_dict())
    assert torch.equal(fresh(images(0)), expected)
    pack_model(fresh)
    fresh.load_state_dict(model_of(0).state_dict())
    assert relative_difference(fresh(images(0)), expected) < EXACT
    fresh.load_state_dict(packed.state_dict())
    assert relative_difference(fresh(images(0)), expected) < EXACT


def test_a_packed_layer_follows_the_masks_it_loads():
    first, second = layer_of('lgc').eval(), layer_of('lgc').eval()
    second.mask.copy_(second.mask.roll(1, 1))
    first.switch_to_packed()
    first.load_state_dict(second.state_dict())
    x = torch.randn(2, 13, 4, 4, dtype=torch.float64)
    assert relative_difference(first(x), second(x)) < EXACT
    with pytest.raises(RuntimeError, match='pruning is not finished in the state dict'):
        first.load_state_dict(LAYERS['lgc']().state_dict())


@pytest.mark.parametrize('name', sorted(LAYERS))
@pytest.mark.parametrize('packed', [False, True])
def test_only_a_packed_weight_is_taken_for_one(name, packed):
    """One of another width, as of another network, stays as it is, and loading refuses it."""
    layer = layer_of(name)
    weight, mask = layer.conv.weight.detach(), layer.mask
    if packed:
        layer.switch_to_packed()
    for wrong in (torch.cat([weight, weight], 1), weight[:, 1:], weight[1:], weight.expand(-1, -1, 3, 3)):
        state = {**layer.state_dict(), 'conv.weight': wrong, 'mask': mask}
        assert masked_state_dict(state, layer)['conv.weight'] is wrong
        with pytest.raises(RuntimeError, match='conv.weight'):
            layer.load_state_dict(state)
    masked = masked_state_dict(layer.state_dict(), layer)['conv.weight']
    assert relative_difference(masked, layer.masked_weight()) < EXACT or not packed


def test_saved_checkpoint_turns_into_the_masked_form_with_its_optimizer():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    train_step(model, optimizer, 0)
    pack_model(model, optimizer)
    train_step(model, optimizer, 1)
    state = masked_state_dict({f'module.{k}': v for k, v in model.state_dict().items()}, model)
    optimizer_state = masked_optimizer_state(deepcopy(optimizer.state_dict()), optimizer, model)
    resumed = timm.create_model('condensenetv2', arch=random_arch(0), num_classes=5).double().train()
    resumed.load_state_dict({k.removeprefix('module.'): v for k, v in state.items()})
    assert all(state[f'module.{k}'].shape == v.shape for k, v in resumed.state_dict().items())
    resumed_optimizer = torch.optim.SGD(resumed.parameters(), 0.05, momentum=0.9)
    resumed_optimizer.load_state_dict(optimizer_state)
    pack_model(resumed, resumed_optimizer)
    for m, o in ((model, optimizer), (resumed, resumed_optimizer)):
        train_step(m, o, 2)
    for ours, theirs in zip(resumed.parameters(), model.parameters()):
        assert relative_difference(ours, theirs) < EXACT


def test_packed_models_condense_count_and_refuse_as_masked_ones_do():
    masked = model_of().eval()
    packed = deepcopy(masked)
    pack_model(packed)
    expected = condense(masked).state_dict()
    for state in (condense(packed).state_dict(), condense_state_dict(packed.state_dict(), masked)):
        assert set(state) == set(expected) and all(torch.equal(state[k], v) for k, v in expected.items())
    ours, theirs = (count_cost(m.float(), (3, 32, 32)) for m in (packed, masked))
    assert ours.mult_adds == ours.mult_adds_pruned == theirs.mult_adds_pruned
    assert ours.params == ours.params_pruned == theirs.params_pruned
    assert StagedSparsifier(packed, 100).finished and StagedSparsifier(packed, 100).sparsity()['total'] < 1


def test_unfinished_wrapped_and_foreign_arguments_are_refused_unchanged():
    unfinished = timm.create_model('condensenetv2', arch=random_arch(0), num_classes=5)
    with pytest.raises(UnfinishedPruningError, match='stage 0 of .*StagedSparsifier.finished'):
        pack_model(unfinished)
    model = model_of()
    with pytest.raises(ValueError, match='no counterpart'):
        pack_model(model, ema=nn.Linear(2, 2))
    with pytest.raises(TypeError, match='Linear holds no param_groups'):
        pack_model(model, nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    weight = next(model.sparse_layers()).conv.weight
    optimizer.state[weight]['rows'] = torch.zeros(7)
    with pytest.raises(ValueError, match='keeps rows of shape'):
        pack_model(model, optimizer)
    assert not any(layer.packed for layer in model.sparse_layers())

    class FakeDistributedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    with pytest.raises(ValueError, match='wrapped by FakeDistributedDataParallel'):
        pack_model(FakeDistributedDataParallel(model))


class Wrapper:
    """Not an optimiser, and calls the one inside as it likes."""

    def __init__(self, optimizer):
        self.parts = {'inner': optimizer}


def test_the_optimiser_is_found_inside_any_wrapper():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    train_step(model, optimizer, 0)
    pack_model(model, Wrapper(optimizer))
    weights = {id(layer.conv.weight) for layer in model.sparse_layers() if layer.packed}
    trained = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert weights and weights <= trained
    assert all(optimizer.state[p]['momentum_buffer'].shape == p.shape for p in model.parameters())


def test_earlier_names_stay():
    assert condense_while_training is pack_model


def test_factor_one_has_nothing_to_pack():
    layer = LearnedGroupConv(8, 8, 4, 1)
    layer.switch_to_packed()
    assert not layer.packed


def test_gradients_that_wait_for_a_step_are_carried_over():
    """Between the batches of one accumulated step."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().mean().backward()
    layers = [m for m in model.modules() if isinstance(m, GroupSparseConv2d)]
    before = [layer.conv.weight.grad.clone() for layer in layers]
    pack_model(model, optimizer)
    assert any(layer.packed for layer in layers)
    for layer, gradient in zip(layers, before):
        assert torch.equal(layer.conv.weight.grad, layer.pack_weight(gradient) if layer.packed else gradient)
    restore_masked(model, optimizer)
    for layer, gradient in zip(layers, before):
        assert torch.equal(layer.conv.weight.grad, gradient * layer.mask)


@pytest.mark.parametrize('make', [LearnedGroupConv, SparseFeatureReactivation])
def test_a_frozen_normalisation_stays_frozen_in_every_form(make):
    layer = make(16, 16, 4, 4).train()
    layer.norm.eval().requires_grad_(False)
    statistics = layer.norm.running_mean.clone()
    layer.prune_to(layer.num_stages)
    for switch in (layer.switch_to_packed, layer.switch_to_masked, layer.switch_to_deploy):
        switch()
        layer(torch.randn(4, 16, 5, 5) + 3)
        assert layer.training and not layer.norm.training
        assert not any(parameter.requires_grad for parameter in layer.norm.parameters())
        assert (layer.norm.running_mean == statistics[0]).all()
