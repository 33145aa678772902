"""Packed layers choose a product per group or a dense convolution by the width of a group; both compute the same."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cnv2_plugin.layers import LearnedGroupConv, SparseFeatureReactivation
from cnv2_plugin.sparsify import pack_model
from tests.helpers import finish_pruning, randomize_norms, relative_difference


class Operators(TorchDispatchMode):
    """Notes the names of what PyTorch computes."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def layer_with(side, columns):
    """A finished layer whose groups read so many inputs."""
    torch.manual_seed(0)
    made = (
        LearnedGroupConv(2 * columns, 8, groups=4, factor=2)
        if side == 'outputs'
        else SparseFeatureReactivation(4 * columns, 8, groups=4, factor=2)
    )
    return finish_pruning(randomize_norms(made)).eval().double()


@pytest.mark.parametrize(
    ('side', 'columns', 'channels_last', 'by_group'),
    [
        ('outputs', 3, False, False),
        ('outputs', 4, False, True),
        ('inputs', 3, False, False),
        ('inputs', 4, False, True),
        ('outputs', 31, True, False),
        ('outputs', 32, True, True),
        ('inputs', 15, True, False),
        ('inputs', 16, True, True),
    ],
)
def test_wide_groups_are_multiplied_one_by_one_and_narrow_ones_as_a_dense_convolution(
    side, columns, channels_last, by_group
):
    layer = layer_with(side, columns)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, layer.in_channels, 5, 7, dtype=torch.float64).contiguous(memory_format=memory_format)
    with torch.no_grad():
        expected = layer(x)
        pack_model(layer)
        with Operators() as seen:
            result = layer(x)
    assert relative_difference(result, expected) < 1e-12
    assert ('aten.convolution.default' not in seen.names) == by_group
    if by_group:
        assert result.is_contiguous(memory_format=memory_format)
        assert 'aten.bmm.default' in seen.names


def test_defaults_of_the_layers_are_those_of_the_papers():
    reactivation, learned = SparseFeatureReactivation(64, 32), LearnedGroupConv(64, 32)
    assert (reactivation.groups, reactivation.factor) == (8, 8) and learned.factor == learned.groups
