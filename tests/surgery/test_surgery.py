"""Surgery on foreign networks: equal at the start, prunable, condensable, and as cheap as predicted."""

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.deploy import condense, export_onnx, verify
from cnv2_plugin.deploy.condense import condense_state_dict
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import StagedSparsifier, pack_model, plan_learned_groups, to_learned_groups
from tests.helpers import finish_pruning, randomize_norms, relative_difference

from .networks import NETWORKS

SMALL = (3, 64, 64)


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(NETWORKS[name]()).eval()


def outputs(model: nn.Module, seed: int = 0, size=SMALL) -> list[torch.Tensor]:
    with torch.no_grad():
        result = model(torch.randn(2, *size, generator=torch.Generator().manual_seed(seed)))
    return [result] if isinstance(result, torch.Tensor) else list(result)


def conv_net() -> nn.Sequential:
    """Every case of a convolution that surgery has to tell apart."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 48, 1),
        nn.Conv2d(48, 64, 1, stride=2, dilation=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=64),
        nn.Conv2d(64, 44, 1),
        nn.Conv2d(44, 47, 1),
        nn.Conv2d(47, 40, 1, padding=1),
        nn.Conv2d(40, 40, 1, groups=2),
        nn.Conv2d(40, 40, 1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(40, 40, 1)),
        nn.Conv2d(40, 16, 1),
        nn.Conv2d(16, 40, 3),
        nn.Conv2d(40, 36, 1),
        nn.Conv2d(36, 33, 1),
    ).eval()


@pytest.mark.parametrize(
    'name',
    [
        'shufflenet_v2_x1_0',
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ('mobilenetv2_100', 'resnet50', 'densenet121', 'convnext_atto', 'retinanet_r50')
        ),
    ],
)
def test_network_starts_equal_prunes_condenses_and_costs_what_was_predicted(name, tmp_path):
    model = network(name)
    original, state = deepcopy(model), deepcopy(model.state_dict())
    expected = outputs(model)
    plan = plan_learned_groups(model, 8, 4, input_size=SMALL)
    assert not any(isinstance(m, GroupSparseConv2d) for m in model.modules())
    report = to_learned_groups(model, 8, 4, input_size=SMALL)
    assert report == plan and len(report.layers) > 10
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), expected))

    model.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), expected))
    assert count_cost(original, SMALL).mult_adds == report.mult_adds_before

    sparsifier = StagedSparsifier(model, total_steps=20)
    while not sparsifier.finished:
        sparsifier.step()
    masked = outputs(model)
    assert max(relative_difference(a, b) for a, b in zip(masked, expected)) > 1e-3
    condensed = condense(model)
    assert all(relative_difference(a, b) < 1e-5 for a, b in zip(outputs(condensed), masked))
    assert count_cost(model, SMALL).mult_adds_pruned == report.mult_adds_after
    assert count_cost(condensed, SMALL).mult_adds == report.mult_adds_after
    saved = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in condensed.parameters())
    assert saved == report.weights_before - report.weights_after

    pytest.importorskip('onnx', reason='all but the export ran')
    path = tmp_path / 'model.onnx'
    export_onnx(condensed, path, SMALL, batch=2)
    assert verify(model, path, SMALL, batch_size=2).max_rel < 1e-5


def test_every_kind_of_convolution_is_told_apart():
    model = conv_net()
    model[7].requires_grad_(False)
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    report = to_learned_groups(model, 8, 4, input_size=(3, 16, 16))
    assert [(layer.name, layer.groups) for layer in report.layers] == [('1', 8), ('3', 4), ('11', 6)]
    reasons = {layer.name: layer.reason for layer in report.skipped}
    for name, reason in {
        '0': 'the first layer', '2': 'depthwise', '4': 'no number of groups', '5': 'padded', '6': 'already a group',
        '7': 'frozen', '8': 'parametrized', '9': 'too few channels', '10': 'larger than 1x1', '12': 'a last layer',
    }.items():  # fmt: skip
        assert reason in reasons[name], name
    assert model[1].conv.stride == (2, 2) and model[1].conv.dilation == (2, 2)
    assert torch.equal(model(x), expected)
    finish_pruning(model)
    condensed = condense(model)
    assert relative_difference(condensed(x), model(x)) < 1e-5
    assert condensed[1].conv.stride == (2, 2) and condensed[1].conv.dilation == (2, 2)
    assert '3 convolutions learn groups' in str(report) and '1 stay, depthwise: 2.' in str(report)


def test_optimiser_made_before_and_state_dict_of_the_condensed_form_go_on_working():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64), nn.Conv2d(64, 8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    weight = model[1].weight
    to_learned_groups(model, input_size=(3, 8, 8))
    assert model[1].conv.weight is weight
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    finish_pruning(model)
    packed, packed_optimizer = deepcopy(model), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    packed_optimizer = torch.optim.SGD(packed.parameters(), 0.1, momentum=0.9)
    packed_optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    pack_model(packed, packed_optimizer)
    for m, o in ((model, optimizer), (packed, packed_optimizer)):
        o.zero_grad()
        m(x).square().mean().backward()
        o.step()
    assert relative_difference(packed[1].masked_weight(), model[1].masked_weight()) < 1e-11
    assert relative_difference(packed[1].conv.bias, model[1].conv.bias) < 1e-11
    model.eval()
    state = condense_state_dict(model.state_dict(), model)
    condensed = condense(model)
    condensed.load_state_dict(state)
    assert relative_difference(condensed(x), model(x)) < 1e-11


def test_layers_inside_other_layers_shared_and_hooked_ones():
    shared = nn.Conv2d(32, 32, 1)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), shared, nn.ReLU(), shared, nn.Conv2d(32, 32, 1), nn.Conv2d(32, 4, 3))
    twin = nn.Conv2d(32, 32, 1)
    twin.weight = model[4].weight
    model.insert(5, twin)
    x = torch.randn(1, 3, 9, 9)
    expected = model(x)
    report = to_learned_groups(model, input_size=(3, 9, 9))
    assert model[1] is model[3] and isinstance(model[1], GroupSparseConv2d)
    assert report.layers[0].mult_adds_before == 2 * 32 * 32 * 49
    assert {layer.name for layer in report.skipped if 'shared' in layer.reason} == {'4', '5'}
    assert torch.equal(model(x), expected)
    finish_pruning(model)
    assert count_cost(model, (3, 9, 9)).mult_adds_pruned == report.mult_adds_after
    assert count_cost(condense(model), (3, 9, 9)).mult_adds == report.mult_adds_after
    with pytest.raises(ValueError, match='no 1x1 convolution that can learn groups'):
        to_learned_groups(model, input_size=(3, 9, 9))

    hooked = conv_net()
    hooked[3].register_forward_hook(lambda *_: None)
    report = plan_learned_groups(hooked, input_size=(3, 16, 16))
    assert 'it has hooks of its own' in {layer.reason for layer in report.skipped if layer.name == '3'}


def test_include_and_exclude():
    model = network('mobilenetv2_100')
    chosen = plan_learned_groups(model, include='blocks.5*', exclude=('*.1.conv_pwl',), input_size=SMALL)
    assert {layer.name for layer in chosen.layers} == {
        'blocks.5.0.conv_pw', 'blocks.5.0.conv_pwl', 'blocks.5.1.conv_pw', 'blocks.5.2.conv_pw', 'blocks.5.2.conv_pwl',
    }  # fmt: skip
    inside = plan_learned_groups(model, include='blocks.5.0', input_size=SMALL)
    assert {layer.name for layer in inside.layers} == {'blocks.5.0.conv_pw', 'blocks.5.0.conv_pwl'}
    with pytest.raises(ValueError, match="include has 'layer9', which fits no module"):
        plan_learned_groups(model, include='layer9', input_size=SMALL)


def test_squeeze_excite_is_too_small_a_share_to_pay():
    report = plan_learned_groups(timm.create_model('efficientnet_b0'), input_size=(3, 64, 64), min_channels=16)
    assert not any('.se.' in layer.name for layer in report.layers)
    assert any('too small a share' in layer.reason for layer in report.skipped)


@pytest.mark.parametrize(
    ('make', 'options', 'message'),
    [
        (lambda: timm.create_model('convnext_atto', conv_mlp=False), {}, '25 nn.Linear.*conv_mlp=True'),
        (lambda: timm.create_model('resnet18'), dict(exclude='layer*'), 'no 1x1 convolution that can learn groups'),
        (conv_net, dict(groups=1), 'groups is 1; it takes a whole number of at least 2'),
        (conv_net, dict(factor=0), 'factor is 0'),
        (conv_net, dict(input_size=(5, 16, 16)), 'does not run on one image of size .5, 16, 16.'),
    ],
)
def test_refusals_say_what_to_do_and_change_nothing(make, options, message):
    model = make()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        to_learned_groups(model, **{'input_size': SMALL, **options})
    assert list(model.state_dict()) == keys


def test_training_modes_of_a_partly_frozen_network_survive():
    model = network('shufflenet_v2_x1_0').train()
    model.stage3.eval()
    modes = {name: m.training for name, m in model.named_modules()}
    to_learned_groups(model, input_size=SMALL)
    assert all(m.training == modes.get(name, m.training) for name, m in model.named_modules())
    assert not model.stage3[0].branch2[0].conv.training


class OwnWeight(nn.Conv2d):
    """A convolution that keeps its weight under a name of its own."""

    def __init__(self, channels):
        super().__init__(channels, channels, 1, bias=False)
        self.own = self.weight
        del self.weight

    def forward(self, x):
        return nn.functional.conv2d(x, self.own)


def test_weights_of_layers_that_stay_are_not_read():
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.utils.parametrizations.spectral_norm(nn.Conv2d(64, 64, 1)), OwnWeight(64),
        nn.Conv2d(64, 64, 1), nn.Conv2d(64, 8, 1),
    )  # fmt: skip
    before = deepcopy(model.state_dict())
    report = plan_learned_groups(model, input_size=(3, 8, 8))
    assert [layer.name for layer in report.layers] == ['3']
    assert {'1', '2'} <= {layer.name for layer in report.skipped}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_arguments_by_position():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 8, 1))
    report = to_learned_groups(model, 4, 4, '1', None, 32, (3, 8, 8), True)
    assert [layer.name for layer in report.layers] == ['1'] and model[1].deploy
