"""Reactivation added to foreign networks: nothing at the start, learning at once, prunable and condensable."""

import pickle
from copy import deepcopy

import pytest
import timm
import torch
import torchvision
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.deploy import condense, export_onnx, verify
from cnv2_plugin.sparsify import (
    AddedReactivation,
    StagedSparsifier,
    add_reactivation,
    pack_model,
    to_learned_groups,
)
from tests.helpers import finish_pruning, randomize_norms, relative_difference

SMALL = (3, 64, 64)

NETWORKS = {
    'shufflenet': (torchvision.models.shufflenet_v2_x0_5, {'split': 13}),
    'cs3darknet': (lambda: timm.create_model('cs3darknet_s'), {'split': 4, 'residual': 9}),
    'resnet': (lambda: timm.create_model('resnet26'), {'residual': 4}),
    'densenet': (lambda: timm.create_model('densenet121'), {'dense': 58}),
    'torchvision densenet': (torchvision.models.densenet121, {'dense': 58}),
    'cspresnet': (lambda: timm.create_model('cspresnet50'), {'split': 4, 'residual': 13}),
    'convnext': (lambda: timm.create_model('convnext_atto', ls_init_value=0.5), {'residual': 12}),
}
SLOW = ('torchvision densenet', 'cspresnet')


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(NETWORKS[name][0]()).eval()


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def added(model: nn.Module) -> list[AddedReactivation]:
    return [m for m in model.modules() if isinstance(m, AddedReactivation)]


@torch.no_grad()
def pretend_to_have_learned(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for layer in added(model):
        nn.init.normal_(layer.conv.weight, std=0.05)
    return randomize_norms(model, seed=1)


@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NETWORKS])
def test_exact_no_op_that_learns_prunes_and_condenses(name):
    model, x = network(name), images()
    original = deepcopy(model)
    keys = list(model.state_dict())
    kinds = NETWORKS[name][1]
    report = add_reactivation(model, 4, 8, min_channels=24, input_size=SMALL)
    counted = {kind: sum(p.kind == kind for p in report.layers) for kind in {p.kind for p in report.layers}}
    assert counted == kinds and len(added(model)) == len(report.layers)
    assert set(keys) < set(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), original(x))
        model.load_state_dict(original.state_dict())
        assert torch.equal(model(x), original(x))

    model.train(), original.train()
    outputs = model(x)
    assert torch.equal(outputs, original(x))
    outputs.square().mean().backward()
    assert all(layer.conv.weight.grad.abs().max() > 0 for layer in added(model))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    assert all(layer.norm.weight.grad.abs().max() > 0 for layer in added(model))

    pretend_to_have_learned(model).eval()
    sparsifier = StagedSparsifier(model, total_steps=20)
    while not sparsifier.finished:
        sparsifier.step()
    condensed = condense(model)
    with torch.no_grad():
        assert relative_difference(condensed(x), model(x)) < 1e-5
        assert relative_difference(model(x), randomize_norms(original.eval(), seed=1)(x)) > 1e-3
    assert count_cost(original, SMALL).mult_adds == report.mult_adds_before
    assert count_cost(condensed, SMALL).mult_adds == report.mult_adds_after


def test_values_are_those_of_the_formula():
    unit = torchvision.models.shufflenetv2.InvertedResidual(48, 48, 1).double().eval()
    model = nn.Sequential(nn.Conv2d(3, 48, 3).double(), randomize_norms(unit))
    add_reactivation(model, 4, 3, min_channels=8, input_size=(3, 9, 9))
    pretend_to_have_learned(model)
    x = torch.randn(2, 48, 7, 7, dtype=torch.float64)
    left, new = x[:, :24], unit.branch2(x[:, 24:])
    expected = nn.ChannelShuffle(2)(torch.cat((left + unit.reactivation_0(new), new), 1))
    assert torch.equal(unit(x), expected)


def test_dense_values_are_those_of_the_formula():
    block = torchvision.models.densenet._DenseBlock(3, 16, 2, 8, 0.0).double().eval()
    model = nn.Sequential(nn.Conv2d(3, 16, 3).double(), randomize_norms(block))
    add_reactivation(model, 4, 3, min_channels=8, input_size=(3, 9, 9))
    pretend_to_have_learned(model)
    features = torch.randn(2, 16, 7, 7, dtype=torch.float64)
    x = features
    for i in range(3):
        layer = getattr(block, f'denselayer{i + 1}')
        new = layer([x])
        x = torch.cat((x + getattr(block, f'reactivation_{i}')(new), new), 1)
    assert torch.equal(block(features), x)


class CrossStage(nn.Module):
    """What CSP layers of detectors do: one convolution on the short way, several on the long one."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Conv2d(32, 32, 1)
        self.long = nn.Sequential(*(nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)) for _ in range(3)))

    def forward(self, x):
        return torch.cat((self.long(x), self.short(x)), dim=1)


class Overwritten(nn.Module):
    """A residual block whose new features are changed in place afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32))

    def forward(self, x):
        new = self.convs(x)
        y = x + new
        return y * new.relu_()


class DependsOnValues(nn.Module):
    """A block whose way depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1))

    def forward(self, x):
        return x + self.convs(x) if x.sum() > 0 else x


class Silent(DependsOnValues):
    """A block that fails without a word when it is traced."""

    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            raise NotImplementedError
        return x + self.convs(x)


class DependsOnMode(DependsOnValues):
    """A block with functional dropout."""

    def forward(self, x):
        return x + nn.functional.dropout(self.convs(x), 0.5, self.training)


class Optional(DependsOnValues):
    """A block with a second parameter that has a default."""

    def forward(self, x, mask=None, scale: float = 2.0):
        if mask is not None:
            x = x * mask
        return x + scale * self.convs(x)


class IdentityShortcut(nn.Module):
    """A residual block whose shortcut is a module that does nothing, as in ConvNeXt and RegNet."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Identity()
        self.convs = nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 1))

    def forward(self, x):
        shortcut = x
        return self.convs(x) + self.shortcut(shortcut)


class Gated(IdentityShortcut):
    """A block that multiplies with its input or takes it away: two features of one shape, and no shortcut."""

    def __init__(self, combine) -> None:
        super().__init__()
        self.combine = combine

    def forward(self, x):
        return self.combine(self.convs(x), x)


def around(block: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 32, 3), block, nn.ReLU())


def test_a_shortcut_through_an_identity_module_is_found():
    model = randomize_norms(around(IdentityShortcut())).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = model(x)
    assert [p.kind for p in add_reactivation(model, input_size=(3, 8, 8)).layers] == ['residual']
    assert torch.equal(model(x), expected)
    pretend_to_have_learned(model)
    block, features = model[1], model[0](x)
    new = block.convs(features)
    assert torch.equal(block(features), new + (features + block.reactivation_0(new)))


def test_cross_stage_layers_and_defaults():
    model = around(CrossStage())
    assert [p.kind for p in add_reactivation(model, input_size=(3, 8, 8)).layers] == ['cross-stage']
    model = around(Optional()).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    add_reactivation(model, input_size=(3, 8, 8))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: around(DependsOnValues()), '1: its forward pass is not a fixed graph .*control flow'),
        (lambda: around(Silent()), r'1: its forward pass is not a fixed graph \(NotImplementedError\)'),
        (lambda: around(DependsOnMode()), 'behaves differently in training mode'),
        (lambda: around(Overwritten()), 'neither concatenates old features nor adds shortcuts'),
        (lambda: torchvision.models.vgg11(), 'neither concatenates'),
        *(
            (lambda combine=combine: around(Gated(combine)), 'neither concatenates')
            for combine in (torch.mul, torch.sub)
        ),
    ],
)
def test_what_the_graph_does_not_allow_is_refused_with_the_reason(make, message):
    model = make()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        add_reactivation(model, input_size=(3, 32, 32))
    assert list(model.state_dict()) == keys


def test_refusals_of_some_modules_are_told_and_others_get_theirs():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), DependsOnValues(), CrossStage())
    report = add_reactivation(model, input_size=(3, 8, 8))
    assert len(report.layers) == 1 and list(report.refused) == ['1'] and 'fixed graph' in str(report)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(groups=1), 'groups is 1'),
        (dict(kinds=['upwards']), "takes any of 'dense'"),
        (dict(include='stage9*'), 'fits no module'),
        (dict(kinds=['dense']), 'neither concatenates'),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        add_reactivation(network('shufflenet'), input_size=SMALL, **options)


def test_include_exclude_and_kinds():
    model = network('cs3darknet')
    report = add_reactivation(model, include='stages.2', kinds=['split'], min_channels=8, input_size=SMALL)
    assert [p.name for p in report.layers] == ['stages.2.reactivation_0']


def test_a_changed_module_copies_pickles_and_keeps_its_class():
    model = network('shufflenet')
    unit = model.stage2[1]
    kind, stride = type(unit), unit.stride
    add_reactivation(model, min_channels=8, input_size=SMALL)
    pretend_to_have_learned(model)
    assert isinstance(unit, kind) and unit.stride == stride
    with torch.no_grad():
        expected = model(images())
        assert torch.equal(deepcopy(model)(images()), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(images()), expected)
        assert type(deepcopy(unit)) is type(unit)


@pytest.mark.slow
def test_together_with_learned_groups_condensed_training_and_onnx(tmp_path):
    model = network('shufflenet')
    state = deepcopy(model.state_dict())
    expected = model(images())
    add_reactivation(model, min_channels=16, input_size=SMALL)
    to_learned_groups(model, min_channels=16, input_size=SMALL)
    model.load_state_dict(state)
    assert torch.equal(model(images()), expected)
    finish_pruning(pretend_to_have_learned(model))
    packed = deepcopy(model)
    pack_model(packed)
    with torch.no_grad():
        assert relative_difference(packed(images()), model(images())) < 1e-5
    condensed = condense(model)
    pytest.importorskip('onnx', reason='all but the export ran')
    export_onnx(condensed, tmp_path / 'model.onnx', SMALL, batch=2)
    assert verify(model, tmp_path / 'model.onnx', SMALL, batch_size=2).max_rel < 1e-5
