"""ShuffleNetV2 of torchvision and MMPretrain: same parameters, same logits, and an SFR start that changes nothing."""

import pytest
import timm
import torch
import torchvision

from cnv2_plugin.checkpoints import CheckpointError, init_from_shufflenet, remap_shufflenet
from cnv2_plugin.layers import SparseFeatureReactivation
from cnv2_plugin.sparsify import StagedSparsifier

from ..helpers import randomize_norms, relative_difference

WIDTHS = ['x0_5', 'x1_0', 'x1_5', 'x2_0']
PARAMETERS = dict(x0_5=1_366_792, x1_0=2_278_604, x1_5=3_503_624, x2_0=7_393_996)


def torchvision_net(width: str, **kwargs):
    torch.manual_seed(0)
    return randomize_norms(getattr(torchvision.models, f'shufflenet_v2_{width}')(**kwargs)).eval()


def mmpretrain_state(width: str) -> tuple[dict, object]:
    """A classifier's state dict as MMPretrain saves it, and a function to its logits."""
    backbones = pytest.importorskip('mmpretrain.models')
    torch.manual_seed(0)
    backbone = randomize_norms(backbones.ShuffleNetV2(float(width[1:].replace('_', '.'))))
    backbone.eval()
    fc = torch.nn.Linear(2048 if width == 'x2_0' else 1024, 1000)
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    state |= {f'head.fc.{key}': value for key, value in fc.state_dict().items()}
    return state, lambda x: fc(backbone(x)[-1].mean((2, 3)))


@pytest.fixture
def images():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('width', WIDTHS)
def test_parameters_are_torchvisions(width):
    ours = timm.create_model(f'shufflenetv2_{width}', device='meta')
    theirs = getattr(torchvision.models, f'shufflenet_v2_{width}')()
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts == [PARAMETERS[width]] * 2


@pytest.mark.parametrize('width', WIDTHS)
@torch.no_grad()
def test_torchvision_logits(width, images):
    theirs = torchvision_net(width)
    ours = timm.create_model(f'shufflenetv2_{width}').eval()
    ours.load_state_dict(remap_shufflenet(theirs.state_dict()), strict=True)
    assert relative_difference(ours(images), theirs(images)) < 1e-5


@pytest.mark.parametrize('width', WIDTHS)
@torch.no_grad()
def test_mmpretrain_logits(width, images):
    state, theirs = mmpretrain_state(width)
    ours = timm.create_model(f'shufflenetv2_{width}').eval()
    ours.load_state_dict(remap_shufflenet(state), strict=True)
    assert relative_difference(ours(images), theirs(images)) < 1e-5


def test_remapping_ours_changes_nothing():
    state = timm.create_model('sfr_shufflenetv2_x0_5').state_dict()
    assert list(remap_shufflenet(state)) == list(state)


def test_remapping_refuses_other_keys():
    with pytest.raises(CheckpointError, match='layer1.0.conv1.weight is no key of a ShuffleNetV2'):
        remap_shufflenet({'layer1.0.conv1.weight': torch.ones(1)})


@pytest.mark.parametrize('width', WIDTHS)
@torch.no_grad()
def test_reactivation_starts_as_an_exact_no_op(width, images):
    theirs = torchvision_net(width)
    plain = timm.create_model(f'shufflenetv2_{width}').eval()
    plain.load_state_dict(remap_shufflenet(theirs.state_dict()))
    model = timm.create_model(f'sfr_shufflenetv2_{width}')
    assert init_from_shufflenet(model, theirs) == []
    assert torch.equal(model.eval()(images), plain(images))
    assert relative_difference(model(images), theirs(images)) < 1e-5
    assert torch.equal(model.train()(images), plain.train()(images))


def test_reactivation_learns_from_the_first_step(images):
    model = timm.create_model('sfr_shufflenetv2_x0_5', num_classes=10).train()
    assert init_from_shufflenet(model, torchvision_net('x0_5')) == ['classifier.weight', 'classifier.bias']
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseFeatureReactivation)}
    assert len(layers) == 13
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images, labels = torch.randn(8, 3, 96, 96), torch.arange(8)
    for step in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        for name, layer in layers.items():
            per_unit = layer.grouping.by_unit(layer.conv.weight.grad).abs().sum(2)
            assert (per_unit > 0).float().mean() > 0.9, f'{name} has units without a gradient at step {step}'
            if step == 1:
                assert layer.norm.weight.grad.abs().sum() > 0 and layer.norm.bias.grad.abs().sum() > 0
        optimizer.step()
    for name, layer in layers.items():
        importance = layer.grouping.by_unit(layer.conv.weight.detach()).abs().sum(2)
        assert importance.unique().numel() > 0.9 * importance.numel(), f'{name} has equal importances'


def test_pruning_keeps_what_training_moved_most(images):
    model = timm.create_model('sfr_shufflenetv2_x0_5', num_classes=10).train()
    init_from_shufflenet(model, torchvision_net('x0_5'))
    sparsifier = StagedSparsifier(model, total_steps=14)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    for _ in range(14):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        sparsifier.step()
    assert sparsifier.finished
    kept_first = 0
    for layer in sparsifier.layers.values():
        kept = layer.grouping.kept_index(layer.mask).view(layer.groups, -1)
        last = torch.arange(layer.num_units - kept.shape[1], layer.num_units)
        kept_first += int((kept == last).all())
    assert kept_first < len(sparsifier.layers), 'ties decided, as if nothing had been learned'
    model.eval().switch_to_deploy()


@pytest.mark.parametrize('kind', ['module', 'state dict', 'file', 'wrapped file', 'mmpretrain', 'ours'])
@torch.no_grad()
def test_sources(kind, images, tmp_path):
    theirs = torchvision_net('x0_5')
    logits = theirs
    source = theirs
    if kind == 'state dict':
        source = theirs.state_dict()
    elif kind == 'file':
        source = tmp_path / 'theirs.pth'
        torch.save(theirs.state_dict(), source)
    elif kind == 'wrapped file':
        source = str(tmp_path / 'theirs.pth')
        torch.save({'state_dict': {f'module.{key}': value for key, value in theirs.state_dict().items()}}, source)
    elif kind == 'mmpretrain':
        source, logits = mmpretrain_state('x0_5')
    elif kind == 'ours':
        source = logits = randomize_norms(timm.create_model('shufflenetv2_x0_5')).eval()
    model = timm.create_model('sfr_shufflenetv2_x0_5').eval()
    init_from_shufflenet(model, source)
    assert relative_difference(model(images), logits(images)) < 1e-5


def test_bad_sources_and_models():
    model = timm.create_model('sfr_shufflenetv2_x0_5')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match='other shapes for stages.0.*same width'):
        init_from_shufflenet(model, torchvision_net('x1_0'))
    with pytest.raises(CheckpointError, match='lacks stem.conv.weight'):
        state = torchvision_net('x0_5').state_dict()
        init_from_shufflenet(model, {key: value for key, value in state.items() if not key.startswith('conv1.')})
    with pytest.raises(CheckpointError, match='is no key of a ShuffleNetV2'):
        init_from_shufflenet(model, torchvision.models.resnet18())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match='give an SFR-ShuffleNetV2'):
        init_from_shufflenet(torchvision.models.resnet18(), torchvision_net('x0_5'))
    with pytest.raises(ValueError, match='deploy=False'):
        init_from_shufflenet(timm.create_model('sfr_shufflenetv2_x0_5', deploy=True), torchvision_net('x0_5'))
