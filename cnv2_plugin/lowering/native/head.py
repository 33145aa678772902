"""Pooling and head of a classifier as one plan."""

from contextlib import ExitStack
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from ...kernels.operator import TO_ONE_PIXEL
from ...kernels.plan import Plan
from ...layers import SqueezeExcite
from .layers import UnsupportedError, act_number
from .module import NativeStages
from .stem import HIDDEN_SLOT

KINDS: tuple[tuple[type, ...], ...] = (
    (nn.AdaptiveAvgPool2d,),
    (SqueezeExcite,),
    (nn.Conv2d,),
    (nn.ReLU, nn.ReLU6, nn.Hardswish),
)
"""Types of the modules of a head, in order."""


class Head(NamedTuple):
    """The modules behind the last normalisation of a classifier, in the order in which they follow one another.

    Attributes:
        pool: global average pooling.
        excite: squeeze-and-excitation of the pooled features.
        conv: 1x1 convolution of the pooled features.
        act: activation behind it.
    """

    pool: nn.AdaptiveAvgPool2d
    excite: SqueezeExcite
    conv: nn.Conv2d
    act: nn.Module


def find_head(model: nn.Module, after: nn.Module, example: Tensor) -> Optional[Head]:
    """The head of a model, found by running it: each module is given just what the one before returned.

    Args:
        model: in evaluation mode.
        after: the module in front of the pooling.
        example: images ``(N, C, H, W)``.

    Returns:
        The head, or None where another order of modules follows.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls.append((module, inputs[0], output))

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if module is after or isinstance(module, sum(KINDS, ())):
                hooks.enter_context(module.register_forward_hook(note))
        model(example)
    result = next((output for module, _, output in calls if module is after), None)
    chain: list[nn.Module] = []
    for kinds in KINDS:
        readers = [(module, output) for module, given, output in calls if given is result and type(module) in kinds]
        if len(readers) != 1:
            return None
        module, result = readers[0]
        chain.append(module)
    pool, excite, conv, act = chain
    assert isinstance(pool, nn.AdaptiveAvgPool2d) and isinstance(excite, SqueezeExcite) and isinstance(conv, nn.Conv2d)
    return Head(pool, excite, conv, act)


def native_head(head: Head, weights: Optional[Tensor] = None) -> Optional[NativeStages]:
    """Pooling and head in one operator, or None where the kernels do not compute it.

    Args:
        head: of a model.
        weights: those of the plan, where they are there already.
    """
    plan = Plan(head.conv.in_channels, head.conv.out_channels)
    features = plan.add_map(head.conv.in_channels, 0)
    plan.load(features)
    try:
        add_head(plan, head, features)
    except UnsupportedError:
        return None
    return NativeStages(plan, [TO_ONE_PIXEL], weights)


def add_head(plan: Plan, head: Head, features: int) -> None:
    """Pooling and head of a map of features, as the plan's result.

    Raises:
        UnsupportedError: the kernels do not compute it.
    """
    pool, excite, conv, act = head
    pointwise = conv.kernel_size == (1, 1) and conv.groups == 1 and conv.stride == (1, 1) and conv.padding == (0, 0)
    if pool.output_size not in (1, (1, 1)) or not pointwise:
        raise UnsupportedError
    pooled, result = plan.add_map(conv.in_channels, HIDDEN_SLOT), plan.add_map(conv.out_channels, HIDDEN_SLOT + 1)
    plan.average(features, pooled)
    plan.excite(pooled, 0, excite.fc1.weight, excite.fc2.weight)
    plan.linear(pooled, result, conv.weight.flatten(1), conv.bias, act_number(act))
    plan.store(result, range(conv.out_channels))
