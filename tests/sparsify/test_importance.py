"""What stages rank connections by: each importance against itself written out, resumed, and refused in a sentence."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation
from cnv2_plugin.sparsify import StagedSparsifier
from cnv2_plugin.sparsify.importance import UnitImportance

ARCH = dict(layers=[2, 1], growth=[8, 16], groups_1x1=4, groups_3x3=2, groups_sfr=8, condense_factor=3, sparse_factor=5)


def network(seed=0):
    """CondenseNetV2 with scales that differ, some negative."""
    torch.manual_seed(seed)
    model = timm.create_model('condensenetv2', arch=ARCH, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    return model


def images(step):
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))


def train(model, sparsifier, optimizer, steps):
    for step in steps:
        loss = model(images(step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsifier.step()


def weakest(layer, importance):
    """Units of each group that one stage of a layer with factor 2 prunes, written out."""
    units = {}
    weight = importance.flatten(1)
    columns = weight if layer.grouped_side == 'outputs' else weight.t()
    for group in range(layer.groups):
        totals = columns[group :: layer.groups]
        ranked = totals.sum(0).argsort(stable=True)
        units[group] = set(ranked[: columns.shape[1] - layer.kept_per_group(1)].tolist())
    return units


def pruned_units(layer):
    return {g: set((~row).nonzero().flatten().tolist()) for g, row in enumerate(layer.by_unit(layer.mask)[..., 0])}


def layers():
    torch.manual_seed(0)
    found = LearnedGroupConv(12, 16, 4, 2), SparseFeatureReactivation(8, 12, 4, 2)
    for layer in found:
        nn.init.normal_(layer.norm.weight)
    return found


@pytest.mark.parametrize('layer', layers(), ids=['lgc', 'sfr'])
def test_norm_is_the_l1_norm_of_the_weight_with_the_normalisation_folded_in(layer):
    layer = copy.deepcopy(layer)
    plain = copy.deepcopy(layer)
    StagedSparsifier(layer, 10, importance='norm').set_progress(1)
    folded = layer.conv.weight.detach() * layer.norm.weight.detach()[None, :, None, None]
    assert pruned_units(layer) == weakest(layer, folded.abs())
    StagedSparsifier(plain, 10).set_progress(1)
    assert pruned_units(plain) == weakest(plain, plain.conv.weight.detach().abs()) != pruned_units(layer)


@pytest.mark.parametrize('act', [nn.ReLU, nn.Hardswish, lambda: nn.PReLU(12)], ids=['relu', 'hardswish', 'prelu'])
def test_activation_weighs_each_weight_by_what_it_reads(act):
    torch.manual_seed(0)
    layer = LearnedGroupConv(12, 16, 4, 2, act_layer=act).double()
    nn.init.normal_(layer.norm.weight)
    nn.init.normal_(layer.norm.bias)
    with torch.no_grad():
        read = layer.act(layer.norm(torch.randn(64, 12, 60, 60).double()))
        magnitude = read.square().mean((0, 2, 3)).sqrt()
    found = UnitImportance('activation', {'': layer}).of('', layer)
    expected = layer.by_unit(layer.conv.weight.detach().abs() * magnitude[:, None, None]).sum(2)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.001)
    StagedSparsifier(layer, 10, importance='activation').set_progress(1)
    for group, row in enumerate(found):
        assert pruned_units(layer)[group] == set(row.argsort()[: len(row) - layer.kept_per_group()].tolist())


def test_activation_takes_a_normalisation_without_shift():
    layer = SparseFeatureReactivation(8, 12, 4, 2, norm_layer=lambda width: nn.LayerNorm([width], bias=False))
    nn.init.normal_(layer.norm.weight)
    root_mean_square = layer.norm.weight.detach().double().abs() / 2**0.5
    expected = layer.by_unit(layer.conv.weight.detach().abs() * root_mean_square[:, None, None]).sum(2)
    torch.testing.assert_close(UnitImportance('activation', {}).of('', layer), expected, rtol=0.01, atol=0)


def test_activation_depends_on_nothing_random():
    layer = LearnedGroupConv(8, 16, 4, 2, act_layer=nn.RReLU).train()
    importance = UnitImportance('activation', {'': layer})
    calls = []
    layer.act.register_forward_hook(lambda *_: calls.append(0))
    torch.set_default_dtype(torch.bfloat16)
    try:
        first, second = importance.of('', layer), importance.of('', layer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first, second) and not calls and layer.act.training


@pytest.mark.parametrize('layer', layers(), ids=['lgc', 'sfr'])
def test_taylor_is_the_first_order_change_of_the_loss_over_the_steps(layer):
    layer = copy.deepcopy(layer)
    sparsifier = StagedSparsifier(layer, 8, importance='taylor')
    total = 0
    for step in range(4):
        layer.zero_grad()
        x = torch.randn(4, layer.in_channels, 5, 5, generator=torch.Generator().manual_seed(step))
        layer(x).square().mean().backward()
        change = layer.by_unit(layer.conv.weight.grad * layer.conv.weight.detach()).sum(2).abs()
        total = total + change
        assert sparsifier.step() == (step == 3)
    for group, row in enumerate(total):
        assert pruned_units(layer)[group] == set(row.argsort()[: len(row) - layer.kept_per_group()].tolist())


def test_first_order_change_is_what_the_loss_loses_by_a_small_step_towards_zero():
    layer = LearnedGroupConv(8, 8, 2, 2).double()
    sparsifier = StagedSparsifier(layer, 8, importance='taylor')
    x = torch.randn(4, 8, 5, 5).double()
    loss = layer(x).square().mean()
    loss.backward()
    sparsifier.observe()
    with torch.no_grad():
        layer.by_unit(layer.conv.weight)[1, 3] *= 1 - 1e-5
    change = (layer(x).square().mean() - loss).abs().item() / 1e-5
    assert sparsifier.importance.seen[''][1, 3].item() == pytest.approx(change, rel=1e-3)


@pytest.mark.parametrize('importance', ['norm', 'activation', 'taylor'])
@pytest.mark.parametrize('cut', [1, 3, 7])
def test_a_resumed_training_prunes_the_same(importance, cut):
    def parts(seed=0):
        model = network(seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        return model, StagedSparsifier(model, 16, importance=importance), optimizer

    whole, plain = parts(), network()
    train(*whole, range(cut))
    saved = copy.deepcopy([part.state_dict() for part in whole])
    train(*whole, range(cut, 16))
    resumed = parts(seed=1)
    for part, state in zip(resumed, saved):
        part.load_state_dict(state)
    train(*resumed, range(cut, 16))
    assert whole[1].finished
    for key, value in whole[0].state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[key]), key
    train(plain, StagedSparsifier(plain, 16), torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9), range(16))
    assert any(not torch.equal(a.mask, b.mask) for a, b in zip(plain.sparse_layers(), whole[0].sparse_layers()))


def test_states_tell_importances_apart():
    papers, norm = (StagedSparsifier(network(), 16, importance=kind) for kind in ('l1', 'norm'))
    assert 'importance' not in papers.state_dict()
    with pytest.raises(ValueError, match='importance=l1 but this one norm'):
        norm.load_state_dict(papers.state_dict())
    taylor = StagedSparsifier(network(), 16, importance='taylor')
    other = {**taylor.state_dict(), 'seen': {'stages.0.layers.0.conv_1': torch.ones(2, 2)}}
    with pytest.raises(ValueError, match=r'stages\.0\.layers\.0\.conv_1 with the shape \(2, 2\), but this model has'):
        taylor.load_state_dict(other)


def test_an_infinite_gradient_is_not_counted():
    layer = LearnedGroupConv(8, 8, 2, 2)
    sparsifier = StagedSparsifier(layer, 8, importance='taylor')
    layer.conv.weight.grad = torch.full_like(layer.conv.weight, float('inf'))
    sparsifier.observe()
    assert not sparsifier.importance.seen[''].any()


class ActivatingNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_wrong_uses_are_told_in_a_sentence():
    with pytest.raises(ValueError, match="importance is 'l2'; it takes 'l1', 'norm', 'activation' or 'taylor'"):
        StagedSparsifier(network(), 16, importance='l2')
    bare = nn.Sequential(nn.Identity(), GroupSparseConv2d(8, 8, 2, 2))
    for importance in ('norm', 'activation'):
        with pytest.raises(ValueError, match=f"1 has no .* 8 inputs .* importance='{importance}' .* use 'l1'"):
            StagedSparsifier(bare, 16, importance=importance)
    for norm_layer in (timm.layers.BatchNormAct2d, ActivatingNorm, partial(timm.layers.GroupNormAct, num_groups=4)):
        activated = LearnedGroupConv(8, 16, 4, 2, norm_layer=norm_layer, act_layer=nn.Identity)
        with pytest.raises(ValueError, match='in front of LearnedGroupConv, a .*Norm.*, may do more than normalise'):
            StagedSparsifier(activated, 16, importance='activation')
    model = network()
    before = [layer.mask.clone() for layer in model.sparse_layers()]
    with pytest.raises(ValueError, match=r'stages\.0\.layers\.0\.conv_1 has a stage to do but no gradient was seen'):
        StagedSparsifier(model, 16, importance='taylor').set_progress(1)
    next(model.sparse_layers()).norm.weight.data[0] = float('nan')
    with pytest.raises(ValueError, match=r'the normalisation in front of stages\.0\.layers\.0\.conv_1 has NaN'):
        StagedSparsifier(model, 16, importance='norm').set_progress(1)
    assert all(torch.equal(a, layer.mask) for a, layer in zip(before, model.sparse_layers()))


def test_activation_importance_reads_a_norm_whose_activation_is_off():
    plain = LearnedGroupConv(8, 16, 4, 2)
    norm_layer = partial(timm.layers.BatchNormAct2d, apply_act=False)
    other = LearnedGroupConv(8, 16, 4, 2, norm_layer=norm_layer)
    for norm in (plain.norm, other.norm):
        norm.weight.data.copy_(torch.linspace(-1, 2, 8))
        norm.bias.data.copy_(torch.linspace(0.5, -0.5, 8))
    other.conv.weight.data.copy_(plain.conv.weight.data)
    for layer in (plain, other):
        StagedSparsifier(layer, 16, importance='activation').set_progress(1)
    assert torch.equal(plain.mask, other.mask)
    grouped = partial(timm.layers.GroupNormAct, num_groups=4, apply_act=False)
    StagedSparsifier(LearnedGroupConv(8, 16, 4, 2, norm_layer=grouped), 16, importance='activation').set_progress(1)


def test_nan_in_a_norm_with_a_forward_of_its_own_is_told_as_in_any():
    layer = LearnedGroupConv(8, 16, 4, 2, norm_layer=partial(timm.layers.BatchNormAct2d, apply_act=False))
    sparsifier = StagedSparsifier(layer, 16, importance='activation')
    layer.norm.weight.data[0] = float('nan')
    with pytest.raises(ValueError, match='the normalisation in front of .* has NaN'):
        sparsifier.set_progress(1)
