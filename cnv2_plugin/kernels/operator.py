"""The kernels as a PyTorch operator, ``torch.ops.cnv2_plugin.native_stages``."""

from typing import Any

import torch
from torch import Tensor

from .library import run
from .opcodes import CHANGES

NAME = 'cnv2_plugin::native_stages'

# Bare registration: around every call torch.library.custom_op does in Python what takes as long as a layer.
torch.library.define(NAME, '(Tensor images, Tensor weights, Tensor plan, int[] shape) -> Tensor')
native_stages = torch.ops.cnv2_plugin.native_stages.default
"""Run a program on images.

Args:
    images: float32 ``(N, C, H, W)``.
    weights: float32, as :meth:`.program.Program.weights` gives them.
    plan: the program, int32, as :meth:`.program.Program.words` gives it.
    shape: channels of the result, then how height and width change: 0 for halves rounded down, 1 for halves
        rounded up, 2 for one pixel.

Raises:
    ValueError: a tensor has another type, or the program does not fit the images.
"""


@torch.library.impl(NAME, 'cpu')
def _(images: Tensor, weights: Tensor, plan: Tensor, shape: list[int]) -> Tensor:
    _check('images', images, torch.float32, 4)
    _check('weights', weights, torch.float32, 1)
    _check('plan', plan, torch.int32, 1)
    result = images.new_empty(_result_shape(images, shape))
    run(plan.contiguous(), weights.contiguous(), images.contiguous(), result, torch.get_num_threads())
    return result


@torch.library.register_fake(NAME)
def _(images: Tensor, weights: Tensor, plan: Tensor, shape: list[int]) -> Tensor:
    return images.new_empty(_result_shape(images, shape))


def _refuse_gradients(context: Any, gradient: Tensor) -> None:
    raise RuntimeError(
        'the native kernels have no gradients; train the model before it is lowered, or lower it without '
        'runtime="native".'
    )


torch.library.register_autograd(NAME, _refuse_gradients)


def _result_shape(images: Tensor, shape: list[int]) -> tuple:
    channels, *changes = shape
    height, width = images.shape[2:]
    for change in changes:
        height, width = (1, 1) if change == CHANGES['ToOnePixel'] else ((height + change) // 2, (width + change) // 2)
    return images.size(0), channels, height, width


def _check(name: str, tensor: Tensor, dtype: torch.dtype, rank: int) -> None:
    if tensor.dtype != dtype or tensor.ndim != rank:
        raise ValueError(
            f'{name} are {tensor.dtype} with {tensor.ndim} dimensions; the native kernels take {dtype} with {rank}, '
            f'so convert them with .to({dtype}), or lower the model without runtime="native".'
        )
