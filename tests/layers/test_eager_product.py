"""Condensed layers as PyTorch computes them on a CPU: products instead of narrow group convolutions, nothing else."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation

from ..helpers import finish_pruning, randomize_norms

LAYERS = dict(
    lgc=lambda: LearnedGroupConv(16, 24, 4, 4),
    sfr=lambda: SparseFeatureReactivation(16, 24, 4, 4),
    plain=lambda: GroupSparseConv2d(16, 24, 4, 4, bias=True),
    strided=lambda: GroupSparseConv2d(16, 24, 4, 4, stride=2),
)


class Operators(TorchDispatchMode):
    """The operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def convolves(self):
        return any('conv' in name for name in self.names)


def condensed(name):
    torch.manual_seed(0)
    layer = finish_pruning(randomize_norms(LAYERS[name]())).double().eval()
    twin = copy.deepcopy(layer)
    twin.switch_to_deploy()
    return layer, twin


def images(batch=2):
    return torch.randn(batch, 16, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.smoke
@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('batch', [0, 1, 3])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_the_function_is_that_of_the_masked_layer(name, batch, memory_format):
    masked, layer = condensed(name)
    x = images(batch).contiguous(memory_format=memory_format)
    torch.testing.assert_close(layer(x.clone()), masked(x.clone()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name', ['lgc', 'sfr', 'plain'])
def test_gradients_are_those_of_the_convolution(name):
    _, layer = condensed(name)
    twin = copy.deepcopy(layer)
    twin.conv.register_forward_hook(lambda module, args, output: None)
    found = []
    for each in (layer, twin):
        x = images().requires_grad_()
        each(x).square().sum().backward()
        found.append((x.grad, *(parameter.grad for parameter in each.parameters())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('name', ['lgc', 'sfr', 'plain'])
def test_only_evaluation_that_nobody_watches_takes_products(name):
    _, layer = condensed(name)
    with Operators() as ran, torch.no_grad():
        layer(images())
    assert not ran.convolves
    for change in (
        lambda each: each.train(),
        lambda each: each.conv.register_forward_hook(lambda module, args, output: None),
        lambda each: each.conv.register_forward_pre_hook(lambda module, args: None),
        lambda each: setattr(each.conv, '__class__', type('Other', (nn.Conv2d,), {})),
    ):
        changed = copy.deepcopy(layer)
        change(changed)
        with Operators() as ran, torch.no_grad():
            changed(images())
        assert ran.convolves


def test_a_weight_that_changes_in_place_is_seen():
    _, layer = condensed('lgc')
    before = layer(images())
    layer.conv.weight.data.mul_(2)
    torch.testing.assert_close(layer(images()), 2 * before)


@pytest.mark.parametrize('name', ['lgc', 'sfr', 'plain'])
def test_graphs_hold_the_group_convolution(name):
    _, layer = condensed(name)
    x = images()
    graphs = [
        torch.jit.trace(layer, x).inlined_graph,
        torch.export.export(layer, (x,)).graph,
        fx.symbolic_trace(layer).graph,
    ]
    assert all('conv' in str(graph) and 'matmul' not in str(graph) for graph in graphs)
