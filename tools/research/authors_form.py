"""The authors' training and converted forms, restated plainly, as a yardstick for ours.

Theirs keeps the mask as floats of the weight's size, multiplies by it in every forward pass, and in every forward pass
of every layer also works out from the global progress which stage it should be in.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnv2_plugin.benchmark.forms import Size
from cnv2_plugin.deploy.condense import condense
from cnv2_plugin.layers import (
    ChannelScatterSum,
    GroupSparseConv2d,
    LearnedGroupConv,
    SparseFeatureReactivation,
    SpatialGroupConv2d,
)


class Progress:
    """Share of training done, which every layer looks up in every forward pass."""

    value: float = 0.0


class RestatedLayer(nn.Module):
    """BN -> activation -> stage check -> weight times float mask -> 1x1 convolution.

    Args:
        layer: layer in our masked training form; its parts are taken over.
        progress: what the stage is worked out from.
    """

    def __init__(self, layer: GroupSparseConv2d, progress: Progress) -> None:
        super().__init__()
        self.norm = layer.norm
        self.act = layer.act
        self.drop_rate = layer.drop.p
        self.conv = layer.conv
        self.num_stages = layer.num_stages
        self.progress = progress
        self.register_buffer('mask', layer.mask.to(layer.conv.weight.dtype))
        self.register_buffer('stage', layer.stage.float().reshape(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, I, H, W)`` to ``(N, O, H, W)``."""
        self.check_stage()
        x = self.act(self.norm(x))
        if self.drop_rate > 0:
            x = F.dropout(x, self.drop_rate, self.training)
        return F.conv2d(x, self.conv.weight * self.mask)

    def check_stage(self) -> None:
        """Compare the stage that is due with the one done."""
        due = sum(self.progress.value * 2 * self.num_stages >= i for i in range(1, self.num_stages + 1))
        if bool((self.stage < due).all()):
            raise RuntimeError('The restated form measures training between two stages; it does not prune.')


def restated(model: nn.Module) -> nn.Module:
    """A copy of a model in masked training form whose sparse layers are in the authors' form, the others plain."""
    model, progress = deepcopy(model), Progress()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (LearnedGroupConv, SparseFeatureReactivation)):
                setattr(parent, name, RestatedLayer(child, progress))
    for module in model.modules():
        if isinstance(module, SpatialGroupConv2d):
            module.__class__ = nn.Conv2d
    return model


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


def authors(model: nn.Module, input_size: Size, runtime: str) -> nn.Module:
    """The authors' converted form, restated: gather, group convolution, and a dense index matrix behind every SFR."""
    dtype = next(model.parameters()).dtype
    return _replaced(condense(model).eval(), ChannelScatterSum, lambda scatter: IndexMatrix(scatter).to(dtype))


def _replaced(model: nn.Module, kind: type, by: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, by(child))
    return model
