"""A model is an ``nn.Module`` like any other: hooks, copies, tracers, counters and other libraries take it as it is."""

import copy
import io
import pickle

import pytest
import timm
import torch
from torch import fx, nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.deploy import condense, lower
from cnv2_plugin.sparsify import pack_model

from ..helpers import finish_pruning, randomize_norms, relative_difference

SIZE = (3, 32, 32)
FAMILIES = dict(
    condensenetv2=dict(
        layers=[2, 2], growth=[8, 16], groups_1x1=4, groups_3x3=4, condense_factor=4, se_from=2, hswish_from=2,
        head_width=16,
    ),
    condensenet=dict(layers=[2, 2], growth=[8, 16], groups_1x1=4, groups_3x3=4, condense_factor=4),
    sfr_shufflenetv2=dict(channels=(16, 32, 64), repeats=(2, 2, 2), stem_width=8, final_width=32),
)  # fmt: skip
FORMS = ['masked', 'packed', 'condensed', 'lowered', pytest.param('native', marks=pytest.mark.needs('kernels'))]


def form_of(family: str, form: str) -> nn.Module:
    torch.manual_seed(0)
    model = finish_pruning(randomize_norms(timm.create_model(family, arch=FAMILIES[family], num_classes=5))).eval()
    if form == 'packed':
        pack_model(model)
    if form in ('condensed', 'lowered', 'native'):
        model = condense(model)
    return (
        model
        if form in ('masked', 'packed', 'condensed')
        else lower(model, SIZE, 'onnxruntime' if form == 'lowered' else form)
    )


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *SIZE, generator=torch.Generator().manual_seed(1))


def saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def called_with_other_tensors(model: nn.Module):
    state = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return lambda x: torch.func.functional_call(model, state, (x,))


COPIES = {
    'deepcopy': copy.deepcopy,
    'pickle': lambda model: pickle.loads(pickle.dumps(model)),
    'torch.save': saved_whole,
    'functional_call': called_with_other_tensors,
    'symbolic_trace': fx.symbolic_trace,
}


@torch.no_grad()
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('family', FAMILIES)
def test_copies_files_and_traces_compute_the_same(family, form):
    model, x = form_of(family, form), images()
    expected = model(x)
    for made, make in COPIES.items():
        assert relative_difference(make(model)(x), expected) < 1e-5, made


@torch.no_grad()
@pytest.mark.parametrize('family', FAMILIES)
def test_what_was_traced_takes_other_sizes_and_still_pools_in_bands(family):
    model = form_of(family, 'lowered')
    traced, x = fx.symbolic_trace(model), torch.randn(1, 3, 48, 40)
    assert relative_difference(traced(x), model(x)) < 1e-5


# --- hooks -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize('place', ['model', 'stem'])
@pytest.mark.parametrize('form', FORMS)
def test_hooks_that_convert_images_run_before_they_are_judged(form, place):
    model = form_of('condensenetv2', form)
    module = model if place == 'model' or form == 'native' else model.stem
    whole = (images() * 50 + 128).clamp(0, 255).to(torch.uint8)
    expected = model(whole.float() / 255)
    with pytest.raises(ValueError, match='uint8'):
        model(whole)
    module.register_forward_pre_hook(lambda module, given: (given[0].float() / 255,))
    assert relative_difference(model(whole), expected) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize('form', ['masked', 'packed', 'condensed'])
@pytest.mark.parametrize('family', FAMILIES)
def test_casts_in_front_of_modules_run_as_mixed_precision_of_fsdp_has_them(family, form):
    """Weights in 16 bits, and inputs cast in front of the model, of its parts or of every module; images in 32 bits."""
    model, x = form_of(family, form), images()
    expected = model(x)
    for is_cast in (lambda name, module: not name, lambda name, module: name.count('.') == 0 and name,
                    lambda name, module: not list(module.children())):  # fmt: skip
        cast = copy.deepcopy(model).to(torch.bfloat16)
        for name, module in cast.named_modules():
            if is_cast(name, module):
                module.register_forward_pre_hook(
                    lambda module, given: tuple(x.to(torch.bfloat16) if x.is_floating_point() else x for x in given)
                )
        actual = cast(x)
        assert actual.dtype == torch.bfloat16 and relative_difference(actual.float(), expected) < 0.05


@pytest.mark.parametrize('family', FAMILIES)
def test_the_stem_may_be_replaced(family):
    model = form_of(family, 'masked')
    width = model.stage_channels[0] if family == 'sfr_shufflenetv2' else model.stem.out_channels
    width = FAMILIES[family].get('stem_width', width)

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(3, width)

        def forward(self, x):
            return self.project(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    model.stem = Patches()
    assert model(images()).shape == (2, 5)
    model.stem = nn.Conv2d(3, width, 1)
    assert model(torch.randn(1, 3, 2, 2)).shape == (1, 5), 'a stem that halves nothing takes smaller images'
    model.stem = nn.Sequential(nn.Upsample(scale_factor=16), nn.Conv2d(3, width, 3, 2, 1))
    assert model(torch.randn(1, 3, 2, 2)).shape == (1, 5)


@pytest.mark.parametrize('family', ['condensenetv2', 'condensenet'])
def test_condensenets_refuse_other_strides_in_a_sentence(family):
    with pytest.raises(ValueError, match='output_stride is 16.*32.*out_indices'):
        timm.create_model(family, arch=FAMILIES[family], output_stride=16, features_only=True)
    assert timm.create_model(family, arch=FAMILIES[family], output_stride=32)


@torch.no_grad()
def test_weights_may_be_elsewhere_until_they_are_used():
    accelerate = pytest.importorskip('accelerate')
    model, x = form_of('condensenetv2', 'condensed'), images()
    expected = model(x)
    offloaded = accelerate.cpu_offload(model, torch.device('cpu'))
    assert offloaded.stem.weight.is_meta and torch.equal(offloaded(x), expected)


def test_a_compiled_graph_does_not_pay_for_the_check():
    model = form_of('condensenetv2', 'condensed')
    program = torch.export.export(model, (images(),))
    assert not any('assert' in str(node.target) for node in program.graph.nodes)


# --- counters --------------------------------------------------------------------------------------------------------

BESIDES = (nn.BatchNorm2d, nn.ReLU, nn.Hardswish, nn.Sigmoid, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d)
"""What some tools count as operations and others not."""


def by_thop(model: nn.Module) -> float:
    ignored = dict.fromkeys(BESIDES, lambda module, x, y: None)
    return pytest.importorskip('thop').profile(model, (images(1),), custom_ops=ignored, verbose=False)[0]


def by_ptflops(model: nn.Module) -> float:
    ptflops = pytest.importorskip('ptflops')

    def count(*ignored: type) -> float:
        options = dict(as_strings=False, print_per_layer_stat=False, verbose=False, ignore_modules=ignored)
        return ptflops.get_model_complexity_info(copy.deepcopy(model), SIZE, backend='pytorch', **options)[0]

    return count() - count(nn.Conv2d, nn.Linear)


def by_operator(analysis) -> float:
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return sum(analysis.by_operator()[name] for name in ('conv', 'linear'))


def by_fvcore(model: nn.Module) -> float:
    return by_operator(pytest.importorskip('fvcore.nn').FlopCountAnalysis(model, images(1)))


def by_mmengine(model: nn.Module) -> float:
    return by_operator(pytest.importorskip('mmengine.analysis').FlopAnalyzer(model, images(1)))


def by_torchinfo(model: nn.Module) -> float:
    torchinfo = pytest.importorskip('torchinfo')
    listed = torchinfo.summary(model, input_data=images(1), verbose=0).summary_list
    return sum(layer.macs for layer in listed if layer.is_leaf_layer and not isinstance(layer.module, BESIDES))


@pytest.mark.parametrize('count', [by_thop, by_ptflops, by_fvcore, by_mmengine, by_torchinfo])
@pytest.mark.parametrize('built', [False, True], ids=['condensed', 'built condensed'])
def test_counters_of_others_know_the_condensed_form(count, built):
    model = form_of('condensenetv2', 'condensed')
    if built:
        model = timm.create_model('condensenetv2', arch=FAMILIES['condensenetv2'], num_classes=5, deploy=True).eval()
    assert {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    assert count(copy.deepcopy(model)) == pytest.approx(count_cost(model, SIZE).mult_adds, rel=0.01)


@pytest.mark.parametrize('family', FAMILIES)
def test_torchinfo_counts_the_masked_form(family):
    model = form_of(family, 'masked')
    assert by_torchinfo(model) == pytest.approx(count_cost(model, SIZE).mult_adds, rel=0.01)


# --- arguments of timm's own models ----------------------------------------------------------------------------------


@pytest.mark.parametrize('family', FAMILIES)
def test_layers_are_named_as_for_timm_s_models(family):
    options = dict(arch=FAMILIES[family], num_classes=5)
    named = timm.create_model(family, act_layer='silu', norm_layer='batchnorm2d', **options)
    given = timm.create_model(family, act_layer=timm.layers.get_act_layer('silu'), norm_layer=nn.BatchNorm2d, **options)
    assert str(named) == str(given) and 'SiLU' in str(named) or 'Swish' in str(named)
    for option in ('act_layer', 'norm_layer'):
        with pytest.raises(ValueError, match=f'{option}.*sillu'):
            timm.create_model(family, **{option: 'sillu'}, **options)


@pytest.mark.parametrize('stride', [8, 16, 32])
@pytest.mark.parametrize('name', ['sfr_shufflenetv2_x0_5', 'shufflenetv2_x0_5'])
def test_features_of_a_smaller_stride(name, stride):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, output_stride=stride).eval()
    reductions = [min(r, stride) for r in (4, 8, 16, 32)]
    assert model.feature_info.reduction() == reductions
    assert [64 // features.shape[-1] for features in model(torch.randn(1, 3, 64, 64))] == reductions
    plain = timm.create_model(name, features_only=True)
    plain.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match='output_stride is 12'):
        timm.create_model(name, output_stride=12)


@torch.no_grad()
def test_a_dilated_network_reads_what_lies_as_far_apart():
    """Where all strides are taken out of a stage, every other pixel of it is what the strided stage computes."""
    torch.manual_seed(0)
    options = dict(arch=FAMILIES['sfr_shufflenetv2'], num_classes=0, global_pool='')
    strided = finish_pruning(randomize_norms(timm.create_model('sfr_shufflenetv2', **options))).eval()
    dilated = timm.create_model('sfr_shufflenetv2', output_stride=8, **options).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 128, 128)
    wide, narrow = dilated(x), strided(x)
    assert wide.shape[-1] == 4 * narrow.shape[-1]
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert relative_difference(wide[..., ::4, ::4][inner], narrow[inner]) < 1e-4
    assert relative_difference(condense(dilated)(x), wide) < 1e-5
    assert relative_difference(lower(condense(dilated), (3, 128, 128))(x), wide) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ('name', 'head', 'stride'),
    [
        ('sfr_shufflenetv2_x0_5', 'Unet', 32),
        ('shufflenetv2_x0_5', 'DeepLabV3Plus', 16),
        ('condensenetv2_a', 'Unet', 32),
    ],
)
def test_encoders_of_segmentation_models(name, head, stride):
    smp = pytest.importorskip('segmentation_models_pytorch')
    model = getattr(smp, head)(f'tu-{name}', encoder_weights=None, classes=3).eval()
    assert model.encoder.output_stride == stride
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)
