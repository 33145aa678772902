"""Condensing whole networks is exact, in float32 and float64, for every arch and 50 random ones."""

import copy

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.checkpoints import save_checkpoint
from cnv2_plugin.deploy import condense, lower, verify
from cnv2_plugin.layers import GroupSparseConv2d, UnfinishedPruningError
from tests.helpers import finish_pruning, random_arch, random_seeds, randomize_norms, relative_difference

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
PRUNED_PARAMETERS = {'condensenetv2_a': 2_038_444, 'condensenetv2_b': 3_592_662, 'condensenetv2_c': 6_177_512}


def finished(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    return finish_pruning(randomize_norms(timm.create_model(name, **kwargs), seed)).eval()


@torch.no_grad()
def difference(model, dtype, size):
    model = copy.deepcopy(model).to(dtype)
    x = torch.randn(2, 3, size, size, dtype=dtype)
    return relative_difference(condense(model)(x), model(x))


@pytest.mark.parametrize('name', sorted(PRUNED_PARAMETERS))
def test_published_variants(name, tmp_path):
    model = finished(name)
    for dtype, tolerance in TOLERANCE.items():
        assert difference(model, dtype, 96) <= tolerance
    condensed = condense(model)
    parameters = sum(p.numel() for p in condensed.parameters())
    assert parameters == PRUNED_PARAMETERS[name]
    for suffix in ('pth', 'safetensors'):
        save_checkpoint(condensed.state_dict(), tmp_path / f'x.{suffix}')
        assert (tmp_path / f'x.{suffix}').stat().st_size <= 1.05 * 4 * parameters


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(PRUNED_PARAMETERS))
@pytest.mark.parametrize('size', [224, 161])
def test_published_variants_at_full_and_odd_size(name, size):
    model = finished(name, seed=1)
    for dtype, tolerance in TOLERANCE.items():
        assert difference(model, dtype, size) <= tolerance


@pytest.mark.parametrize('seed', random_seeds(50))
def test_random_archs(seed):
    arch = random_arch(seed)
    assert arch['condense_factor'] != arch['sparse_factor']
    model = finished('condensenetv2', seed, arch=arch, num_classes=7)
    for dtype, tolerance in TOLERANCE.items():
        assert difference(model, dtype, 19) <= tolerance
    built = timm.create_model('condensenetv2', arch=arch, num_classes=7, deploy=True).eval()
    condensed = condense(model)
    built.load_state_dict(condensed.state_dict())
    x = torch.randn(1, 3, 19, 19)
    assert torch.equal(built(x), condensed(x))
    condensed.load_state_dict(built.state_dict())


def test_condense_copies_unless_told_otherwise():
    model = finished('condensenetv2', arch=random_arch(0))
    condensed = condense(model)
    assert not any(layer.deploy for layer in model.sparse_layers())
    assert all(layer.deploy for layer in condensed.sparse_layers()) and condensed.deploy
    assert condense(model, inplace=True) is model and model.deploy


def test_switch_to_deploy_is_in_place_and_idempotent():
    model = finished('condensenetv2', arch=random_arch(1))
    x = torch.randn(1, 3, 24, 24)
    expected = model(x)
    model.switch_to_deploy()
    keys = list(model.state_dict())
    once = model(x)
    model.switch_to_deploy()
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), once) and relative_difference(once, expected) < 1e-5


def test_unfinished_models_are_refused_whole():
    model = timm.create_model('condensenetv2', arch=random_arch(2))
    layers = list(model.sparse_layers())
    for layer in layers[1:]:
        layer.prune_to(layer.num_stages)
    with pytest.raises(UnfinishedPruningError, match=r'stages\.0\.layers\.0\.conv_1'):
        model.switch_to_deploy()
    assert not any(layer.deploy for layer in layers)


def test_training_goes_on_in_condensed_form():
    condensed = condense(finished('condensenetv2', arch=random_arch(3))).train()
    condensed(torch.randn(2, 3, 24, 24)).square().mean().backward()
    assert all(p.grad is not None for p in condensed.parameters())


class ForeignBlock(nn.Module):
    """Two branches in training, one convolution after a switch of its own and its ``deploy`` flag: RepVGG's block."""

    def __init__(self) -> None:
        super().__init__()
        self.deploy = False
        self.branches = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.deploy:
            return self.fused_convolution(x)
        return sum(branch(x) for branch in self.branches)


@pytest.mark.parametrize('inplace', [False, True])
def test_a_foreign_block_with_a_deploy_flag_stays_as_it_is(inplace):
    model = finish_pruning(nn.Sequential(ForeignBlock(), GroupSparseConv2d(8, 12, 4, 2))).eval()
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        expected = model(x)
        condensed = condense(model, inplace=inplace)
        assert relative_difference(condensed(x), expected) < 1e-5
    assert condensed[0].deploy is False and condensed[1].deploy


def test_foreign_models_condense_too():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), GroupSparseConv2d(8, 12, 4, 2), nn.ReLU())
    finish_pruning(model)
    assert verify(model, condense(model), (3, 9, 9)).max_rel < 1e-5


def test_a_model_whose_train_returns_nothing_is_deployed():
    class Detector(timm.create_model('condensenet_50_cifar').__class__):
        """As MMDetection's distilling detectors: ``train`` returns nothing, and so does ``eval``."""

        def train(self, mode=True):
            super().train(mode)

    model = finish_pruning(timm.create_model('condensenet_50_cifar', num_classes=4))
    model.__class__ = Detector
    model.eval()
    expected = lower(model, (3, 32, 32))(torch.ones(1, 3, 32, 32))
    assert isinstance(condense(model), Detector)
    assert relative_difference(condense(model)(torch.ones(1, 3, 32, 32)), expected) < 1e-5
    assert count_cost(model, (3, 32, 32)).params > 0


@pytest.mark.parametrize('name', ['condensenetv2_a', 'condensenet_50_cifar', 'sfr_shufflenetv2_x0_5'])
@pytest.mark.parametrize(
    'runtime', ['condensed', 'onnxruntime', pytest.param('native', marks=pytest.mark.needs('kernels'))]
)
def test_every_tensor_has_a_storage_of_its_own(name, runtime, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')

    def made(seed):
        torch.manual_seed(seed)
        model = finish_pruning(randomize_norms(timm.create_model(name, num_classes=4), seed)).eval()
        return condense(model) if runtime == 'condensed' else lower(model, (3, 64, 64), runtime)

    first, second, x = made(0), made(1), torch.randn(1, 3, 64, 64)
    safetensors.save_model(first, str(tmp_path / 'x.safetensors'))
    if runtime != 'onnxruntime':  # the shapes of a lowered model depend on its masks
        safetensors.load_model(second, str(tmp_path / 'x.safetensors'))
        with torch.no_grad():
            assert relative_difference(second(x), first(x)) < 1e-5
