"""Parameters and multiply-adds, plain and in the authors' way of counting."""

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from ..layers import ChannelScatterSum, GroupSparseConv2d, SqueezeExcite
from ..layers.known import is_exactly
from ..models.modes import in_eval
from ..models.multiply_adds import counted

KEEPING_SHAPE = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.SiLU, nn.BatchNorm2d)
"""Modules without multiply-adds of which only the shape of the result matters here."""


@dataclass(frozen=True)
class Cost:
    """Parameters of a model, and what one image costs.

    Attributes:
        params: all parameters of the model as it is.
        params_pruned: parameters without the weights that pruning removes (the same in condensed form).
        buffers: elements of all buffers: running statistics, masks, indices.
        mult_adds: multiply-adds of convolutions and linear layers, as executed (not FLOPs: one multiply-add is two).
        mult_adds_pruned: the same without pruned weights.
        index_additions: additions of the index layers (condensed form; no multiplications).
        authors_count: the authors' count: multiply-adds of pruned layers divided by their factor, plus one operation an
            element of ReLU and hard-swish, two of sigmoid, and the pooled elements of average pools
            (squeeze-and-excitation's too).
    """

    params: int
    params_pruned: int
    buffers: int
    mult_adds: int
    mult_adds_pruned: int
    index_additions: int
    authors_count: int

    @property
    def pruned(self) -> 'Cost':
        """The same without what pruning removes."""
        return replace(self, params=self.params_pruned, mult_adds=self.mult_adds_pruned)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def cost_table(forms: Mapping[str, Cost]) -> tuple[list[str], list[list[str]]]:
    """Header and rows that compare the cost of forms, by name."""
    costs = forms.values()
    rows = [
        ['parameters', *(f'{cost.params:,}' for cost in costs)],
        ['parameters (M)', *(f'{cost.params / 1e6:.2f}' for cost in costs)],
        ['buffer elements', *(f'{cost.buffers:,}' for cost in costs)],
        ['multiply-adds (M)', *(f'{cost.mult_adds / 1e6:.2f}' for cost in costs)],
        ['index-layer additions (M)', *(f'{cost.index_additions / 1e6:.2f}' for cost in costs)],
        ["authors' counting (M)", *(f'{cost.authors_count / 1e6:.2f}' for cost in costs)],
    ]
    return ['', *forms], rows


def count_cost(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224), linear_bias: bool = False) -> Cost:
    """Count a model in training or condensed form.

    Runs on the meta device, so that nothing is computed.

    Args:
        model: left as it is.
        input_size: ``(C, H, W)`` of one image.
        linear_bias: count the biases of linear layers in the authors' way (CondenseNet's counter does, CondenseNetV2's
            does not).
    """
    shadow = in_eval(deepcopy(model))
    shadow.to('meta')
    sums: Counter = Counter()  # what torch's counter leaves out

    def visit(module: nn.Module, inputs: tuple, output: Any) -> None:
        if isinstance(module, (nn.ReLU, nn.ReLU6, nn.Hardswish)):
            sums['authors'] += output.numel()
        elif isinstance(module, nn.Sigmoid):
            sums['authors'] += 2 * output.numel()
        elif isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d, SqueezeExcite)):
            sums['authors'] += inputs[0].numel()
        elif isinstance(module, nn.Linear) and linear_bias and module.bias is not None:
            sums['authors'] += output.numel()
        elif isinstance(module, ChannelScatterSum):
            sums['index_additions'] += inputs[0].numel()
        elif isinstance(module, GroupSparseConv2d) and module.state == 'masked':
            weights, positions = module.conv.weight.numel(), output.shape[-2] * output.shape[-1]
            pruned = weights - weights * module.kept_per_group() // module.num_units
            sums['pruned_weights'] += pruned
            sums['pruned_mult_adds'] += pruned * positions
            sums['authors'] -= weights * (1 - 1 / module.factor) * positions

    for module in shadow.modules():
        if is_exactly(module, *KEEPING_SHAPE):
            module.forward = nn.Identity().forward  # type: ignore[method-assign]  # the meta device is slow at these
        module.register_forward_hook(visit)
    dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)
    image = torch.empty(1, *input_size, dtype=dtype, device='meta')
    _, mult_adds = counted(shadow, lambda: shadow(image))
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(
        params=params,
        params_pruned=params - sums['pruned_weights'],
        buffers=sum(buffer.numel() for buffer in model.buffers()),
        mult_adds=mult_adds,
        mult_adds_pruned=mult_adds - sums['pruned_mult_adds'],
        index_additions=sums['index_additions'],
        authors_count=round(mult_adds + sums['authors']),
    )
