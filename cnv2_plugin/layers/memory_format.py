"""A spatial group convolution that stores its features position by position where a CPU trains it faster so."""

from typing import Any, Optional, Union

import torch
from torch import Tensor, fx, nn

Sizes = tuple[int, ...]
Padding = Union[str, Sizes]

fx.wrap('trained_on_cpu')


class SpatialGroupConv2d(nn.Conv2d):
    """An ``nn.Conv2d`` that reads channels-last features while a CPU trains it; nothing else differs.

    PyTorch's CPU kernels take several times as long for the gradients of spatial convolutions whose groups have few
    outputs when features are contiguous as when they are stored channels last. The result is stored as the input was.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, I, H, W)`` to ``(N, O, H', W')``."""
        if not torch.jit.is_scripting():
            if self.training and self.bias is None and self.padding_mode == 'zeros':
                return trained_on_cpu(x, self.weight, self.stride, self.padding, self.dilation, self.groups)
        return self._conv_forward(x, self.weight, self.bias)

    def switch_to_deploy(self) -> None:
        """Become a plain ``nn.Conv2d``, which tools that go by the exact type know; does nothing to a subclass."""
        if type(self) is SpatialGroupConv2d:
            plain: Any = nn.Conv2d
            self.__class__ = plain


def trained_on_cpu(x: Tensor, weight: Tensor, stride: Sizes, padding: Padding, dilation: Sizes, groups: int) -> Tensor:
    """The convolution of ``(N, I, H, W)``, computed channels last where a CPU will be asked for gradients."""
    if torch.is_grad_enabled() and x.device.type == 'cpu' and x.is_contiguous():
        return _ChannelsLastConv.apply(x, weight, stride, padding, dilation, groups)
    return nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups)


class _ChannelsLastConv(torch.autograd.Function):
    """Makes the copy once in each direction, so that the activation in front and this share what they save.

    A plain copy is as fast, but a training step of condensenetv2_a, _b and _c then takes 8 % more memory at its peak.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: Sizes, padding: Padding, dilation: Sizes, groups: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, *ctx.arguments = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Optional[Tensor], ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.arguments
        stored, given = (t.to(gradient.dtype).contiguous(memory_format=torch.channels_last) for t in (x, gradient))
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            given, stored, weight.to(gradient.dtype), None, stride, padding, dilation, False, [0, 0], groups,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False],
        )  # fmt: skip
        of_x = None if of_x is None else of_x.contiguous().to(x.dtype)
        return of_x, None if of_weight is None else of_weight.to(weight.dtype), None, None, None, None
