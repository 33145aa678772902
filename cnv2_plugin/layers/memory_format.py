"""A spatial group convolution that stores its features position by position where a CPU trains it faster so."""

import torch
from torch import Tensor, fx, nn

fx.wrap('channels_last_to_train')
fx.wrap('stored_like')


class SpatialGroupConv2d(nn.Conv2d):
    """An ``nn.Conv2d`` that reads channels-last features while a CPU trains it; nothing else differs.

    PyTorch's CPU kernels take several times as long for the gradients of spatial convolutions whose groups have few
    outputs when features are contiguous as when they are stored channels last. The result is stored as the input was.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, I, H, W)`` to ``(N, O, H', W')``."""
        y = self._conv_forward(channels_last_to_train(x, self.training), self.weight, self.bias)
        return stored_like(y, x)


def channels_last_to_train(x: Tensor, training: bool) -> Tensor:
    """Features ``(N, C, H, W)``, stored channels last where a CPU will be asked for gradients; else as they are."""
    if training and torch.is_grad_enabled() and x.device.type == 'cpu':
        return x.contiguous(memory_format=torch.channels_last)
    return x


def stored_like(x: Tensor, reference: Tensor) -> Tensor:
    """``x``, stored contiguously if ``reference`` is."""
    return x.contiguous() if reference.is_contiguous() else x
