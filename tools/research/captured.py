"""One training step of a small network as a CUDA graph: most of its time on a GPU is otherwise spent on launching."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class CapturedStep:
    """Forward and backward pass, recorded once and replayed; gradients are overwritten by every call.

    Masks, weights and statistics may change in place between calls; other parameters or shapes need a new recording.
    Some steps have to be taken before, without it, so that nothing is initialised while it records.

    Args:
        loss_of: loss of images and labels.
        parameters: what gets gradients.
        images: ``(N, C, H, W)`` on the GPU, of the size of every later batch.
        labels: ``(N,)``.
    """

    def __init__(
        self, loss_of: Callable[[Tensor, Tensor], Tensor], parameters: Iterable[nn.Parameter], images: Tensor,
        labels: Tensor,
    ) -> None:  # fmt: skip
        self.images, self.labels = images.clone(), labels.clone()
        for parameter in parameters:
            parameter.grad = None
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            loss = loss_of(self.images, self.labels)
            loss.backward()
        self.loss = loss.detach()

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Leave gradients of a batch in the parameters; returns its loss, which the next call overwrites."""
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.loss
