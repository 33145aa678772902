"""torch.compile without graph breaks, channels_last and bfloat16 autocast, in every form."""

from copy import deepcopy

import pytest
import timm
import torch
import torchvision
from torch import nn

import cnv2_plugin  # noqa: F401
from cnv2_plugin.deploy import condense
from cnv2_plugin.sparsify import add_reactivation, pack_model, to_learned_groups
from tests.helpers import finish_pruning, random_arch, randomize_norms, relative_difference

SIZE = (3, 32, 32)


def condensenet() -> nn.Module:
    return timm.create_model('condensenetv2', arch=random_arch(4), num_classes=5)


def shufflenet() -> nn.Module:
    arch = dict(channels=(48, 96), repeats=(1, 2), final_width=64)
    return timm.create_model('sfr_shufflenetv2', arch=arch, num_classes=5)


def whole_shufflenet() -> nn.Module:
    return timm.create_model('sfr_shufflenetv2_x0_5', num_classes=5)


def operated(model: nn.Module) -> nn.Module:
    to_learned_groups(model, min_channels=24, input_size=SIZE)
    add_reactivation(model, min_channels=24, input_size=SIZE)
    return model


def foreign() -> nn.Module:
    return operated(torchvision.models.ShuffleNetV2([1, 2, 1], [24, 48, 96, 96, 64], num_classes=5))


def whole_foreign() -> nn.Module:
    return operated(torchvision.models.shufflenet_v2_x0_5(num_classes=5))


def wide() -> nn.Module:
    """Wide enough for every product of the packed form, in both memory formats."""
    arch = dict(
        layers=(2, 2), growth=(32, 64), groups_1x1=2, groups_3x3=2, groups_sfr=2, condense_factor=2, sparse_factor=3,
        se_from=1, hswish_from=2,
    )  # fmt: skip
    return timm.create_model('condensenetv2', arch=arch, num_classes=5)


MODELS = {'condensenet': condensenet, 'shufflenet': shufflenet, 'foreign': foreign, 'wide': wide}


def condensenet_unit() -> nn.Module:
    arch = dict(
        layers=(1,), growth=(12,), groups_1x1=4, groups_3x3=3, groups_sfr=2, condense_factor=3, sparse_factor=2,
        se_from=1, hswish_from=1,
    )  # fmt: skip
    return timm.create_model('condensenetv2', arch=arch, num_classes=5)


def foreign_unit() -> nn.Module:
    unit = torchvision.models.shufflenetv2.InvertedResidual(48, 48, 1)
    return operated(nn.Sequential(nn.Conv2d(3, 48, 3, 4), unit, nn.Conv2d(48, 5, 1), nn.AdaptiveAvgPool2d(1)))


UNITS = {'condensenet unit': condensenet_unit, 'foreign unit': foreign_unit}
WHOLE = {
    'condensenet': condensenet, 'wide': wide, 'whole shufflenet': whole_shufflenet, 'whole foreign': whole_foreign,
}  # fmt: skip
COMPILED = [*UNITS, *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)]
"""Compiling takes long, so the fast tests do it for one unit of our own networks and one changed by surgery."""


def masked(model: nn.Module) -> nn.Module:
    return model


def packed(model: nn.Module) -> nn.Module:
    pack_model(model)
    return model


FORMS = {'masked': masked, 'packed': packed, 'deployed': condense}


def model_of(name: str, form: str) -> nn.Module:
    torch.manual_seed(0)
    return FORMS[form](finish_pruning(randomize_norms({**MODELS, **UNITS, **WHOLE}[name]())))


def images(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)


def gradients(model: nn.Module, run, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    run(x).square().mean().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', COMPILED)
def test_compiles_as_one_graph_for_training_and_inference(name, form):
    model = model_of(name, form).double().train()
    reference, x = deepcopy(model), images(torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    for ours, theirs in zip(gradients(model, compiled, x), gradients(reference, reference, x)):
        assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max() + 1e-12
    model.eval(), reference.eval()
    with torch.no_grad():
        assert relative_difference(compiled(x), reference(x)) < 1e-9


@pytest.mark.parametrize('form', ['masked', 'packed'])
def test_compiled_training_goes_through_pruning_without_graph_breaks(form):
    model = condensenet_unit().train()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for stage in range(3):
        for layer in model.sparse_layers():
            layer.prune_to(min(stage, layer.num_stages))
        gradients(model, compiled, images())
        optimizer.step()
    finish_pruning(model)
    expected = model.eval()(images())
    if form == 'packed':
        pack_model(model, optimizer)
        assert not any(layer.packed != (layer.factor > 1) for layer in model.sparse_layers())
    assert relative_difference(compiled(images()), expected) < 1e-5


def test_checkpointed_stages_compile():
    model = condensenet_unit().train()
    model.set_grad_checkpointing()
    torch.compiler.reset()
    gradients(model, torch.compile(model, fullgraph=True, backend='aot_eager'), images())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', MODELS)
def test_channels_last_computes_the_same(name, form):
    model = model_of(name, form).double().train()
    reference = deepcopy(model)
    model.to(memory_format=torch.channels_last)
    x = images(torch.float64)
    ours = gradients(model, model, x.to(memory_format=torch.channels_last))
    for actual, expected in zip(ours, gradients(reference, reference, x)):
        assert (actual - expected).abs().max() <= 1e-8 * expected.abs().max() + 1e-12


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', MODELS)
def test_bfloat16_autocast_stays_near_and_trains(name, form):
    model, x = model_of(name, form).eval(), images()
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            actual = model(x)
    assert actual.dtype == torch.bfloat16
    assert relative_difference(actual.float(), expected) < 0.1
    model.train()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )


@pytest.mark.slow
@pytest.mark.needs('c++')
@pytest.mark.parametrize('form', FORMS)
def test_inductor_agrees(form):
    model, x = model_of('condensenet', form).eval(), images()
    torch.compiler.reset()
    with torch.no_grad():
        assert relative_difference(torch.compile(model, fullgraph=True)(x), model(x)) < 1e-4
