"""The forms of one network that the benchmark compares; each is made from a finished model in training form.

Every form takes the model, ``(C, H, W)`` and the runtime that it is made for.
"""

from collections.abc import Callable
from copy import deepcopy

from torch import nn

from ..deploy.condense import condense
from ..deploy.lower import lower
from ..layers import GroupSparseConv2d
from ..models.modes import in_eval

Size = tuple[int, int, int]


def training(model: nn.Module, input_size: Size, runtime: str) -> nn.Module:
    """Dense convolutions whose pruned weights are zero: the training form with its masks folded into constants."""
    folded = in_eval(deepcopy(model))
    for layer in folded.modules():
        if isinstance(layer, GroupSparseConv2d) and not layer.deploy:
            layer.conv = layer.dense_conv()
            del layer.mask, layer.stage, layer.kept
            layer.state = 'condensed'
    return folded


FORMS: dict[str, Callable[[nn.Module, Size, str], nn.Module]] = {
    'training': training,
    'condensed': lambda model, input_size, runtime: in_eval(condense(model)),
    'lowered': lower,
    'native': lambda model, input_size, runtime: lower(model, input_size, 'native'),
}
"""Dense convolutions with zeros; group convolutions between gathers; every layer lowered; stages in the kernels."""

EARLIER_NAMES = {'optimised': 'lowered'}
"""Names that forms had."""
