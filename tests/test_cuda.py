"""The same on a GPU as on the CPU: gradients, stages, packed training, mixed precision, compiled and deployed forms.

Nothing depends on a GPU; without one these tests are skipped. ``CNV2_TEST_DEVICE=cpu`` runs them on the CPU.
"""

import os
from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from cnv2_plugin.deploy import condense, lower
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import StagedSparsifier, pack_model, recalibrate_norms, restore_masked
from tests.helpers import finish_pruning, randomize_norms, relative_difference

timm = pytest.importorskip('timm')

DEVICE = os.environ.get('CNV2_TEST_DEVICE', 'cuda')
pytestmark = pytest.mark.skipif(DEVICE == 'cuda' and not torch.cuda.is_available(), reason='there is no CUDA device')

DENSE = dict(layers=(2, 3), growth=(8, 16), groups_1x1=4, groups_3x3=2, condense_factor=2, stem_stride=1)
ARCHS = {
    'condensenet': dict(DENSE, groups_sfr=0, sparse_factor=4),
    'condensenetv2': dict(DENSE, groups_sfr=4, sparse_factor=4, se_from=1, hswish_from=1),
    'sfr_shufflenetv2_x0_5': dict(
        channels=(24, 48), repeats=(2, 2), stem_width=16, final_width=32, with_sfr=True, max_groups=4, sparse_factor=2
    ),
}
families = pytest.mark.parametrize('name', ARCHS)


@pytest.fixture(autouse=True)
def alone_and_exact():
    """Nothing compiled is left of other tests, and float32 is not shortened as GPUs do by default."""
    torch._dynamo.reset()
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def build(name):
    torch.manual_seed(0)
    return randomize_norms(timm.create_model(name, arch=ARCHS[name], num_classes=5))


def batch(count=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(5, (count,), generator=generator)


def trained(model, device, steps=6, autocast=None, packed=False):
    """Train with stages in the first half; returns the losses and the model."""
    model = model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9, nesterov=True)
    sparsifier = StagedSparsifier(model, steps, sparse_fraction=0.5)
    scaler = torch.amp.GradScaler(device, enabled=autocast == torch.float16)
    images, labels = (t.to(device) for t in batch())
    losses = []
    for _ in range(steps):
        with torch.autocast(device, autocast, enabled=autocast is not None):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        if sparsifier.step():
            recalibrate_norms(model, [images], 1)
            if packed and sparsifier.finished:
                pack_model(model, optimizer)
                packed = False
    return losses, model


@families
def test_gradients_in_float64(name):
    images, labels = batch()
    gradients = []
    for device in ('cpu', DEVICE):
        model = build(name).to(device, torch.float64).train()
        F.cross_entropy(model(images.to(device, torch.float64)), labels.to(device)).backward()
        gradients.append([p.grad.cpu() for p in model.parameters()])
    largest = max(g.abs().max().item() for g in gradients[0])
    for expected, actual in zip(*gradients):  # CUDA's hard-swish divides by 6 in float32
        assert (actual - expected).abs().max().item() < 1e-6 * largest


@families
@pytest.mark.parametrize('packed', [False, True])
def test_staged_training(name, packed):
    expected, on_cpu = trained(build(name), 'cpu', packed=packed)
    losses, model = trained(build(name), DEVICE, packed=packed)
    assert losses == pytest.approx(expected, rel=1e-2)
    restore_masked(model)
    layers = [m for m in model.modules() if isinstance(m, GroupSparseConv2d)]
    assert layers and all(layer.is_finished() for layer in layers)
    on_cpu.load_state_dict(model.state_dict())
    images, _ = batch()
    with torch.no_grad():
        assert relative_difference(model.eval()(images.to(DEVICE)).cpu(), on_cpu.eval()(images)) < 1e-4


@families
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision(name, dtype):
    losses, model = trained(build(name), DEVICE, steps=20, autocast=dtype)
    assert losses[-1] < losses[0]
    assert all(p.isfinite().all() for p in model.parameters())


@families
def test_compiled_training_step(name):
    images, labels = (t.to(DEVICE) for t in batch())
    model = build(name).to(DEVICE).train()
    compiled = torch.compile(deepcopy(model), fullgraph=True)
    gradients = []
    for network in (model, compiled):
        F.cross_entropy(network(images), labels).backward()
        gradients.append([p.grad for p in network.parameters()])
    largest = max(g.abs().max().item() for g in gradients[0])
    for ours, theirs in zip(*gradients):
        assert (ours - theirs).abs().max().item() < 1e-3 * largest


@families
def test_deployed_forms(name):
    images, _ = batch()
    masked = finish_pruning(build(name)).eval()
    with torch.no_grad():
        expected = masked(images)
        condensed = condense(masked)
        lowered = lower(masked, (3, 32, 32))
        for model in (condensed, lowered):
            on_device = deepcopy(model).to(DEVICE)
            assert relative_difference(on_device(images.to(DEVICE)).cpu(), expected) < 1e-4
            stored = on_device.to(memory_format=torch.channels_last)
            given = images.to(DEVICE, memory_format=torch.channels_last)
            assert relative_difference(stored(given).cpu(), expected) < 1e-4
            compiled = torch.compile(stored, fullgraph=True)
            assert relative_difference(compiled(given).cpu(), expected) < 1e-4
            assert relative_difference(on_device.half()(given.half()).float().cpu(), expected) < 3e-2


def test_condensing_on_the_device_is_condensing_on_the_cpu():
    masked = finish_pruning(build('condensenetv2')).eval()
    ours, theirs = condense(deepcopy(masked).to(DEVICE)), condense(masked)
    for (name, actual), expected in zip(ours.state_dict().items(), theirs.state_dict().values()):
        assert torch.equal(actual.cpu(), expected), name


@pytest.mark.skipif(DEVICE == 'cpu', reason='the model is where the kernels are')
@pytest.mark.needs('kernels')
def test_native_kernels_say_that_they_take_the_cpu():
    masked = finish_pruning(build('condensenetv2')).eval().to(DEVICE)
    with pytest.raises(ValueError, match=r'on cuda:0; the native kernels take float32 on the CPU'):
        lower(masked, (3, 32, 32), runtime='native')
