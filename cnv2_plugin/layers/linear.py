"""Layers made of linear maps: squeeze-and-excitation, and CondenseNet's classifier after half of it is dropped."""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from .permute import index_fault


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


class SelectiveLinear(nn.Linear):
    """``y = W x[index] + b`` with a fixed choice of inputs.

    Args:
        in_features: inputs to choose from.
        kept: number of inputs that are read; ``weight`` is ``(out_features, kept)``.
        out_features: outputs.
        bias: adds a bias.

    Attributes:
        source_features: inputs to choose from.
        keep: share of them that is read.
        index: int64 buffer ``(kept,)``, the inputs that are read.

    Raises:
        ValueError: ``kept`` is not between 1 and ``in_features``.
    """

    index: Tensor

    def __init__(
        self, in_features: int, kept: int, out_features: int, bias: bool = True, device: Device = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:  # fmt: skip
        if not 1 <= kept <= in_features:
            raise ValueError(f'kept is {kept}; of {in_features} inputs it takes 1 to {in_features}.')
        super().__init__(kept, out_features, bias, device=device, dtype=dtype)
        self.source_features = in_features
        self.keep = kept / in_features
        self.register_buffer('index', torch.arange(kept, device=device))

    @classmethod
    def from_linear(cls, linear: nn.Linear, keep: float) -> 'SelectiveLinear':
        """Keep the share ``keep`` of a layer's inputs, those with the largest L1 norm; of equal ones the higher."""
        kept = max(1, int(linear.in_features * keep + 1e-6))
        weight = linear.weight.detach()
        layer = cls(linear.in_features, kept, linear.out_features, linear.bias is not None, weight.device, weight.dtype)
        importance = weight.double().abs().sum(0)
        index = importance.argsort(stable=True)[linear.in_features - kept :].sort().values
        with torch.no_grad():
            layer.index.copy_(index)
            layer.weight.copy_(weight[:, index])
            if linear.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        return F.linear(x.index_select(-1, self.index), self.weight, self.bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        if fault := index_fault(f'{prefix}index', state_dict.get(f'{prefix}index'), self.source_features):
            errors.append(fault)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)

    def extra_repr(self) -> str:
        return f'{self.source_features}, kept={self.in_features}, out_features={self.out_features}'
