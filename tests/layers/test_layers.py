"""What users of the layers rely on: arguments, gradients, state dicts, scripting, tracing, export, errors."""

import copy
import pickle
from functools import partial

import pytest
import timm.layers
import timm.utils
import torch
from torch import nn

from cnv2_plugin.deploy import export_onnx
from cnv2_plugin.layers import (
    GroupSparseConv2d,
    LearnedGroupConv,
    SparseFeatureReactivation,
    SqueezeExcite,
    UnfinishedPruningError,
)
from tests.helpers import randomize_norms, relative_difference

pytestmark = pytest.mark.smoke

LAYERS = {
    'lgc': lambda **kw: LearnedGroupConv(12, 24, groups=4, factor=3, **kw),
    'sfr': lambda **kw: SparseFeatureReactivation(12, 21, groups=3, factor=4, **kw),
    'conv': lambda **kw: GroupSparseConv2d(12, 24, groups=4, factor=3, bias=True, **kw),
}


def finished(name, **kwargs):
    torch.manual_seed(0)
    layer = randomize_norms(LAYERS[name](**kwargs)).eval()
    layer.prune_to(layer.num_stages)
    return layer


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_attributes_of_the_contract(name):
    layer = LAYERS[name]()
    assert layer.mask.dtype == torch.bool and layer.mask.shape == layer.conv.weight.shape
    assert layer.stage.dtype == torch.int64
    assert layer.num_stages == layer.factor - 1
    assert {'mask', 'stage'} <= set(dict(layer.named_buffers()))


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_pruning_never_touches_weights_or_goes_back(name):
    layer = LAYERS[name]()
    weight = layer.conv.weight.detach().clone()
    layer.prune_to(2)
    mask = layer.mask.clone()
    layer.prune_to(1)
    layer.prune_to(0)
    assert int(layer.stage) == 2
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.conv.weight, weight)
    layer.prune_to(layer.num_stages)
    done = layer.mask.clone()
    nn.init.normal_(layer.conv.weight)
    layer.prune_to(layer.num_stages)
    assert torch.equal(layer.mask, done)


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_all_stages_at_once_equal_one_after_the_other(name):
    first = LAYERS[name]()
    second = copy.deepcopy(first)
    for stage in range(1, first.num_stages + 1):
        first.prune_to(stage)
    second.prune_to(second.num_stages)
    assert torch.equal(first.mask, second.mask)


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_masked_weights_get_no_gradient(name):
    layer = LAYERS[name]()
    layer.prune_to(1)
    layer(torch.randn(2, 12, 5, 5)).square().sum().backward()
    assert not layer.mask.all()
    assert (layer.conv.weight.grad[~layer.mask] == 0).all()
    assert (layer.conv.weight.grad[layer.mask] != 0).any()


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_deploy_has_the_keys_of_the_constructor_flag_and_is_idempotent(name):
    layer = finished(name)
    layer.switch_to_deploy()
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    conv = layer.conv
    layer.switch_to_deploy()
    assert layer.conv is conv
    built = LAYERS[name](deploy=True)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in state.items()}
    built.load_state_dict(state)
    x = torch.randn(2, 12, 5, 5)
    assert torch.equal(built.eval()(x), layer(x))


@pytest.mark.parametrize('name', ['lgc', 'sfr'])
def test_deploy_carries_every_hyperparameter(name):
    layer = LAYERS[name](eps=1e-3, momentum=0.3, drop_rate=0.2, act_layer=nn.Hardswish, dtype=torch.float64)
    layer.prune_to(layer.num_stages)
    layer.conv.weight.requires_grad_(False)
    layer.switch_to_deploy()
    assert (layer.norm.eps, layer.norm.momentum, layer.drop.p) == (1e-3, 0.3, 0.2)
    assert isinstance(layer.act, nn.Hardswish)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert not layer.conv.weight.requires_grad and layer.norm.weight.requires_grad
    assert layer.training and layer.norm.training
    assert layer.eval().norm.training is False


def test_deploy_keeps_the_mode_it_was_in():
    layer = finished('lgc')
    layer.switch_to_deploy()
    assert not any(module.training for module in layer.modules())


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_unfinished_layers_refuse_and_say_what_to_do(name):
    layer = LAYERS[name]()
    layer.prune_to(1)
    with pytest.raises(UnfinishedPruningError, match=rf'stage 1 of {layer.num_stages}.*prune_to\({layer.num_stages}\)'):
        layer.switch_to_deploy()
    assert 'mask' in layer.state_dict()


def test_timm_reparameterises_them():
    model = nn.Sequential(finished('lgc'), nn.Sequential(GroupSparseConv2d(24, 24))).eval()
    x = torch.randn(1, 12, 5, 5)
    expected = model(x)
    deployed = timm.utils.reparameterize_model(model)
    assert deployed[0].deploy and deployed[1][0].deploy
    assert relative_difference(deployed(x), expected) < 1e-5


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('name', sorted(LAYERS))
def test_scripts_and_traces_in_both_forms(name, deploy):
    layer = finished(name)
    if deploy:
        layer.switch_to_deploy()
    x = torch.randn(2, 12, 5, 6)
    expected = layer(x)
    assert torch.equal(torch.jit.script(layer)(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), expected)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), expected)


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_a_layer_has_one_state_at_a_time_and_scripts_in_each(name):
    layer, x = finished(name), torch.randn(2, 12, 5, 6)
    expected = layer(x)
    for switch, state in (('packed', 'packed'), ('masked', 'masked'), ('packed', 'packed'), ('deploy', 'condensed')):
        getattr(layer, f'switch_to_{switch}')()
        assert (layer.state, layer.packed, layer.deploy) == (state, state == 'packed', state == 'condensed')
        assert relative_difference(pickle.loads(pickle.dumps(layer))(x), expected) < 1e-5
        assert relative_difference(torch.jit.script(layer)(x), expected) < 1e-5


@pytest.mark.needs('onnx', 'onnxruntime')
@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('name', sorted(LAYERS))
def test_exports_to_onnx_in_both_forms(name, deploy, tmp_path):
    layer = finished(name)
    if deploy:
        layer.switch_to_deploy()
    report = export_onnx(layer, tmp_path / 'layer.onnx', (12, 5, 6), optimize=False)
    assert report.verification.max_rel < 1e-5
    assert not {'ScatterND', 'ScatterElements'} & set(report.operators)


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_half_precision_and_autocast(name):
    layer = finished(name)
    x = torch.randn(2, 12, 5, 5)
    with torch.autocast('cpu', torch.bfloat16):
        masked = layer(x)
    assert masked.dtype == torch.bfloat16
    layer.switch_to_deploy()
    layer.to(torch.bfloat16)
    assert relative_difference(layer(x.bfloat16()).float(), masked.float()) < 0.05


def test_index_faults_and_forms_are_told_on_loading():
    training, deployed = LAYERS['lgc'](), LAYERS['lgc'](deploy=True)
    with pytest.raises(RuntimeError, match='deploy=True to load it'):
        training.load_state_dict(deployed.state_dict())
    with pytest.raises(RuntimeError, match='deploy=False, load, then call switch_to_deploy'):
        deployed.load_state_dict(training.state_dict())
    state = deployed.state_dict()
    state['gather.index'] = state['gather.index'] + 100
    with pytest.raises(RuntimeError, match='gather.index must lie in 0 to 11'):
        deployed.load_state_dict(state)


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_mask_and_stage_cannot_disagree_after_loading(name):
    layer = finished(name)
    state = layer.state_dict()
    for change, message in (
        (dict(stage=torch.tensor(9)), 'has stages 0 to'),
        (dict(mask=torch.ones_like(state['mask'])), 'mask and stage disagree'),
    ):
        with pytest.raises(RuntimeError, match=message):
            LAYERS[name]().load_state_dict({**state, **change})


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_a_stage_that_averaging_left_behind_its_mask_is_read_from_the_mask(name):
    layer = finished(name)
    averaged = {**layer.state_dict(), 'stage': torch.tensor(layer.num_stages - 1)}
    loaded = LAYERS[name]()
    loaded.load_state_dict(averaged)
    assert int(loaded.stage) == layer.num_stages and torch.equal(loaded.mask, layer.mask)
    layer.stage.fill_(layer.num_stages - 1)
    assert layer.is_finished()
    layer.switch_to_deploy()


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_means_of_state_dicts_load_where_the_masks_are_the_same(name):
    layer = finished(name)
    soup = {key: value * 0.5 + value * 0.5 for key, value in layer.state_dict().items()}
    loaded = LAYERS[name]()
    loaded.load_state_dict(soup)
    assert loaded.is_finished() and torch.equal(loaded.mask, layer.mask)
    soup['mask'] = layer.mask * 0.5 + torch.ones_like(layer.mask) * 0.5
    with pytest.raises(RuntimeError, match='average of different masks'):
        LAYERS[name]().load_state_dict(soup)


def test_nan_weights_stop_pruning_before_any_mask_changes():
    layer = LAYERS['lgc']()
    layer.conv.weight.data[3, 2] = float('nan')
    with pytest.raises(ValueError, match='NaN or infinite'):
        layer.prune_to(2)
    assert layer.mask.all() and int(layer.stage) == 0


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (
            lambda: LearnedGroupConv(12, 22, groups=4),
            'groups=4 does not divide out_channels=22; groups that do: 1, 2.*24',
        ),
        (lambda: SparseFeatureReactivation(10, 33, groups=4), 'groups=4 does not divide in_channels=10'),
        (lambda: LearnedGroupConv(0, 8), 'in_channels is 0'),
        (lambda: LearnedGroupConv(8, 8, factor=0), 'factor is 0'),
        (lambda: GroupSparseConv2d(8, 8, grouped_side='both'), "grouped_side is 'both'"),
        (lambda: GroupSparseConv2d(8, 8, grouped_side='inputs', bias=True), 'bias=True is for'),
        (lambda: LAYERS['lgc']().prune_to(9), 'stage is 9'),
    ],
)
def test_wrong_arguments_name_the_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_batch_norm_condenses():
    layer = LearnedGroupConv(12, 24, 4, 1, norm_layer=lambda channels: nn.GroupNorm(2, channels))
    x = torch.randn(2, 12, 5, 5)
    expected = layer(x)
    with pytest.raises(TypeError, match='GroupNorm'):
        layer.switch_to_deploy()
    assert not layer.deploy
    assert torch.equal(layer(x), expected)


def test_batch_norm_that_activates_is_not_condensed_without_its_activation():
    layer = LearnedGroupConv(12, 24, 4, 1, norm_layer=timm.layers.BatchNormAct2d)
    with pytest.raises(TypeError, match='by BatchNormAct2d; build the model with .*act_layer'):
        layer.switch_to_deploy()
    assert not layer.deploy


class ActivatingNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Float32Norm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x.float()).type_as(x)


without_act = partial(timm.layers.BatchNormAct2d, apply_act=False)
split = partial(timm.layers.SplitBatchNorm2d, num_splits=2)


@pytest.mark.parametrize('norm_layer', [without_act, split, Float32Norm])
def test_classes_that_compute_batch_norm_condense(norm_layer):
    layer = randomize_norms(LearnedGroupConv(12, 24, 4, 1, norm_layer=norm_layer)).eval()
    x = torch.randn(2, 12, 5, 5)
    expected = layer(x)
    layer.switch_to_deploy()
    assert relative_difference(layer(x), expected) < 1e-5


def test_trying_a_norm_runs_no_hook_and_nan_does_not_make_it_another_norm():
    layer, seen = LearnedGroupConv(12, 24, 4, 1, norm_layer=without_act), []
    layer.norm.running_var[0] = float('nan')
    hook = layer.norm.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(TypeError, match='hooks'):  # it would be lost
        layer.switch_to_deploy()
    hook.remove()
    layer.switch_to_deploy()
    assert layer.deploy and not seen


def test_a_class_whose_own_forward_activates_is_not_condensed():
    layer = randomize_norms(LearnedGroupConv(12, 24, 4, 1, norm_layer=ActivatingNorm))
    with pytest.raises(TypeError, match='ActivatingNorm'):
        layer.switch_to_deploy()
    assert not layer.deploy and layer.norm.training


def test_batch_norm_with_parametrised_weights_condenses():
    layer = finished('lgc')
    torch.nn.utils.parametrize.register_parametrization(layer.norm, 'weight', nn.Softplus())
    x = torch.randn(2, 12, 5, 5)
    expected = layer(x)
    layer.switch_to_deploy()
    assert relative_difference(layer(x), expected) < 1e-5
    assert layer.norm.weight.requires_grad


def test_sync_batch_norm_condenses_to_batch_norm():
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(finished('lgc'))
    x = torch.randn(2, 12, 5, 5)
    expected = layer(x)
    layer.switch_to_deploy()
    assert type(layer.norm) is nn.BatchNorm2d
    assert relative_difference(layer(x), expected) < 1e-5


def test_squeeze_excite_is_its_formula():
    layer = SqueezeExcite(6, 3)
    x = torch.randn(2, 6, 4, 4)
    hidden = (x.mean((2, 3)) @ layer.fc1.weight.t()).relu()
    expected = x * (hidden @ layer.fc2.weight.t()).sigmoid()[:, :, None, None]
    assert torch.allclose(layer(x), expected)
