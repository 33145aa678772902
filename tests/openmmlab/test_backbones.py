"""Backbones: what mmpretrain and mmdet expect of them."""

import pytest
import torch
from mmengine.registry import HOOKS, MODELS, DefaultScope
from torch import nn

from cnv2_plugin.archs import VARIANTS
from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import GroupSparseConv2d, SparseFeatureReactivation
from cnv2_plugin.toolkits.openmmlab import CondenseNet, CondenseNetV2, SFRShuffleNetV2
from tests.helpers import finish_pruning, randomize_norms, relative_difference

from .stand_ins import ARCH

THREE = {**ARCH, 'layers': (1, 2, 1), 'growth': (8, 12, 8)}
SHUFFLE = dict(channels=(16, 32, 40), repeats=(2, 3, 2), stem_width=8, final_width=48)


def small_backbones(**options):
    """One small backbone of each class."""
    v1 = {k: v for k, v in THREE.items() if k not in ('se_from', 'hswish_from', 'head_width', 'groups_sfr')}
    return [
        CondenseNetV2(THREE, **options),
        CondenseNet(v1, **options),
        SFRShuffleNetV2(arch=SHUFFLE, **options),
    ]


NAMES = ['CondenseNetV2', 'CondenseNet', 'SFRShuffleNetV2', 'SEGlobalPooling', 'SFRFPN', 'SFRTopDown']


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
def test_bare_names_are_found_from_each_scope(scope):
    module = pytest.importorskip(scope)
    registry = __import__(f'{module.__name__}.registry', fromlist=['MODELS', 'HOOKS'])
    assert not set(NAMES) & set(registry.MODELS.module_dict)
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(dict(type='CondenseNetV2', arch='a', out_indices=(2, 3, 4)))
        assert isinstance(registry.MODELS.build(dict(type='CondenseNet', arch='74-g8')), CondenseNet)
        assert isinstance(registry.HOOKS.build(dict(type='SwitchToDeployHook')), HOOKS.get('SwitchToDeployHook'))
        neck = dict(type='SFRFPN', in_channels=backbone.out_channels, out_channels=16, num_outs=5)
        assert len(MODELS.build(neck)(backbone(torch.rand(1, 3, 64, 64)))) == 5


@pytest.mark.parametrize('name', [n for n in VARIANTS if not n.startswith('shufflenet')])
def test_every_variant_builds_by_its_key_with_five_strides(name):
    variant = VARIANTS[name]
    key = 'widen_factor' if variant.family == 'SFRShuffleNetV2' else 'arch'
    backbone = MODELS.build({'type': variant.family, key: variant.key, 'out_indices': (0, 1, 2)}).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        outs = backbone(x)
    assert [out.shape[1] for out in outs] == backbone.out_channels
    assert [64 // out.shape[2] for out in outs] == backbone.out_strides
    if variant.input_size[1] == 224 and variant.family != 'SFRShuffleNetV2':
        assert backbone.stage_strides == [2, 4, 8, 16, 32]


def test_outputs_are_a_tuple_and_only_the_last_is_normalised():
    backbone = CondenseNetV2(THREE, out_indices=(0, 1, 2)).eval()
    raw = []
    for stage in backbone.stages:
        stage.register_forward_hook(lambda module, args, out: raw.append(out))
    outs = backbone(torch.rand(2, 3, 32, 32))
    assert isinstance(outs, tuple)
    assert torch.equal(outs[0], raw[0]) and torch.equal(outs[1], raw[1])
    assert torch.equal(outs[2], backbone.norm(raw[2]))


def test_negative_and_single_indices_choose_the_same_stage():
    for options in (dict(out_indices=-1), dict(out_indices=2), dict(out_indices=[-1])):
        assert CondenseNetV2(THREE, **options).out_indices == (2,)
    assert SFRShuffleNetV2(arch=SHUFFLE).out_indices == (3,)


@pytest.mark.parametrize('indices', [(0,), (0, 1), (1,)])
def test_every_parameter_gets_a_gradient_for_any_outputs(indices):
    for backbone in small_backbones(out_indices=indices, out_norm=True):
        sum(out.square().sum() for out in backbone(torch.rand(2, 3, 32, 32))).backward()
        lacking = [name for name, p in backbone.named_parameters() if p.grad is None]
        assert not lacking


def test_out_norm_adds_normalisation_with_keys_of_its_own():
    plain, normed = (
        CondenseNetV2(THREE, out_indices=(0, 1, 2)),
        CondenseNetV2(THREE, out_indices=(0, 1, 2), out_norm=True),
    )
    extra = set(normed.state_dict()) - set(plain.state_dict())
    assert extra and all(key.startswith(('out_norms.0.', 'out_norms.1.')) for key in extra)
    assert set(plain.state_dict()) < set(normed.state_dict())
    outs = normed(torch.rand(2, 3, 32, 32))
    assert all(bool((out >= 0).all()) for out in outs)
    assert outs[0].mean((0, 2, 3)).std() < plain(torch.rand(2, 3, 32, 32))[0].mean((0, 2, 3)).std()


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3])
def test_frozen_stages_get_no_gradient_and_stay_in_eval(frozen):
    for backbone in small_backbones(frozen_stages=frozen):
        assert backbone.train() is backbone
        before = {k: v.clone() for k, v in backbone.state_dict().items()}
        out = backbone(torch.rand(2, 3, 32, 32))[-1]
        if frozen < 3:
            out.square().sum().backward()
        parts = {'stem': backbone.stem, **{str(i): stage for i, stage in enumerate(backbone.stages)}}
        expected = ['stem', '0', '1', '2'][: frozen + 1]
        for name, part in parts.items():
            is_frozen = name in expected
            assert part.training != is_frozen
            assert all(p.requires_grad != is_frozen and (p.grad is None) == is_frozen for p in part.parameters())
        if frozen == 3:
            assert all(not p.requires_grad for p in backbone.parameters())
        after = backbone.state_dict()
        frozen_prefixes = tuple('stem.' if name == 'stem' else f'stages.{name}.' for name in expected)
        changed = [k for k in before if not torch.equal(before[k], after[k])]
        assert not [k for k in changed if k.startswith(frozen_prefixes or ('-',))]
        assert frozen == 3 or any('running_mean' in k for k in changed)


def test_norm_eval_keeps_statistics():
    for backbone in small_backbones(norm_eval=True):
        backbone.train()
        norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and not any(m.training for m in norms)
        assert backbone.stages.training and all(m.weight.requires_grad for m in norms)


def test_checkpointing_gives_the_same_gradients_and_skips_frozen_inputs():
    for plain, saving in zip(small_backbones(), small_backbones(with_cp=True)):
        saving.load_state_dict(plain.state_dict())
        x = torch.rand(2, 3, 32, 32)
        for model in (plain, saving):
            model(x)[-1].square().sum().backward()
        for a, b in zip(plain.parameters(), saving.parameters()):
            assert torch.equal(a.grad, b.grad)
        with torch.no_grad():
            assert saving(x)[-1].grad_fn is None


def test_act_cfg_replaces_every_activation():
    for backbone in small_backbones(act_cfg=dict(type='GELU')):
        kinds = {type(m) for m in backbone.modules() if isinstance(m, (nn.ReLU, nn.Hardswish, nn.GELU))}
        own = [m for name, m in backbone.named_modules() if isinstance(m, nn.ReLU) and '.se.' not in name]
        assert nn.GELU in kinds and nn.Hardswish not in kinds and not own


@pytest.mark.parametrize('kind', ['BN', 'SyncBN'])
def test_condensing_is_exact_and_its_weights_build_with_deploy(kind):
    options = dict(norm_cfg=dict(type=kind, eps=1e-3), out_indices=(0, 1, 2), out_norm=True)
    for i, backbone in enumerate(small_backbones(**options)):
        finish_pruning(randomize_norms(backbone)).double().eval()
        condensed = condense(backbone)
        x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        for a, b in zip(condensed(x), backbone(x)):
            assert relative_difference(a, b) < 1e-12
        again = small_backbones(deploy=True, **options)[i].double().eval()
        again.load_state_dict(condensed.state_dict())
        assert torch.equal(again(x)[-1], condensed(x)[-1])
        gathered = [
            m.norm for m in condensed.modules() if isinstance(m, GroupSparseConv2d) and m.grouped_side == 'outputs'
        ]
        assert all(norm.eps == 1e-3 for norm in gathered)


def test_requires_grad_of_norm_cfg_reaches_every_norm():
    backbone = CondenseNetV2(THREE, norm_cfg=dict(type='BN', requires_grad=False))
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(p.requires_grad for m in norms for p in m.parameters())


def test_init_cfg_of_mmengine_is_applied():
    backbone = CondenseNetV2(THREE, init_cfg=dict(type='Constant', layer='Conv2d', val=0.25))
    backbone.init_weights()
    assert bool((backbone.stem.weight == 0.25).all())


@pytest.mark.parametrize('cfg', [dict(type='CondenseNetV2', arch=THREE), dict(type='SFRShuffleNetV2', arch=SHUFFLE)])
def test_reactivation_starts_at_zero_where_the_config_says_so(cfg):
    backbone = MODELS.build(dict(cfg, zero_init_sfr=True))
    backbone.init_weights()
    layers = [module for module in backbone.modules() if isinstance(module, SparseFeatureReactivation)]
    assert layers and not any(layer.conv.weight.any() for layer in layers)


def test_switch_to_deploy_is_idempotent():
    backbone = finish_pruning(CondenseNetV2(THREE))
    backbone.switch_to_deploy()
    keys = list(backbone.state_dict())
    backbone.switch_to_deploy()
    assert backbone.deploy and keys == list(backbone.state_dict())


def test_the_other_form_is_refused_although_mmengine_loads_leniently():
    from mmengine.runner.checkpoint import load_state_dict

    training = finish_pruning(CondenseNetV2(THREE))
    deployed = CondenseNetV2(THREE, deploy=True)
    with pytest.raises(ValueError, match='training form'):
        load_state_dict(deployed, training.state_dict())
    with pytest.raises(ValueError, match='deploy=True'):
        load_state_dict(CondenseNetV2(THREE), deployed.state_dict())


@pytest.mark.parametrize(
    'options, error, words',
    [
        (dict(arch='d'), ValueError, "'a', 'b', 'c'"),
        (dict(arch=3), TypeError, 'dict'),
        (dict(arch=dict(layers=(1,))), ValueError, 'growth'),
        (dict(out_indices=(0, 7)), ValueError, 'out_indices'),
        (dict(out_indices=(2, -1)), ValueError, 'different'),
        (dict(out_indices='all'), TypeError, 'out_indices'),
        (dict(out_indices=()), ValueError, 'at least one'),
        (dict(frozen_stages=9), ValueError, 'frozen_stages'),
        (dict(frozen_stages='stem'), TypeError, 'frozen_stages'),
        (dict(norm_cfg=dict(type='GN', num_groups=2)), ValueError, 'batch normalisation'),
        (dict(norm_cfg='BN'), TypeError, 'norm_cfg'),
        (dict(act_cfg='ReLU'), TypeError, 'act_cfg'),
    ],
)
def test_bad_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        CondenseNetV2(**{'arch': THREE, **options})


def test_condensenet_and_shufflenet_refuse_what_they_have_not():
    with pytest.raises(ValueError, match='CondenseNetV2'):
        CondenseNet(THREE)
    with pytest.raises(ValueError, match='0.5, 1.0, 1.5, 2.0'):
        SFRShuffleNetV2(0.75)
    assert not any(isinstance(m, GroupSparseConv2d) for m in SFRShuffleNetV2(0.5, with_sfr=False).modules())


@pytest.mark.needs('mmpretrain')
@pytest.mark.parametrize('which', range(3))
def test_learning_rates_decay_from_the_head_to_the_stem(which):
    from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
    from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead

    backbone = small_backbones(out_indices=(1, 2), frozen_stages=0)[which]
    model = ImageClassifier(backbone, GlobalAveragePooling(), LinearClsHead(5, backbone.out_channels[-1]))
    optimizer = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1))
    made = LearningRateDecayOptimWrapperConstructor(optimizer, dict(layer_decay_rate=0.5))(model)
    rates = {group['param_name']: group['lr'] for group in made.optimizer.param_groups}
    layers = [f'backbone.stages.{i}.layers.{j}.' for i, s in enumerate(backbone.stages) for j in range(len(s.layers))]
    expected = {layer: 0.5 ** (len(layers) - i) for i, layer in enumerate(layers)} | {'head.': 1.0}
    assert not any(name.startswith('backbone.stem.') for name in rates), 'frozen'
    assert backbone.get_layer_depth('backbone.stem.weight', 'backbone.') == (0, len(layers) + 2)
    for name, rate in rates.items():
        assert rate == next((r for start, r in expected.items() if name.startswith(start)), 1.0), name
    assert len(set(rates.values())) == len(layers) + 1


def test_a_dilated_backbone_tells_its_strides():
    backbone = SFRShuffleNetV2(arch=SHUFFLE, out_indices=(0, 1, 2), output_stride=16).eval()
    assert backbone.out_strides == [8, 16, 16]
    assert [64 // maps.shape[-1] for maps in backbone(torch.randn(1, 3, 64, 64))] == [8, 16, 16]
