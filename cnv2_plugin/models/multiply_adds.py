"""Multiply-adds of a forward pass: the one place where they are counted."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar('Result')


def counted(model: nn.Module, forward: Callable[[], Result]) -> tuple[Result, int]:
    """Run a model without gradients by ``forward``; return its result and the number of multiply-adds.

    Those of convolutions, matrix products and attention are counted as they are executed; one is two FLOPs. The model
    may lie on the meta device, where nothing is computed.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)  # the counter of PyTorch 2.4 asks weights that are inputs for their gradient
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            result = forward()
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
    return result, counter.get_total_flops() // 2


def count_mult_adds(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-adds of one image ``(C, H, W)`` of zeros, on the model's own device."""
    weight = next(model.parameters())
    image = torch.zeros(1, *input_size, dtype=weight.dtype, device=weight.device)
    return counted(model, lambda: model(image))[1]
