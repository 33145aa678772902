"""Lowered models compute the same: every implementation, every family, any image size, whatever the statistics."""

import copy

import pytest
import timm
import torch
from torch import nn

import cnv2_plugin  # noqa: F401
from cnv2_plugin.deploy import condense, lower, lowered_forms
from cnv2_plugin.graph.builder import chain_to_graph, to_graph
from cnv2_plugin.graph.implementations import IMPLEMENTATIONS, implement, layer_kind
from cnv2_plugin.graph.module import LoweredGraph
from cnv2_plugin.graph.ops import Opaque
from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv, UnfinishedPruningError
from cnv2_plugin.models.condensenet import DenseStage
from cnv2_plugin.sparsify import add_reactivation
from tests.helpers import finish_pruning, random_arch, random_seeds, randomize_norms, relative_difference

SMALL = dict(
    layers=(1, 2, 1), growth=(12, 24, 24), groups_1x1=12, groups_3x3=12, groups_sfr=4, condense_factor=5,
    sparse_factor=3, se_from=3, hswish_from=2, head_width=20,
)  # fmt: skip


def hostile(model, seed=0):
    """Finished, with random statistics of which some gammas are negative, some tiny and some zero."""
    finish_pruning(randomize_norms(model, seed))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            with torch.no_grad():
                norm.weight[::5] *= 1e-20
                norm.weight[1::7] = 0
    return model.eval()


def small(seed=0, **arch):
    return hostile(timm.create_model('condensenetv2', arch={**SMALL, **arch}, num_classes=6), seed)


def difference(model, other, *shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return relative_difference(other(x), model(x))


@pytest.mark.parametrize('seed', random_seeds(50))
def test_random_archs(seed):
    arch = random_arch(seed)
    model = hostile(timm.create_model('condensenetv2', arch=arch, num_classes=5), seed)
    lowered = lower(model, (3, 32, 32))
    assert difference(model, lowered, 2, 3, 32, 32, seed=seed) <= 1e-5


@pytest.mark.parametrize(('kind', 'form'), [(kind, form) for kind, forms in IMPLEMENTATIONS.items() for form in forms])
def test_every_form_alone(kind, form):
    model = small()
    stage = condense(model).stages[1]
    graph = to_graph(stage, model.stages[0].out_channels)
    wanted = {node.layer: form for node in graph.layers() if layer_kind(node) == kind}
    rewritten, taken = implement(graph, wanted)
    assert form in {taken[name] for name in wanted}
    lowered = LoweredGraph(rewritten)
    assert difference(model.stages[1], lowered, 2, model.stages[0].out_channels, 16, 16) <= 1e-5


@pytest.mark.parametrize('seed', range(8))
def test_any_mixture_of_forms(seed):
    generator = torch.Generator().manual_seed(seed)
    model = small(seed)
    choices = {}
    for name in lowered_forms(lower(model, (3, 32, 32))):
        kind = 'reactivate' if name.endswith('sfr') else 'select' if name.endswith('conv_1') else 'spatial'
        forms = sorted(IMPLEMENTATIONS[kind])
        choices[name] = forms[torch.randint(len(forms), (), generator=generator)]
    lowered = lower(model, (3, 32, 32), choices=choices)
    assert difference(model, lowered, 2, 3, 32, 32) <= 1e-5


def test_float64_is_exact():
    model = small().double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(lower(model, (3, 32, 32))(x), model(x)) <= 1e-12


@pytest.mark.parametrize(('size', 'batch'), [((32, 32), 1), ((33, 47), 3), ((8, 64), 2), ((40, 24), 1)])
def test_any_image_size_and_batch(size, batch):
    model = small()
    assert difference(model, lower(model, (3, 32, 32)), batch, 3, *size) <= 1e-5


@pytest.mark.parametrize(
    ('name', 'arch'),
    [
        ('condensenet', dict(layers=(2, 2), growth=(8, 16), groups_1x1=4, groups_3x3=8, condense_factor=3)),
        ('sfr_shufflenetv2', dict(channels=(32, 56), repeats=(2, 3), final_width=40)),
        ('shufflenetv2', dict(channels=(32, 56), repeats=(2, 3), final_width=40)),
    ],
)
def test_families(name, arch):
    model = hostile(timm.create_model(name, arch=arch, num_classes=5))
    lowered = lower(model, (3, 64, 64))
    assert difference(model, lowered, 1, 3, 64, 64) <= 1e-5
    assert isinstance(lowered.stages, LoweredGraph)
    assert bool(lowered_forms(lowered)) == (name != 'shufflenetv2')


def test_several_outputs():
    model = hostile(timm.create_model('condensenetv2', arch=SMALL, features_only=True, out_indices=(0, 2)))
    lowered, x = lower(model, (3, 32, 32)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for actual, expected in zip(lowered(x), model(x)):
            assert relative_difference(actual, expected) <= 1e-5


class Foreign(nn.Module):
    """A user's own network with our layers inside."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.ModuleList(
            [
                GroupSparseConv2d(12, 24, groups=4, factor=3, bias=True, stride=2),
                GroupSparseConv2d(24, 18, groups=6, factor=4, grouped_side='inputs'),
                LearnedGroupConv(18, 16, groups=4, factor=3, act_layer=nn.SiLU),
            ]
        )
        self.unused = GroupSparseConv2d(4, 4)

    def forward(self, x):
        x = self.first(x)
        for layer in self.body:
            x = layer(x).relu()
        return x


def test_layers_of_foreign_models():
    model = hostile(Foreign())
    lowered = lower(model, (3, 16, 16))
    assert set(lowered_forms(lowered)) == {'body.0', 'body.1', 'body.2'}
    assert all(isinstance(layer, LoweredGraph) for layer in lowered.body)
    assert difference(model, lowered, 2, 3, 15, 20) <= 1e-5


def test_a_single_layer_is_a_model():
    layer = hostile(LearnedGroupConv(12, 8, groups=4, factor=3))
    assert difference(layer, lower(layer, (12, 8, 8)), 1, 12, 9, 9) <= 1e-5


def test_the_model_is_left_as_it_was():
    model = small()
    before = copy.deepcopy(model.state_dict())
    lower(model, (3, 32, 32))
    assert not model.deploy and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_unfinished_models_are_refused():
    with pytest.raises(UnfinishedPruningError):
        lower(timm.create_model('condensenetv2', arch=SMALL), (3, 32, 32))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(runtime='abacus'), "runtime 'abacus'"),
        (
            dict(choices={'stages.7.layers.0.sfr': 'dense'}),
            'layers that the model does not have: stages.7.layers.0.sfr',
        ),
        (dict(choices={'stages.0.layers.0.sfr': 'padded'}), "cannot have the implementation 'padded'"),
    ],
)
def test_bad_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lower(small(), (3, 32, 32), **options)


def test_inplace_activations_do_not_reach_into_shared_values():
    lowered = lower(small(), (3, 32, 32))
    assert not any(getattr(module, 'inplace', False) for module in lowered.stages.modules())


def activating_norms():
    return condense(hostile(timm.create_model('sfr_shufflenetv2_x0_5', norm_layer=timm.layers.BatchNormAct2d)))


def test_norms_that_activate_are_lowered_with_their_activation():
    model = activating_norms()
    assert difference(model, lower(model, (3, 64, 64), 'onnxruntime'), 2, 3, 64, 64) < 1e-5


@pytest.mark.needs('kernels')
def test_norms_that_activate_are_nothing_for_the_native_kernels():
    with pytest.raises(ValueError, match='no part of this model'):
        lower(activating_norms(), (3, 64, 64), 'native')


def test_lowered_parts_stay_in_eval_mode():
    model = small()
    lowered = lower(model, (3, 32, 32))
    stages = lowered.stages.train()
    stages(torch.randn(4, 24, 16, 16))
    assert difference(model, lowered, 1, 3, 32, 32) <= 1e-5


def test_torch_export_and_trace():
    model = small()
    lowered, x = lower(model, (3, 32, 32)), torch.randn(2, 3, 32, 32)
    batch = torch.export.Dim('batch', min=1)
    program = torch.export.export(lowered, (x,), dynamic_shapes=({0: batch},))
    assert difference(model, program.module(), 3, 3, 32, 32) <= 1e-5
    assert difference(model, torch.jit.trace(lowered, x), 2, 3, 32, 32) <= 1e-5


def test_file_is_hardly_larger_than_the_condensed_parameters():
    model = hostile(timm.create_model('condensenetv2_a'))
    lowered = lower(model)
    parameters = sum(p.numel() for p in condense(model).parameters())
    tensors = [*lowered.parameters(), *lowered.buffers()]
    assert sum(t.numel() * t.element_size() for t in tensors) <= 1.25 * 4 * parameters


@pytest.mark.slow
@pytest.mark.parametrize('name', ['condensenetv2_a', 'condensenetv2_b', 'condensenetv2_c', 'condensenet_74_g8'])
def test_published_archs(name):
    model = hostile(timm.create_model(name))
    lowered = lower(model)
    assert difference(model, lowered, 1, 3, 224, 224) <= 1e-5
    parameters = sum(p.numel() for p in condense(model).parameters())
    assert sum(t.numel() for t in lowered.state_dict().values()) <= 1.25 * parameters


@pytest.mark.slow
@pytest.mark.needs('c++')
def test_torch_compile():
    model = small()
    compiled = torch.compile(lower(model, (3, 32, 32)))
    assert difference(model, compiled, 2, 3, 32, 32) <= 1e-5


def test_zeros_filled_in_stay_within_the_allowance():
    model = small()
    condensed = sum(p.numel() for p in condense(model).parameters())
    sizes, forms = {}, {}
    for growth in (0.0, 0.2, 10.0):
        lowered = lower(model, (3, 32, 32), max_growth=growth)
        sizes[growth] = sum(p.numel() for p in lowered.parameters()) / condensed
        forms[growth] = lowered_forms(lowered)
        assert difference(model, lowered, 2, 3, 32, 32) <= 1e-5
    assert sizes[0.2] <= 1.25 < sizes[10.0]
    assert sizes[0.0] < sizes[0.2]
    asked = {name: 'dense' for name in forms[0.0] if name.endswith('conv_1')}
    taken = lowered_forms(lower(model, (3, 32, 32), choices=asked, max_growth=0.0))
    assert {name: taken[name] for name in asked} == asked


@pytest.mark.parametrize('name', ['condensenetv2', 'condensenet_50_cifar', 'sfr_shufflenetv2_x0_5'])
@pytest.mark.parametrize('rewritten', [False, True])
def test_a_whole_classifier_is_one_graph(name, rewritten):
    arch = dict(arch=SMALL) if name == 'condensenetv2' else {}
    model = condense(hostile(timm.create_model(name, num_classes=6, **arch)), classifier_keep=0.5)
    graph, ends = chain_to_graph(model.parts(), 3)
    assert list(ends) == [part for part, _ in model.parts()] and graph.output == ends['classifier']
    assert not any(isinstance(node.op, Opaque) for node in graph.ordered())
    assert {node.layer for node in graph.layers()} == set(lowered_forms(lower(model, (3, 64, 64))))
    assert (
        graph.sizes(64, 64)[ends[model.final_attribute]] == model.forward_features(torch.zeros(1, 3, 64, 64)).shape[2:]
    )
    lowered = LoweredGraph(implement(graph, {})[0] if rewritten else graph)
    assert difference(model, lowered, 2, 3, 64, 64) <= 1e-5


def test_the_documented_import_name_stays():
    from cnv2_plugin import lowering

    assert (lowering.lower, lowering.lowered_forms) == (lower, lowered_forms)


class Renamed(DenseStage):
    pass


class Doubled(DenseStage):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize('kind', [Renamed, Doubled])
def test_subclasses_compute_what_their_forward_says(kind):
    model = small()
    names = set(lowered_forms(lower(model, (3, 32, 32))))
    for stage in model.stages:
        stage.__class__ = kind
    lowered = lower(model, (3, 32, 32))
    assert difference(model, lowered, 2, 3, 32, 32) <= 1e-5
    assert set(lowered_forms(lowered)) <= names


@pytest.mark.parametrize('name', ['shufflenetv2_x0_5', 'condensenet_50_cifar'])
def test_networks_after_surgery_are_lowered_as_they_are(name):
    model = timm.create_model(name, num_classes=5)
    add_reactivation(model, groups=4, factor=4, input_size=(3, 32, 32))
    for layer in model.sparse_layers():
        nn.init.normal_(layer.conv.weight, std=0.1)
    model = hostile(model)
    assert difference(model, lower(model, (3, 32, 32)), 1, 3, 32, 32) <= 1e-5
