"""A conversion converts only what it knows: whatever a module does besides its class survives, or is refused."""

import copy
import random

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

import cnv2_plugin  # noqa: F401
from cnv2_plugin.deploy import VerificationError, condense, lower
from cnv2_plugin.graph.ir import Graph
from cnv2_plugin.graph.ops import Conv, ScatterSum
from cnv2_plugin.kernels.compiler import compile_graph
from cnv2_plugin.kernels.placement import UnsupportedError
from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv
from cnv2_plugin.sparsify import add_reactivation, to_learned_groups
from tests.helpers import finish_pruning, lacks_kernels, randomize_norms, relative_difference

SIZE = (3, 32, 32)
TINY = dict(layers=(1, 2), growth=(8, 16), groups_1x1=4, groups_3x3=4, condense_factor=4)
FAMILIES = {
    'condensenetv2': dict(TINY, groups_sfr=2, sparse_factor=2, se_from=2, head_width=20),
    'condensenet': TINY,
    'sfr_shufflenetv2': dict(channels=(32, 56), repeats=(2, 1), final_width=40),
    'shufflenetv2': dict(channels=(32, 56), repeats=(2, 1), final_width=40),
}


class Inverted(nn.Module):
    """A user's own block: widen, filter by channel, narrow, with a shortcut."""

    def __init__(self, width):
        super().__init__()
        self.widen = nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU6())
        self.filter = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.narrow = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.BatchNorm2d(width))

    def forward(self, x):
        return x + self.narrow(self.filter(self.widen(x)))


def resnet():
    """Of bottlenecks: the first of a stage, one after it, and one with a stride; further stages have no others."""
    model = timm.create_model('resnet26', num_classes=5, layers=(2, 1, 1, 1), channels=(8, 8, 8, 8))
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(32, 5)
    return model


FOREIGN = {
    'resnet': resnet,
    'densenet': lambda: timm.create_model('densenet121', num_classes=5, growth_rate=8, block_config=(2, 1)),
    'own': lambda: nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), Inverted(16), Inverted(16), nn.MaxPool2d(3, 2, 1)),
}


def finished(model):
    for layer in model.modules():
        if isinstance(layer, GroupSparseConv2d):
            nn.init.normal_(layer.conv.weight, std=0.2, generator=torch.Generator().manual_seed(layer.in_channels))
    return finish_pruning(randomize_norms(model)).eval()


def network(name):
    torch.manual_seed(0)
    if name in FAMILIES:
        return finished(timm.create_model(name, arch=FAMILIES[name], num_classes=5, drop_rate=0.1))
    model = FOREIGN[name]()
    to_learned_groups(model, groups=4, factor=2, min_channels=8, input_size=SIZE)
    if name != 'own':
        add_reactivation(model, groups=4, factor=2, min_channels=8, input_size=SIZE)
    return finished(model)


def altered(output):
    return output * 1.5 + 0.25 if isinstance(output, torch.Tensor) else output


def hook(module):
    module.register_forward_hook(lambda module, inputs, output: altered(output))


def pre_hook(module):
    module.register_forward_pre_hook(lambda module, inputs: tuple(map(altered, inputs)))


def instance_forward(module):
    forward = module.forward
    module.forward = lambda *inputs: altered(forward(*inputs))


def subclass(module):
    kind = type(module)
    module.__class__ = type(
        kind.__name__, (kind,), dict(forward=lambda self, *x: altered(super(kind2, self).forward(*x)))
    )
    kind2 = module.__class__


CHANGES = dict(hook=hook, pre_hook=pre_hook, instance_forward=instance_forward, subclass=subclass)
CONVERSIONS = {
    'condensed': condense,
    'lowered': lambda model: lower(model, SIZE, verify=False),
    'native': lambda model: lower(model, SIZE, 'native', verify=False),
}
if lacks_kernels():
    del CONVERSIONS['native']


def silently_wrong(make, position, change, images, conversions=tuple(CONVERSIONS)):
    """The conversions whose result is neither equal nor refused."""
    model = make()
    with torch.no_grad():
        CHANGES[change](model.get_submodule(position))
        expected = model(images)
        for name in conversions:
            try:
                converted = CONVERSIONS[name](model)
            except (TypeError, ValueError) as refusal:
                if position not in str(refusal) and 'no part of this model' not in str(refusal):
                    yield f'{name}: {change} at {position} is refused without naming it: {refusal}'
                continue
            if not relative_difference(converted(images), expected) <= 1e-5:
                yield f'{name}: {change} at {position or "the model"}'


def walk(name, share=1.0):
    """Changes at a share of the positions; at all of them each change meets one kind of lowering, in turns."""
    model, images = network(name), torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1))
    places = [(position, change) for position, _ in model.named_modules() for change in CHANGES]
    wrong = []
    for i in random.Random(0).sample(range(len(places)), int(len(places) * share)):
        turn = (i + i // len(CHANGES)) % 2
        conversions = list(CONVERSIONS) if share < 1 else ['condensed', list(CONVERSIONS)[1:][turn - 1]]
        wrong += silently_wrong(lambda: copy.deepcopy(model), *places[i], images, conversions)
    assert wrong == []


@pytest.mark.parametrize(('name', 'share'), [('condensenetv2', 0.04), ('sfr_shufflenetv2', 0.04)])
def test_changes_at_some_positions_survive_or_are_refused(name, share):
    walk(name, share)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*FAMILIES, *FOREIGN])
def test_changes_at_every_position_survive_or_are_refused(name):
    walk(name)


@pytest.mark.parametrize('position', ['global_pool', 'global_pool.flatten', 'stages', 'stages.1', 'norm', 'stem'])
@pytest.mark.parametrize('change', CHANGES)
def test_changes_around_what_is_fused_survive(position, change):
    images = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(1))
    assert list(silently_wrong(lambda: network('condensenetv2'), position, change, images)) == []


def layer(**parts):
    made = LearnedGroupConv(16, 16, groups=4, factor=2)
    for name, module in parts.items():
        setattr(made, name, module)
    return finished(nn.Sequential(made))


class HalfOfTheChannels(nn.Module):
    def forward(self, x):
        return torch.cat((x[:, ::2].relu(), x[:, 1::2]), 1)


@pytest.mark.parametrize(
    'parts',
    [
        dict(act=nn.PReLU(16)),
        dict(act=nn.Softmax(1)),
        dict(act=nn.Sequential(nn.GLU(1), nn.Upsample(1))),
        dict(act=HalfOfTheChannels()),
        dict(drop=nn.Softmax(1)),
        dict(norm=nn.GroupNorm(4, 16)),
        dict(norm=nn.Sequential(nn.BatchNorm2d(16))),
        dict(conv=parametrizations.weight_norm(nn.Conv2d(16, 16, 1, bias=False))),
        dict(conv=parametrizations.spectral_norm(nn.Conv2d(16, 16, 1, bias=False))),
    ],
)
def test_parts_that_do_not_treat_channels_alike_are_refused_by_name(parts):
    model = layer(**parts)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match=rf'0\.{next(iter(parts))}'):
        condense(model, inplace=True)
    assert not model[0].deploy and all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def with_options(norm):
    norm.momentum = None
    return norm


@pytest.mark.parametrize(
    'parts',
    [
        dict(drop=nn.Tanh()),
        dict(drop=nn.Dropout2d(0.5)),
        dict(act=nn.PReLU(1)),
        dict(act=nn.RReLU()),
        dict(act=nn.Softplus()),
        dict(act=nn.Sequential(nn.ReLU(), nn.Hardsigmoid())),
        dict(norm=FrozenBatchNorm2d(16)),
        dict(norm=nn.SyncBatchNorm(16)),
        dict(norm=nn.BatchNorm2d(16, affine=False)),
        dict(norm=nn.BatchNorm2d(16, track_running_stats=False)),
        dict(norm=with_options(nn.BatchNorm2d(16))),
    ],
)
def test_what_may_stand_in_a_layer_is_converted_exactly(parts):
    torch.manual_seed(0)
    made = LearnedGroupConv(16, 16, groups=4, factor=2)
    for name, module in parts.items():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 1.5)
        setattr(made, name, module)
    model, images = finish_pruning(nn.Sequential(made)).eval(), torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        expected = model(images)
        for converted in (condense(model), lower(model, (16, 8, 8))):
            assert type(converted) is type(model)
            assert relative_difference(converted(images), expected) <= 1e-5


def test_frozen_norms_stay_frozen_and_whole_networks_with_them_convert():
    model = timm.layers.freeze_batch_norm_2d(network('condensenetv2'))
    images = torch.randn(1, *SIZE)
    with torch.no_grad():
        for name, convert in CONVERSIONS.items():
            converted = convert(model)
            assert relative_difference(converted(images), model(images)) <= 1e-5, name
    condensed = condense(model)
    frozen = {name for name, module in model.named_modules() if isinstance(module, FrozenBatchNorm2d)}
    assert frozen and {n for n, m in condensed.named_modules() if isinstance(m, FrozenBatchNorm2d)} == frozen


POOLS = [
    nn.AvgPool2d(2, 2, ceil_mode=True),
    nn.AvgPool2d(2, 2, divisor_override=3),
    nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    nn.AvgPool2d((2, 2)),
    nn.MaxPool2d(2),
    nn.AdaptiveAvgPool2d(3),
    nn.LPPool2d(2, 2),
]


@pytest.mark.parametrize('pool', POOLS, ids=str)
@pytest.mark.parametrize('conversion', [name for name in CONVERSIONS if name != 'condensed'])
def test_options_of_pools_and_convolutions_are_kept(pool, conversion):
    model = network('condensenetv2')
    model.stages[1].pool = pool
    model.stages[1].layers[0].conv_2.padding_mode = 'reflect'
    model.stages[1].layers[0].conv_2._reversed_padding_repeated_twice = [1, 1, 1, 1]
    images = torch.randn(2, 3, 36, 36)
    assert is_equal_or_refused(model, CONVERSIONS[conversion], images)


def is_equal_or_refused(model, convert, images):
    try:
        converted = convert(model)
    except ValueError as refusal:
        return 'no part of this model' in str(refusal)
    with torch.no_grad():
        return relative_difference(converted(images), model(images)) <= 1e-5


def test_squeeze_excitation_with_other_parts_is_kept():
    model = network('condensenetv2')
    block = model.stages[1].layers[0].se
    block.act, block.fc1 = nn.Tanh(), nn.Linear(block.fc1.in_features, block.fc1.out_features)
    assert all(is_equal_or_refused(model, convert, torch.randn(2, *SIZE)) for convert in CONVERSIONS.values())


def test_a_classifier_of_another_class_is_not_cut():
    model = network('condensenetv2')
    subclass(model.classifier)
    with pytest.raises(TypeError, match='classifier'):
        condense(model, classifier_keep=0.5)


class Unsteady(nn.Module):
    """Computes something else every time, which no conversion can follow."""

    def forward(self, x):
        return x + torch.rand(x.size(0), x.size(1), 1, 1)


def test_lower_compares_before_it_returns():
    model = nn.Sequential(LearnedGroupConv(16, 16, groups=4, factor=2), Unsteady())
    finished(model)
    with pytest.raises(VerificationError, match='verify=False'):
        lower(model, (16, 8, 8))
    assert lower(model, (16, 8, 8), verify=False)


@pytest.mark.parametrize('rows', [[0, 1, 2, 3], [0, 0, 1, 2]])
def test_rows_of_a_group_for_one_channel_are_summed_or_refused(rows):
    graph = Graph.of(4)
    conv = graph.add(Conv(torch.randn(4, 4, 1, 1, dtype=torch.float64)), graph.output)
    graph.output = graph.add(ScatterSum(torch.tensor(rows), 4), conv)
    if rows[0] != rows[1]:
        assert compile_graph(graph)
    else:
        with pytest.raises(UnsupportedError):
            compile_graph(graph)
