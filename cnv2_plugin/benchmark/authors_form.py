"""The authors' training form, restated plainly, as a yardstick for ours.

Theirs keeps the mask as floats of the weight's size, multiplies by it in every forward pass, and in every forward pass
of every layer also works out from the global progress which stage it should be in.
"""

from copy import deepcopy

from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation, SpatialGroupConv2d


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
