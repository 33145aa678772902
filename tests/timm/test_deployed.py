"""Condensed equals masked, and ONNX Runtime agrees, for every variant."""

import pytest
import timm
import torch

from cnv2_plugin.archs import VARIANTS
from cnv2_plugin.deploy import condense, export_onnx
from cnv2_plugin.layers import GroupSparseConv2d, UnfinishedPruningError

from ..helpers import finish_pruning, randomize_norms, relative_difference

ONE_OF_EACH_FAMILY = [
    'condensenetv2_a',
    'condensenetv2_110_cifar',
    'condensenet_74_g8',
    'condensenet_50_cifar',
    'sfr_shufflenetv2_x1_0',
    'shufflenetv2_x0_5',
]
QUICK_OR_SLOW = [n if n in ONE_OF_EACH_FAMILY else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS]


def trained(name: str, **kwargs):
    return finish_pruning(randomize_norms(timm.create_model(name, **kwargs))).eval()


def images(model, dtype=torch.float32, batch=2):
    size = min(64, model.default_cfg['input_size'][-1])
    return torch.randn(batch, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=['fp32', 'fp64'])
@pytest.mark.parametrize('name', QUICK_OR_SLOW)
def test_condensed_is_masked(name, dtype, tolerance):
    model = trained(name, dtype=dtype)
    x = images(model, dtype)
    condensed = condense(model)
    with torch.no_grad():
        assert relative_difference(condensed(x), model(x)) < tolerance
        for a, b in zip(*(m.forward_intermediates(x, intermediates_only=True) for m in (condensed, model))):
            assert relative_difference(a, b) < tolerance
    sparse = [m for m in condensed.modules() if isinstance(m, GroupSparseConv2d)]
    assert all(m.deploy for m in sparse) and condensed.deploy
    assert not any('mask' in key or 'stage' in key.split('.')[-1] for key in condensed.state_dict())
    rebuilt = timm.create_model(name, deploy=True, dtype=dtype).eval()
    rebuilt.load_state_dict(condensed.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(x), condensed(x))
    model.switch_to_deploy()
    model.switch_to_deploy()
    with torch.no_grad():
        assert torch.equal(model(x), condensed(x))


@pytest.mark.parametrize('name', ['condensenetv2_b', 'condensenet_74_g4', 'sfr_shufflenetv2_x2_0'])
def test_unfinished_models_are_refused(name):
    model = timm.create_model(name)
    with pytest.raises(UnfinishedPruningError, match='stage 0 of'):
        model.switch_to_deploy()
    assert not model.deploy


@pytest.mark.parametrize('name', ['condensenetv2_a', 'sfr_shufflenetv2_x0_5'])
def test_timm_reparameterize_model_condenses(name):
    from timm.utils import reparameterize_model

    model = trained(name)
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        condensed = reparameterize_model(model)
        assert relative_difference(condensed(x), expected) < 1e-5
    assert all(m.deploy for m in condensed.modules() if isinstance(m, GroupSparseConv2d))


SMALL = {
    'condensenetv2': dict(
        layers=[2, 2, 1], growth=[8, 16, 24], groups_1x1=4, groups_3x3=2, groups_sfr=8, condense_factor=3,
        sparse_factor=5, se_from=2, hswish_from=3, head_width=20,
    ),
    'condensenet': dict(layers=[2, 2], growth=[8, 16], groups_1x1=4, groups_3x3=4, condense_factor=3, stem_stride=1),
    'sfr_shufflenetv2': dict(channels=[20, 48], repeats=[3, 2], stem_width=8, final_width=40),
    'shufflenetv2': dict(channels=[20, 48], repeats=[3, 2], stem_width=8, final_width=40),
}  # fmt: skip


@pytest.mark.needs('onnx', 'onnxruntime')
@pytest.mark.parametrize(
    'name,form',
    [
        ('condensenetv2', 'training'),
        ('condensenetv2', 'condensed'),
        ('condensenet', 'condensed'),
        ('sfr_shufflenetv2', 'training'),
        ('sfr_shufflenetv2', 'condensed'),
        ('shufflenetv2', 'training'),
    ],
)
def test_onnx_runtime_agrees_for_each_family(name, form, tmp_path):
    _check_onnx(trained(name, arch=SMALL[name], num_classes=7), form, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('name', VARIANTS)
def test_onnx_runtime_agrees_for_each_variant(name, tmp_path):
    """One of each family goes through ``torch.export``, the others through TorchScript, which is faster."""
    _check_onnx(trained(name), 'condensed', tmp_path, **{} if name in ONE_OF_EACH_FAMILY else dict(opset=17))


def _check_onnx(model, form, tmp_path, **options):
    if form == 'condensed':
        model = condense(model)
    size = min(64, model.default_cfg['input_size'][-1])
    report = export_onnx(model, tmp_path / 'model.onnx', (3, size, size), batch=1, **options)
    assert report.verification.max_rel < 1e-5
    assert set(report.operators) <= set(_standard_operators())


def _standard_operators():
    import onnx

    return {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ''}
