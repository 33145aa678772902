"""The integers that convolutions of bytes compute with: unsigned bytes of activations, 7-bit weights.

Layers that read one pixel have weights of bytes alone, of 8 bits.
"""

import torch
from torch import Tensor

from .opcodes import MOST_LONE_WEIGHT, MOST_WEIGHT


def step_and_zero(limits: tuple[float, ...]) -> tuple[float, int]:
    """The step between bytes, and the byte that stands for zero, of values between two limits and zero."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    step = (high - low) / 255
    if not step > 1e-30:
        return 1.0, 0
    return 1 / float(torch.tensor(1 / step)), round(-low / step)  # the kernels know the step by its inverse


def quantise_rows(weight: Tensor, most: int = MOST_WEIGHT) -> tuple[Tensor, Tensor]:
    """Weights ``(..., inputs)`` as whole numbers up to ``most``, and the scale ``(...)`` of each row."""
    weight = weight.double()
    scale = weight.abs().amax(-1) / most
    scale = torch.where(scale > 1e-30, scale, torch.ones_like(scale))
    return (weight / scale.unsqueeze(-1)).round(), scale


def in_words(values: Tensor) -> Tensor:
    """Bytes ``(groups, rows, inputs, taps)`` as words ``(groups, inputs / 4, taps, rows)``, filled up with zeros."""
    filled = torch.nn.functional.pad(values.transpose(2, 3), (0, -values.size(2) % 4)).to(torch.int8)
    return filled.flatten().view(torch.int32).view(*filled.shape[:3], -1).permute(0, 3, 2, 1)


def row_of_words(values: Tensor) -> list[int]:
    """Bytes one behind the other as words of four, filled up with zeros."""
    return in_words(values.reshape(1, 1, -1, 1)).flatten().tolist()


def rounded_inputs(x: Tensor, limits: tuple[float, ...]) -> Tensor:
    """Inputs as the kernels see them: in steps between two limits."""
    step, zero = step_and_zero(limits)
    return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step


def rounded_weight(weight: Tensor, alone: bool = False) -> Tensor:
    """The weight ``(O, I, ...)`` of a layer as the kernels see it; ``alone``: inputs are not rounded."""
    values, scale = quantise_rows(weight.flatten(1), MOST_LONE_WEIGHT if alone else MOST_WEIGHT)
    return (values * scale.unsqueeze(1)).view(weight.shape).to(weight.dtype)
