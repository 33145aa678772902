"""The forms of one network that the benchmark compares; each is made from a finished model in training form.

Every form takes the model, ``(C, H, W)`` and the runtime that it is made for.
"""

from collections.abc import Callable
from copy import deepcopy

from torch import nn

from ..deploy.condense import condense
from ..deploy.lower import lower
from ..layers import GroupSparseConv2d

Size = tuple[int, int, int]


def training(model: nn.Module, input_size: Size, runtime: str) -> nn.Module:
    """Dense convolutions whose pruned weights are zero: the training form with its masks folded into constants."""
    folded = deepcopy(model).eval()
    for layer in folded.modules():
        if isinstance(layer, GroupSparseConv2d) and not layer.deploy:
            layer.conv.weight.data = layer.masked_weight().detach()
            del layer.mask, layer.stage, layer.kept
            layer.state = 'condensed'
    return folded


def condensed(model: nn.Module, input_size: Size, runtime: str) -> nn.Module:
    """Group convolutions between gathers, as ``cnv2_plugin.deploy.condense`` makes them."""
    return condense(model).eval()


def optimised(model: nn.Module, input_size: Size, runtime: str) -> nn.Module:
    """Every layer in its fastest exact form, as ``cnv2_plugin.deploy.lower`` chooses it."""
    return lower(model, input_size, runtime)


def native(model: nn.Module, input_size: Size, runtime: str) -> nn.Module:
    """Stages in the native kernels."""
    return lower(model, input_size, 'native')


FORMS: dict[str, Callable[[nn.Module, Size, str], nn.Module]] = {
    'training': training,
    'condensed': condensed,
    'optimised': optimised,
    'native': native,
}
