"""Spatial group convolutions see channels-last features where a CPU trains them, and nothing else changes."""

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnv2_plugin.layers import SpatialGroupConv2d
from cnv2_plugin.sparsify import pack_model
from tools.research.authors_form import restated


def finished(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    for layer in model.sparse_layers():
        layer.prune_to(layer.num_stages)
    return model


class Formats(TorchDispatchMode):
    """Notes whether the 3x3 group convolutions that PyTorch computes read and write channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default and args[1].shape[-1] == 3 and args[-1] > 1:
            self.inputs.add(args[0].is_contiguous(memory_format=torch.channels_last))
            self.outputs.add(result.is_contiguous(memory_format=torch.channels_last))
        return result


def formats_seen(model: nn.Module, x: torch.Tensor) -> tuple[set, set]:
    """Whether inputs and outputs of the 3x3 group convolutions are channels last inside PyTorch."""
    with Formats() as formats:
        model(x)
    return formats.inputs, formats.outputs


def stored_outside(model: nn.Module, x: torch.Tensor) -> set:
    """Whether what leaves the 3x3 group convolutions is stored contiguously."""
    contiguous = set()
    hooks = [
        module.register_forward_hook(lambda module, given, result: contiguous.add(result.is_contiguous()))
        for module in model.modules()
        if isinstance(module, SpatialGroupConv2d)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return contiguous


@pytest.mark.parametrize('packed', [False, True])
def test_only_training_on_the_cpu_stores_channels_last(packed):
    model, x = finished('condensenetv2_a'), torch.randn(2, 3, 64, 64)
    if packed:
        pack_model(model)
    assert formats_seen(model.train(), x) == ({True}, {True})
    assert stored_outside(model, x) == {True}
    assert stored_outside(model, x.contiguous(memory_format=torch.channels_last)) == {False}
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
