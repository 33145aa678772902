"""Spatial group convolutions see channels-last features where a CPU trains them, and nothing else changes."""

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.benchmark.authors_form import restated
from cnv2_plugin.sparsify import condense_while_training


def finished(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    for layer in model.sparse_layers():
        layer.prune_to(layer.num_stages)
    return model


def formats_seen(model: nn.Module, x: torch.Tensor) -> tuple[set, set]:
    """Whether inputs and outputs of the 3x3 convolutions are channels last."""
    inputs, outputs = set(), set()

    def note(module, given, result):
        inputs.add(given[0].is_contiguous(memory_format=torch.channels_last))
        outputs.add(result.is_contiguous(memory_format=torch.channels_last))

    hooks = [m.register_forward_hook(note) for n, m in model.named_modules() if n.endswith('conv_2')]
    model(x)
    for hook in hooks:
        hook.remove()
    return inputs, outputs


@pytest.mark.parametrize('packed', [False, True])
def test_only_training_on_the_cpu_stores_channels_last(packed):
    model, x = finished('condensenetv2_a'), torch.randn(2, 3, 64, 64)
    if packed:
        condense_while_training(model)
    assert formats_seen(model.train(), x) == ({True}, {True})
    assert model(x).is_contiguous()
    with torch.no_grad():
        assert formats_seen(model, x) == ({False}, {False})
    assert formats_seen(model.eval(), x) == ({False}, {False})


def test_gradients_are_those_of_the_plain_network():
    model = finished('condensenetv2_a').double().train()
    plain, x = restated(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert formats_seen(plain, x) == ({False}, {False})
    outputs = []
    for network in (model, plain):
        outputs.append(network(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    ours, theirs = dict(model.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-8, atol=1e-10)
