"""The forms of one network that the benchmark compares; each is made from a finished model in training form.

Every form takes the model, ``(C, H, W)``, the runtime that it is made for and the form by layer where it was tuned;
only the optimised one looks at more than the model.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Optional

import torch
from torch import Tensor, nn

from ..deploy.condense import condense
from ..layers import ChannelScatterSum, GroupSparseConv2d
from ..lowering import lower

Size = tuple[int, int, int]
Choices = Optional[Mapping[str, str]]


def training(model: nn.Module, input_size: Size, runtime: str, choices: Choices) -> nn.Module:
    """Dense convolutions whose pruned weights are zero: the training form with its masks folded into constants."""
    folded = deepcopy(model).eval()
    for layer in folded.modules():
        if isinstance(layer, GroupSparseConv2d) and not layer.deploy:
            layer.conv.weight.data = layer.masked_weight().detach()
            del layer.mask, layer.stage
            layer.deploy = True
    return folded


class IndexMatrix(nn.Module):
    """The authors' index layer, restated: the product with a dense 0/1 matrix ``(rows, channels)``.

    Args:
        scatter: the index layer to restate.
    """

    def __init__(self, scatter: ChannelScatterSum) -> None:
        super().__init__()
        matrix = torch.zeros(scatter.index.numel(), scatter.out_channels)
        matrix[torch.arange(scatter.index.numel()), scatter.index] = 1
        self.register_buffer('matrix', matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, rows, H, W)`` to ``(N, channels, H, W)``."""
        height, width = x.shape[2:]
        rows = x.reshape(-1, self.matrix.size(0), height * width).transpose(1, 2)
        return (rows @ self.matrix).transpose(1, 2).reshape(-1, self.matrix.size(1), height, width)


def authors(model: nn.Module, input_size: Size, runtime: str, choices: Choices) -> nn.Module:
    """The authors' converted form, restated: gather, group convolution, and a dense index matrix behind every SFR."""
    dtype = next(model.parameters()).dtype
    return _replaced(condense(model).eval(), ChannelScatterSum, lambda scatter: IndexMatrix(scatter).to(dtype))


def condensed(model: nn.Module, input_size: Size, runtime: str, choices: Choices) -> nn.Module:
    """Group convolutions between gathers, as ``cnv2_plugin.deploy.condense`` makes them."""
    return condense(model).eval()


def optimised(model: nn.Module, input_size: Size, runtime: str, choices: Choices) -> nn.Module:
    """Every layer in its fastest exact form, as ``cnv2_plugin.deploy.lower`` chooses it."""
    return lower(model, input_size, runtime, choices)


def native(model: nn.Module, input_size: Size, runtime: str, choices: Choices) -> nn.Module:
    """Stages in the native kernels."""
    return lower(model, input_size, 'native')


def _replaced(model: nn.Module, kind: type, by: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, by(child))
    return model


FORMS: dict[str, Callable[[nn.Module, Size, str, Choices], nn.Module]] = {
    'authors': authors,
    'training': training,
    'condensed': condensed,
    'optimised': optimised,
    'native': native,
}
