"""What timm's own tests ask of every model, asked of every variant in both forms.

The quick run asks it of the smallest variants of each family, and of all variants what a build or a single pass shows.
"""

import re
from copy import deepcopy

import pytest
import timm
import torch
from timm.models import FeatureGraphNet, FeatureInfo, group_parameters
from torch import nn

from cnv2_plugin.archs import VARIANTS, CondenseNetArch
from cnv2_plugin.layers import GroupSparseConv2d, SparseFeatureReactivation

from ..helpers import randomize_norms

CUSTOM = ['condensenetv2', 'condensenet', 'shufflenetv2', 'sfr_shufflenetv2']
FORMS = ['training', 'deployed']
QUICK = [
    ('condensenetv2_a', 'training'),
    ('condensenetv2_a', 'deployed'),
    ('condensenet_50_cifar', 'deployed'),
    ('sfr_shufflenetv2_x1_0', 'training'),
    ('sfr_shufflenetv2_x1_0', 'deployed'),
    ('shufflenetv2_x0_5', 'training'),
]
EVERY_FORM = [
    pytest.param(name, form, marks=() if form == 'training' or (name, form) in QUICK else pytest.mark.slow)
    for name in VARIANTS
    for form in FORMS
]


def create(name: str, form: str = 'training', **kwargs) -> nn.Module:
    kwargs = {**kwargs, 'deploy': True} if form == 'deployed' else kwargs
    return timm.create_model(name, **kwargs)


def images(model: nn.Module, batch: int = 2, channels: int = 3) -> torch.Tensor:
    size = min(64, model.default_cfg['input_size'][-1])
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(
    scope='module',
    params=[
        pytest.param((name, form), id=f'{name}-{form}', marks=() if (name, form) in QUICK else pytest.mark.slow)
        for name in VARIANTS
        for form in FORMS
        if form == 'training' or not name.startswith('shufflenet')  # without sparse layers the two forms are one
    ],
)
def named(request):
    name, form = request.param
    model = randomize_norms(create(name, form)).eval()
    return name, form, model


@pytest.fixture
def model(named):
    return deepcopy(named[2])


ONE_OF_EACH_CODE = [
    (name, form)
    for name in ('condensenetv2_a', 'condensenetv2_110_cifar', 'condensenet_74_g4', 'condensenet_74_g8',
                 'condensenet_50_cifar', 'sfr_shufflenetv2_x1_0', 'shufflenetv2_x0_5')
    for form in FORMS
    if form == 'training' or not name.startswith('shufflenet')
]  # fmt: skip
"""What compilers see: the others have more of the same layers or wider ones."""


@pytest.fixture(
    params=[
        pytest.param(case, id='-'.join(case), marks=() if case in QUICK else pytest.mark.slow)
        for case in ONE_OF_EACH_CODE
    ]
)
def compiled(request):
    return randomize_norms(create(*request.param)).eval()


@pytest.mark.parametrize('name,form', EVERY_FORM)
def test_forward(name, form):
    model = randomize_norms(create(name, form)).eval()
    with torch.no_grad():
        logits = model(images(model))
    assert logits.shape == (2, model.default_cfg['num_classes'])
    assert torch.isfinite(logits).all()


def test_every_parameter_gets_a_gradient(named):
    name, form, _ = named
    model = create(name, form, num_classes=42).train()
    logits = model(images(model))
    logits.square().mean().backward()
    assert logits.shape == (2, 42)
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', VARIANTS)
def test_default_cfg_is_complete(name):
    model = create(name, device='meta')
    config, variant, keys = model.default_cfg, VARIANTS[name], model.state_dict()
    assert config['first_conv'] + '.weight' in keys
    assert isinstance(model.get_submodule(config['first_conv']), nn.Conv2d)
    assert model.get_submodule(config['first_conv']).in_channels == 3
    assert config['classifier'] + '.weight' in keys
    assert model.get_classifier() is model.get_submodule(config['classifier'])
    assert config['architecture'] == name
    assert (config['num_classes'], config['input_size']) == (variant.num_classes, variant.input_size)
    assert (config['crop_pct'], config['interpolation']) == (variant.crop_pct, variant.interpolation)
    assert (config['mean'], config['std']) == variant.stats
    assert config['url'] == variant.url
    size = config['input_size'][1:]
    assert config['pool_size'] == tuple(s // model.feature_info[-1]['reduction'] for s in size)


def test_head_can_be_taken_off(model):
    x = images(model)
    size = x.shape[-1] // model.feature_info[-1]['reduction']
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, size, size)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
        assert torch.equal(model.classifier(pre_logits), model(x))
        assert torch.equal(model.forward_head(features), model(x))
        model.reset_classifier(0)
        assert torch.equal(model(x), pre_logits)
        assert model.num_classes == 0
        model.reset_classifier(0, '')
        assert model(x).shape == (2, model.head_hidden_size, size, size)
        model.reset_classifier(7, 'avg')
        assert model(x).shape == (2, 7)


def test_head_is_built_without_classifier(named):
    name, form, _ = named
    model = create(name, form, num_classes=0).eval()
    with torch.no_grad():
        assert model(images(model)).shape == (2, model.head_hidden_size)
        model = create(name, form, num_classes=0, global_pool='').eval()
        assert model(images(model)).ndim == 4


@pytest.mark.parametrize('pool', ['max', 'avgmax'])
def test_other_poolings(named, pool):
    name, form, _ = named
    model = create(name, form, global_pool=pool).eval()
    with torch.no_grad():
        assert model(images(model)).shape == (2, model.num_classes)


@pytest.mark.parametrize('channels', [1, 4])
def test_in_chans(named, channels):
    name, form, _ = named
    model = create(name, form, in_chans=channels, drop_rate=0.1).eval()
    assert model.in_chans == channels
    with torch.no_grad():
        assert model(images(model, channels=channels)).shape == (2, model.num_classes)


def test_features_only(named, model):
    name, form, _ = named
    features = create(name, form, features_only=True).eval()
    channels, reductions = features.feature_info.channels(), features.feature_info.reduction()
    assert len(channels) == len(model.feature_info) >= len(model.stages) >= 3
    x = images(model)
    with torch.no_grad():
        outputs = features(x)
    assert [o.shape for o in outputs] == [
        (2, c, x.shape[-1] // r, x.shape[-1] // r) for c, r in zip(channels, reductions)
    ]
    some = create(name, form, features_only=True, out_indices=(0, 2)).eval()
    assert some.feature_info.channels() == [channels[0], channels[2]]
    assert len(some(x)) == 2


def _flat(key: str) -> str:
    """A key as timm's feature list flattens sequential containers."""
    return re.sub(r'^(stages|stem)\.', r'\1_', key)


def test_features_are_the_stages_outputs(named, model):
    name, form, _ = named
    x = images(model)
    features = create(name, form, features_only=True).eval()
    names = set(features.state_dict())
    state = {_flat(key) if _flat(key) in names else key: value for key, value in model.state_dict().items()}
    loaded = features.load_state_dict(state, strict=False)
    assert not loaded.missing_keys
    with torch.no_grad():
        for a, b in zip(features(x), model.forward_intermediates(x, intermediates_only=True)):
            assert torch.equal(a, b)


def test_forward_intermediates(model):
    x = images(model)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    with torch.no_grad():
        output, intermediates = model.forward_intermediates(x)
        assert torch.equal(output, model.forward_features(x))
        assert [i.shape[1] for i in intermediates] == info.channels()
        assert [x.shape[-1] // i.shape[-1] for i in intermediates] == info.reduction()
        stopped = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
        assert len(stopped) == 1 and torch.equal(stopped[0], intermediates[1])
        last = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        assert torch.equal(last, output if model.final_is_norm else intermediates[-1])
        model.set_grad_checkpointing()
        again, _ = model.forward_intermediates(x)
        assert torch.equal(again, output)


def test_prune_intermediate_layers(model):
    x = images(model)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
        whole = deepcopy(model)
        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        assert model.feature_info[1]['module'] == f'stages.{len(model.stages) - 1}'
        final, intermediates = model.forward_intermediates(x, indices=[0, 1])
        assert all(torch.equal(a, b) for a, b in zip(intermediates, expected))
        assert final.shape[1] == model.num_features == model.feature_info[1]['num_chs']
        assert torch.equal(model(x), expected[1])
        whole.prune_intermediate_layers(1, prune_norm=True)
        assert whole(x).shape[1] == whole.num_features == whole.feature_info[-1]['num_chs']


def test_gradients_are_the_same_with_checkpointing(named):
    name, form, _ = named
    model = create(name, form).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = images(model)
    grads = []
    state = deepcopy(model.state_dict())
    for enable in (False, True):
        model.load_state_dict(state)
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        grads.append(model.get_submodule(model.first_conv).weight.grad.clone())
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('coarse', [True, False])
def test_group_matcher_covers_every_parameter(model, coarse):
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    layers = len(model.stages) if coarse else sum(len(stage.layers) for stage in model.stages)
    assert len(groups) == layers + 2
    ids = {name: group for group, members in groups.items() for name in members}
    assert ids[f'{model.first_conv}.weight'] == 0
    assert ids['classifier.weight'] == max(groups)
    assert model.no_weight_decay() == set()


def test_layer_wise_learning_rates(named, model):
    from timm.optim import create_optimizer_v2

    optimizer = create_optimizer_v2(model, 'sgd', lr=0.1, layer_decay=0.75)
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_parts_are_a_chain_that_computes_the_logits(model):
    names, parts = zip(*model.parts())
    assert names[0] == 'stem' and [n for n in names if 'stages' in n] == [
        f'stages.{i}' for i in range(len(model.stages))
    ]
    assert all(model.get_submodule(name) is part for name, part in model.parts())
    x = images(model)
    with torch.no_grad():
        assert torch.equal(nn.Sequential(*parts)(x), model(x))


def test_torchscript(compiled):
    model = compiled
    x = images(model)
    scripted = torch.jit.script(model)
    with torch.no_grad():
        assert torch.equal(scripted(x), model(x))


def test_fx_graphs_are_bit_exact(compiled):
    model = compiled
    x = images(model)
    with torch.no_grad():
        graph = torch.fx.symbolic_trace(model)
        assert torch.equal(graph(x), model(x))
        features = FeatureGraphNet(deepcopy(model), out_indices=(len(model.feature_info) - 1,))
        assert torch.equal(features(x)[0], model.forward_intermediates(x, indices=1, intermediates_only=True)[0])


def test_device_and_dtype_keywords(named):
    name, form, _ = named
    model = create(name, form, dtype=torch.float64).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    meta = create(name, form, device='meta')
    assert {p.device.type for p in meta.parameters()} | {b.device.type for b in meta.buffers()} == {'meta'}
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in meta.state_dict().items()} == shapes


def test_strict_loading(named, model):
    name, form, _ = named
    other = create(name, form).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    x = images(model)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_each_form_refuses_the_other(named, model):
    name, form, _ = named
    if not any(isinstance(m, GroupSparseConv2d) for m in model.modules()):
        assert create(name, 'deployed').state_dict().keys() == model.state_dict().keys()
        return
    other = create(name, 'training' if form == 'deployed' else 'deployed')
    with pytest.raises(RuntimeError, match='deploy='):
        other.load_state_dict(model.state_dict())


@pytest.mark.parametrize('name', CUSTOM)
def test_custom_entry_points_take_an_arch(name):
    if isinstance(VARIANTS.get(name, create(name)).arch, CondenseNetArch):
        arch = dict(layers=[1, 2], growth=[8, 16], groups_1x1=4, groups_3x3=2, condense_factor=3, stem_stride=1)
    else:
        arch = dict(channels=[16, 32], repeats=[2, 1], stem_width=8, final_width=40)
    model = timm.create_model(name, arch=arch, num_classes=5, in_chans=2).eval()
    assert model(torch.randn(1, 2, 32, 32)).shape == (1, 5)
    assert model.arch.num_stages == 2
    assert timm.create_model(name, arch=model.arch, num_classes=5).arch == model.arch
    features = timm.create_model(name, arch=arch, features_only=True)
    assert len(features(torch.randn(1, 3, 32, 32))) == len(model.feature_info) >= 2


def test_custom_entry_points_keep_their_family():
    shape = dict(layers=[1], growth=[8])
    assert not any('sfr' in key for key in timm.create_model('condensenet', arch=shape).state_dict())
    assert any('sfr' in key for key in timm.create_model('condensenetv2', arch=shape).state_dict())
    with pytest.raises(ValueError, match='condensenet is made with groups_sfr=0'):
        timm.create_model('condensenet', arch=dict(shape, groups_sfr=8))
    with pytest.raises(ValueError, match='with_sfr=False'):
        timm.create_model('shufflenetv2', arch=dict(channels=[16], repeats=[2], with_sfr=True))
    with pytest.raises(ValueError, match='unknown fields width'):
        timm.create_model('condensenetv2', arch=dict(shape, width=3))
    with pytest.raises(TypeError, match='arch is a str'):
        timm.create_model('condensenetv2', arch='a')


def test_all_names_of_the_contract_are_registered():
    assert set(VARIANTS) | set(CUSTOM) <= set(timm.list_models())
    assert timm.list_models('condensenet*', pretrained=True) == ['condensenetv2_c']


@pytest.mark.parametrize('name', ['condensenetv2_a', 'sfr_shufflenetv2_x0_5'])
def test_reactivation_that_starts_at_zero_changes_nothing_and_learns(name):
    torch.manual_seed(0)
    papers = create(name, num_classes=5)
    torch.manual_seed(0)
    model = create(name, num_classes=5, zero_init_sfr=True)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseFeatureReactivation)}
    changed = {f'{n}.conv.weight' for n in layers}
    for key, value in papers.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]) == (key not in changed)
    x = images(model)
    before = model.eval()(x)
    hooks = [layer.register_forward_hook(lambda *given: torch.zeros_like(given[-1])) for layer in layers.values()]
    assert hooks and torch.equal(model(x), before)
    for hook in hooks:
        hook.remove()
    model.train()(x).square().sum().backward()
    assert all(layer.conv.weight.grad.any() for layer in layers.values())
