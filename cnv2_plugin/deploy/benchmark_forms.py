"""The forms of one network that the benchmark compares; each is made from a finished model in training form."""

from collections.abc import Callable
from copy import deepcopy

from torch import nn

from ..layers import GroupSparseConv2d
from .condense import condense
from .lowering import lower


def training(model: nn.Module) -> nn.Module:
    """Dense convolutions whose pruned weights are zero: the training form with its masks folded into constants."""
    folded = deepcopy(model).eval()
    for layer in folded.modules():
        if isinstance(layer, GroupSparseConv2d) and not layer.deploy:
            layer.conv.weight.data = layer.masked_weight().detach()
            del layer.mask, layer.stage
            layer.deploy = True
    return folded


def condensed(model: nn.Module) -> nn.Module:
    """Group convolutions between gathers, as ``cnv2_plugin.deploy.condense`` makes them."""
    return condense(model).eval()


def optimised(model: nn.Module) -> nn.Module:
    """Every layer in its fastest exact form, as ``cnv2_plugin.deploy.lower`` chooses it."""
    return lower(model)


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    'training': training,
    'condensed': condensed,
    'optimised': optimised,
}
