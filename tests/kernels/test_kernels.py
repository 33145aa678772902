"""What the native kernels compute is what the masked form computes in float64, whatever the shapes."""

import copy
import pickle
import random

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from cnv2_plugin.graph.ir import Graph
from cnv2_plugin.graph.ops import Add, Concat, Conv, GlobalAveragePool, MaxPool, Pointwise, ScatterSum
from cnv2_plugin.kernels.compiler import compile_graph
from cnv2_plugin.kernels.native_model import NativeStages, native_program
from cnv2_plugin.kernels.operator import native_stages
from cnv2_plugin.kernels.placement import UnsupportedError
from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation
from cnv2_plugin.toolkits.timm.condensenet import CondenseNet
from tests.helpers import finish_pruning, random_arch, randomize_norms, relative_difference
from tests.kernels.cases import TINY, differs, finished, native, native_form, tiny_stages

pytestmark = pytest.mark.needs('kernels')


def published() -> list[str]:
    """Networks of this package, without those of any arch."""
    families = ('condensenet', 'condensenetv2', 'shufflenetv2', 'sfr_shufflenetv2')
    return [name for family in families for name in timm.list_models(f'{family}_*')]


@pytest.mark.parametrize(
    'name',
    ['condensenetv2_a', 'condensenetv2_b', 'condensenet_74_g4', 'condensenet_74_g8', 'condensenetv2_110_cifar',
     'condensenet_86_cifar', 'sfr_shufflenetv2_x0_5', 'sfr_shufflenetv2_x1_0', 'shufflenetv2_x0_5'],
)  # fmt: skip
def test_published_networks(name):
    size = 32 if 'cifar' in name else 67
    model = finished(name, num_classes=11)
    assert differs(native_form(model, (3, size, size)), model, torch.randn(2, 3, size, size)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(published()))
def test_every_network_at_its_size(name):
    size = 32 if 'cifar' in name else 224
    model = finished(name)
    assert differs(native_form(model, (3, size, size)), model, torch.randn(2, 3, size, size)) < 1e-5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.integers(17, 61), st.integers(17, 61), st.integers(0, 3), st.integers(1, 3))
def test_dense_stages_of_any_arch(seed, height, width, batch, threads):
    model = finished('condensenetv2', seed, arch=random_arch(seed), num_classes=5)
    form = native_form(model, (3, height, width))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(max(batch, 1), 3, height, width)
        assert differs(form, model, x) < 1e-5
        assert form(x[:0]).shape == (0, 5)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.integers(33, 90), st.integers(33, 90), st.integers(1, 3), st.booleans())
def test_shuffle_stages_of_any_arch(seed, height, width, threads, with_sfr):
    rng = random.Random(seed)
    arch = dict(
        channels=tuple(2 * rng.choice([6, 10, 16, 21]) for _ in range(3)),
        repeats=tuple(rng.randint(1, 3) for _ in range(3)), stem_width=rng.choice([5, 8]), final_width=24,
        max_groups=rng.choice([2, 3, 8]), sparse_factor=rng.choice([2, 3, 5]), with_sfr=with_sfr,
    )  # fmt: skip
    model = finished('sfr_shufflenetv2' if with_sfr else 'shufflenetv2', seed, arch=arch, num_classes=5)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert differs(native_form(model, (3, height, width)), model, torch.randn(2, 3, height, width)) < 1e-5
    finally:
        torch.set_num_threads(before)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40))
def test_layers_by_themselves(seed, height, width):
    rng = random.Random(seed)
    groups = rng.choice([1, 2, 3, 5, 8])
    one, other = groups * rng.randint(1, 9), rng.randint(1, 70)
    factor = rng.choice([1, 2, 3, 7])
    torch.manual_seed(seed)
    act = rng.choice([None, nn.Hardswish, nn.ReLU6])
    layer = rng.choice([
        lambda: LearnedGroupConv(other, one, groups, factor, act),
        lambda: SparseFeatureReactivation(one, other, groups, factor, act),
        lambda: GroupSparseConv2d(other, one, groups, factor, 'outputs', bias=True),
        lambda: GroupSparseConv2d(one, other, groups, factor, 'inputs'),
    ])()  # fmt: skip
    layer = finish_pruning(randomize_norms(layer, seed)).eval()
    x = torch.randn(2, layer.in_channels, height, width)
    with torch.no_grad():
        expected = layer.double()(x.double())
        layer.float().switch_to_deploy()
        form = native(layer, layer.in_channels)
        actual = form(x).double()
    # Terms of sums are of order 1, so where they all but cancel each other an error of float32 is left of that order.
    assert (actual - expected).abs().max() <= 3e-6 * expected.abs().max().clamp(min=1e-2)


def tiny_classifier(**options) -> nn.Module:
    return finished('condensenetv2', arch=dict(TINY, head_width=21), **{'num_classes': 5, **options})


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('size', [(32, 32), (53, 37)])
@pytest.mark.parametrize('options', [{}, dict(num_classes=0), dict(drop_rate=0.2, in_chans=1)], ids=str)
def test_a_classifier_runs_in_one_operator_and_its_parts_in_others(threads, size, options):
    model = tiny_classifier(**options)
    form, before = native_form(model, (model.in_chans, *size)), torch.get_num_threads()
    x = torch.randn(3, model.in_chans, *size)
    assert isinstance(form.global_pool.pool, NativeStages) and isinstance(form.norm, nn.Identity)
    torch.set_num_threads(threads)
    try:
        assert isinstance(form.fused, NativeStages) and differs(form, model, x) < 1e-5
        with torch.no_grad():
            features = model.forward_features(x)
            assert relative_difference(form.forward_features(x), features) < 1e-5
            hidden = model.forward_head(features, pre_logits=True)
            assert relative_difference(form.forward_head(features, pre_logits=True), hidden) < 1e-5
            assert relative_difference(form.forward_head(form.forward_features(x)), form(x)) < 1e-5
            assert form(x[:0]).shape == (0, model.num_classes or 21)
    finally:
        torch.set_num_threads(before)


def test_the_parts_of_a_classifier_save_their_weights_and_the_whole_reads_them():
    form = native_form(finished('condensenetv2', arch=dict(TINY, head_width=21)), (3, 32, 32))
    state = form.state_dict()
    assert not any(name.startswith('fused') for name in state)
    trunk, head = form.stages.weights, form.global_pool.pool.weights
    assert form.fused.weights.data_ptr() == trunk.data_ptr()
    assert head.data_ptr() - trunk.data_ptr() == 4 * trunk.numel()
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
    x = torch.randn(2, 3, 32, 32)
    for assign in (False, True):
        other = native_form(finished('condensenetv2', 1, arch=dict(TINY, head_width=21)), (3, 32, 32))
        other.load_state_dict(form.state_dict(), assign=assign)
        with torch.no_grad():
            assert relative_difference(other(x), form(x)) < 1e-5
    copied = copy.deepcopy(form)
    copied.stages.weights.zero_()
    assert not copied.fused.weights[: copied.stages.weights.numel()].any() and form.fused.weights.any()
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(form))(x), form(x))


def test_a_program_of_another_length_is_loaded():
    """As other versions of the compiler write for the same network."""
    form = native_form(tiny_classifier(), (3, 32, 32))
    state = form.state_dict()
    other = native_form(tiny_classifier(), (3, 32, 32))
    other.stages.plan = other.stages.plan[:-1]
    other.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_difference(other(x), form(x)) < 1e-5


def test_a_classifier_in_the_native_form_gets_another_last_layer_only():
    model, x = tiny_classifier(), torch.randn(2, 3, 32, 32)
    form = native_form(model, (3, 32, 32))
    form.reset_classifier(7)
    with torch.no_grad():
        assert form(x).shape == (2, 7)
        assert relative_difference(form.forward_head(form.forward_features(x)), form(x)) < 1e-5
        form.reset_classifier(0)
        hidden = model.forward_head(model.forward_features(x), pre_logits=True)
        assert relative_difference(form(x), hidden) < 1e-5
    for pool in ('', 'max'):
        with pytest.raises(ValueError, match=f"global_pool='{pool}' does not fit this native form"):
            form.reset_classifier(0, pool)
    assert form(x).shape == (2, 21)


class Normalised(CondenseNet):
    """Compares features by their direction."""

    def forward_head(self, x, pre_logits=False):
        return self.classifier(nn.functional.normalize(super().forward_head(x, pre_logits=True)))


def with_another_dropout(model):
    model.head_drop = nn.LayerNorm(21)


def with_a_listener(model):
    model.act_head.register_forward_hook(lambda *_: None)


def with_another_last_activation(model):
    model.norm[1] = nn.GELU()


def with_its_own_head(model):
    model.__class__ = Normalised


@pytest.mark.parametrize(
    'change', [with_another_dropout, with_a_listener, with_another_last_activation, with_its_own_head]
)
def test_a_classifier_that_does_more_is_computed_in_parts(change):
    model = tiny_classifier()
    change(model)
    form = native_form(model, (3, 32, 32))
    assert form.fused is None and isinstance(form.stages, NativeStages)
    assert isinstance(form.global_pool.pool, NativeStages) == (change not in (with_a_listener, with_its_own_head))
    assert differs(form, model, torch.randn(2, 3, 32, 32)) < 1e-5


@pytest.mark.parametrize('options', [dict(global_pool='max'), dict(num_classes=0, global_pool='')])
def test_other_heads_stay_as_they_are(options):
    model = finished('condensenetv2', arch=dict(TINY, head_width=21), **{'num_classes': 5, **options})
    form = native_form(model, (3, 32, 32))
    assert isinstance(form.stages, NativeStages)
    assert not any(isinstance(module, NativeStages) for module in form.global_pool.modules())
    assert differs(form, model, torch.randn(2, 3, 32, 32)) < 1e-5


def test_trunks_that_give_every_stage():
    model = finished('condensenetv2_a', features_only=True)
    form = native_form(model, (3, 64, 96))
    assert sum(isinstance(module, NativeStages) for module in form.modules()) == 5
    assert differs(form, model, torch.randn(2, 3, 64, 96)) < 1e-5


def test_storage_of_the_images_does_not_matter():
    stages, form = tiny_stages()
    x = torch.randn(2, 16, 20, 24)
    expected = form(x)
    stored = (
        x.contiguous(memory_format=torch.channels_last),
        x.flip(0).flip(0),
        torch.randn(2, 32, 20, 48)[:, ::2, :, ::2].copy_(x),
        x.repeat_interleave(2, 0)[::2],
    )
    for same in stored:
        assert torch.equal(form(same), expected)
    with torch.no_grad():
        assert relative_difference(expected, stages(x)) < 1e-5


def test_threads_do_not_change_the_result():
    model = finished('condensenetv2_a')
    form, x, before = native_form(model, (3, 96, 96)), torch.randn(3, 3, 96, 96), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(torch.cat([form(x), form(x[:1])]))
    torch.set_num_threads(before)
    assert torch.equal(results[1], results[3])
    for result in results[1:]:
        assert relative_difference(result, results[0]) < 1e-6


@pytest.mark.parametrize('threads', [63, 64, 65, 90])
def test_more_parts_than_are_told_apart_by_a_bit_each_are_all_computed(threads):
    model = finished('condensenetv2_a')
    form, x, before = native_form(model, (3, 224, 224)), torch.randn(1, 3, 224, 224), torch.get_num_threads()
    expected = form(x)
    torch.set_num_threads(threads)
    actual = form(x)
    torch.set_num_threads(before)
    assert relative_difference(actual, expected) < 1e-6


def test_nan_and_infinity_pass_through():
    stages, form = tiny_stages()
    x = torch.randn(2, 16, 20, 24)
    clean = form(x)
    x[0, 3, 4, 5] = float('nan')
    x[0, 2, 10, 11] = float('inf')
    with torch.no_grad():
        expected, actual = stages(x), form(x)
    assert torch.equal(actual.isnan(), expected.isnan()) and expected.isnan().any()
    assert torch.equal(actual[1], clean[1])


@pytest.mark.parametrize('pixel', [(0, 0), (16, 16), (16, 17), (17, 16), (17, 17)])
def test_nan_passes_through_the_largest_of_a_window(pixel):
    model = finished('sfr_shufflenetv2_x0_5', num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    form = native_form(model, (3, 64, 64))
    clean = form(x)
    x[(0, 1, *pixel)] = float('nan')
    with torch.no_grad():
        assert model(x)[0].isnan().all()
    assert form(x)[0].isnan().all() and torch.equal(form(x)[1], clean[1])


def test_a_batch_of_none_is_checked_like_any_other():
    form = tiny_stages()[1]
    assert form(torch.zeros(0, 16, 8, 8)).shape == (0, *form(torch.zeros(1, 16, 8, 8)).shape[1:])
    with pytest.raises(ValueError, match='has 15 channels'):
        form(torch.zeros(0, 15, 8, 8))


@pytest.mark.parametrize('head_width', [None, 21])
def test_compiles_and_exports_without_a_break(head_width):
    model = finished('condensenetv2', arch=dict(TINY, head_width=head_width), num_classes=5)
    form, x = native_form(model, (3, 32, 32)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = form(x)
        assert torch.equal(torch.compile(form, fullgraph=True, backend='aot_eager')(x), expected)
        batch = torch.export.Dim('batch', min=1)
        program = torch.export.export(form, (x,), dynamic_shapes=({0: batch},)).module()
        for count in (1, 2, 5):
            images = torch.randn(count, 3, 32, 32)
            assert relative_difference(program(images), form(images)) < 1e-6
    torch.library.opcheck(native_stages, (torch.randn(2, 16, 9, 7), *_arguments(tiny_stages()[1])))


def test_gradients_are_refused_in_one_sentence():
    images = torch.randn(1, 16, 8, 8, requires_grad=True)
    result = native_stages(images, *_arguments(tiny_stages()[1]))
    with pytest.raises(RuntimeError, match='have no gradients; train the model before it is lowered'):
        result.sum().backward()


def _arguments(form: NativeStages) -> tuple:
    return form.weights, form.plan, form.shape


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w, p, s: (w.double(), p, s), 'weights are torch.float64'),
        (lambda w, p, s: (w, p.long(), s), 'plan are torch.int64'),
        (lambda w, p, s: (w[:-1], p, s), 'reach beyond the'),
        (lambda w, p, s: (w, p[:-1], s), 'the program ends within'),
        (lambda w, p, s: (w, torch.cat((p, p[-1:])), s), 'words behind its last instruction'),
        (lambda w, p, s: (w, p[:0], s), 'the program ends where the mark'),
        (lambda w, p, s: (w, p.flip(0), s), 'no program of these kernels'),
        (lambda w, p, s: (w, p, [s[0] + 1, *s[1:]]), 'another shape of result'),
        (lambda w, p, s: (w, p, s[:-1]), 'another shape of result'),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    form = tiny_stages()[1]
    with pytest.raises(ValueError, match=message):
        native_stages(torch.randn(1, 16, 8, 8), *change(*_arguments(form)))


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (torch.randn(1, 15, 8, 8), 'the input has 15 channels, but the program takes 16'),
        (torch.randn(16, 8, 8), 'images are torch.float32 with 3 dimensions'),
        (torch.randn(1, 16, 8, 8).half(), 'images are torch.float16'),
        (torch.randn(1, 16, 1, 1), 'too small to be halved'),
        (torch.randn(1, 16, 0, 8), 'at least 1 x 1'),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        native_stages(images, *_arguments(tiny_stages()[1]))


def test_layers_that_the_kernels_do_not_know_stay_in_standard_operators():
    model = finished('condensenetv2', arch=TINY, num_classes=5)
    for module in model.stages[1].layers:
        module.act_2 = nn.GELU()
    model.switch_to_deploy()
    assert native_program([('', model.stages)], 16) is None
    assert native_program([('', model.stages[0])], 16) is not None


def grows_by_3x3(graph: Graph, x: int) -> int:
    return graph.add(Concat(), x, graph.add(Conv(torch.ones(2, 4, 3, 3).double(), padding=(1, 1)), x))


def largest_then_grows(graph: Graph, x: int) -> int:
    x = graph.add(
        MaxPool(3, 2, 1), graph.add(Pointwise(nn.ReLU()), graph.add(Conv(torch.ones(4, 4, 1, 1).double()), x))
    )
    return graph.add(Concat(), x, graph.add(Conv(torch.ones(2, 4, 1, 1).double()), x))


def pooled_then_grows(graph: Graph, x: int) -> int:
    x = graph.add(GlobalAveragePool(), x)
    return graph.add(Concat(), x, graph.add(Conv(torch.ones(2, 4, 1, 1).double()), x))


def adds_to_what_is_read_later(graph: Graph, x: int) -> int:
    before, added = (graph.add(Conv(torch.randn(4, 4, 1, 1).double()), x) for _ in range(2))
    added = graph.add(ScatterSum(torch.arange(4), 4), graph.add(Conv(torch.randn(4, 4, 1, 1).double()), added))
    return graph.add(Concat(), graph.add(Add(), before, added), before)


@pytest.mark.parametrize('part', [grows_by_3x3, largest_then_grows, pooled_then_grows, adds_to_what_is_read_later])
def test_what_no_program_can_place_is_left_to_standard_operators(part):
    graph = Graph.of(4)
    graph.output = part(graph, graph.output)
    with pytest.raises(UnsupportedError):
        compile_graph(graph)


def test_more_layers_need_no_more_maps():
    """What a layer computes within itself lies where the layer before had it."""
    maps = []
    for layers in ((2, 2), (2, 5)):
        form = native_form(finished('condensenetv2', arch=dict(TINY, layers=layers), num_classes=5), (3, 32, 32))
        maps.append([int(part.plan[3]) for part in form.modules() if isinstance(part, NativeStages)])
    assert maps[0] == maps[1]


def test_a_hook_around_a_part_of_the_head_still_acts():
    model = finished('condensenetv2', arch=dict(TINY, head_width=24), num_classes=5)
    model.global_pool.register_forward_hook(lambda module, inputs, output: 2 * output)
    x = torch.randn(2, 3, 32, 32)
    assert differs(native_form(model, (3, 32, 32)), model, x) <= 1e-5
