"""The forms of one network that the benchmark compares; each is made from a finished model in training form.

Every form takes the model, ``(C, H, W)``, the runtime that it is made for and the form by layer where it was tuned;
only the optimised one looks at more than the model.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Optional

from torch import nn

from ..deploy.condense import condense
from ..layers import GroupSparseConv2d
from ..lowering import lower

Size = tuple[int, int, int]
Choices = Optional[Mapping[str, str]]


def training(model: nn.Module, input_size: Size, runtime: str, choices: Choices) -> nn.Module:
    """Dense convolutions whose pruned weights are zero: the training form with its masks folded into constants."""
    folded = deepcopy(model).eval()
    for layer in folded.modules():
        if isinstance(layer, GroupSparseConv2d) and not layer.deploy:
            layer.conv.weight.data = layer.masked_weight().detach()
            del layer.mask, layer.stage, layer.kept
            layer.state = 'condensed'
    return folded


def condensed(model: nn.Module, input_size: Size, runtime: str, choices: Choices) -> nn.Module:
    """Group convolutions between gathers, as ``cnv2_plugin.deploy.condense`` makes them."""
    return condense(model).eval()


def optimised(model: nn.Module, input_size: Size, runtime: str, choices: Choices) -> nn.Module:
    """Every layer in its fastest exact form, as ``cnv2_plugin.deploy.lower`` chooses it."""
    return lower(model, input_size, runtime, choices)


def native(model: nn.Module, input_size: Size, runtime: str, choices: Choices) -> nn.Module:
    """Stages in the native kernels."""
    return lower(model, input_size, 'native')


FORMS: dict[str, Callable[[nn.Module, Size, str, Choices], nn.Module]] = {
    'training': training,
    'condensed': condensed,
    'optimised': optimised,
    'native': native,
}
