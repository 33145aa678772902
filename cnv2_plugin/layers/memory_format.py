"""Storing features position by position where the CPU trains group convolutions faster so."""

import torch
from torch import Tensor


def trains_on_cpu(x: Tensor, training: bool) -> bool:
    """Whether a CPU will be asked for the gradients of what reads ``x``.

    PyTorch's CPU kernels take several times as long for the gradients of spatial convolutions whose groups have few
    outputs when features are contiguous as when they are stored channels last.

    Args:
        x: features.
        training: mode of the module that asks.
    """
    return training and torch.is_grad_enabled() and x.device.type == 'cpu'


def channels_last_to_train(x: Tensor, training: bool) -> Tensor:
    """Features ``(N, C, H, W)``, stored channels last where :func:`trains_on_cpu`; else as they are."""
    return x.contiguous(memory_format=torch.channels_last) if trains_on_cpu(x, training) else x


def stored_like(x: Tensor, reference: Tensor) -> Tensor:
    """``x``, stored contiguously if ``reference`` is."""
    return x.contiguous() if reference.is_contiguous() else x
