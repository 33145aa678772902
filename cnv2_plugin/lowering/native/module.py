"""What takes the place of parts of a model that the native kernels compute."""

from typing import Optional

from torch import Tensor, nn

from ...kernels.operator import native_stages
from ...kernels.plan import Plan


class DeferredConv2d(nn.Conv2d):
    """A first convolution that the native kernels of the stages behind it compute; passes images on.

    Args:
        conv: the convolution, whose weight is kept for what asks for the images' channels and type.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 1, bias=False, device='meta')
        self.weight = conv.weight
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C, H, W)`` as it is."""
        return x


class NativeStages(nn.Module):
    """A part of a network that runs in the native kernels: float32 on the CPU, inference only.

    Args:
        plan: what to run.
        changes: of height and width, in the numbers of :data:`~cnv2_plugin.kernels.operator.native_stages`.
        weights: those of the plan, where several plans share them.
        saved: with the model, and told of among its forms; not where others compute the same from the same weights.
    """

    weights: Tensor
    plan: Tensor

    def __init__(self, plan: Plan, changes: list[int], weights: Optional[Tensor] = None, saved: bool = True) -> None:
        super().__init__()
        self.register_buffer('weights', plan.weights() if weights is None else weights, saved)
        self.register_buffer('plan', plan.words(), saved)
        self.shape = [plan.out_channels, *changes]
        self.choices = {'.': 'native'} if saved else {}

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the result of the part."""
        return native_stages(x, self.weights, self.plan, self.shape)

    def extra_repr(self) -> str:
        return f'weights={self.weights.numel()}, words={self.plan.numel()}, out_channels={self.shape[0]}'
