"""Squeeze-and-excitation with bias-free linear layers, as CondenseNetV2 uses it (paper section 4.2)."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.types import Device


class SqueezeExcite(nn.Module):
    """Scale every channel by ``sigmoid(fc2(relu(fc1(mean over H and W))))``.

    Args:
        channels: number of channels ``C``.
        hidden: width between the two linear layers.
    """

    def __init__(self, channels: int, hidden: int, device: Device = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden, bias=False, device=device, dtype=dtype)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(hidden, channels, bias=False, device=device, dtype=dtype)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        scale = self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3))))))
        return x * scale.unsqueeze(-1).unsqueeze(-1)
