"""int8 in the native kernels: limits of what convolutions read, and what the rounded network computes.

Layers that read one pixel (squeeze-and-excitation, the head, the classifier) are bound by reading their weights: these
alone are rounded, and ``input_limits`` are ``()``.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Union

import numpy
import torch
from torch import Tensor, nn

from ..graph.module import LoweredGraph
from ..kernels.integers import rounded_inputs, rounded_weight
from ..kernels.opcodes import MOST_BYTE_INPUTS
from ..layers.known import is_exactly
from ..models.condense import condense
from ..models.modes import in_eval
from .verify import VerificationError

LEAST_INPUTS = {(1, 1): 16, (3, 3): 4}
"""Inputs of a group from which on a convolution is faster in bytes, by kernel size."""
SAMPLES = 8192
"""Values of an input that are looked at in one batch."""
SHARES = torch.linspace(0.3, 1, 15).tolist()
"""Shares of the largest value at which an input may be cut off."""
TIES = 0.05
"""Largest relative difference of two computations in int8: what lies between two bytes may be rounded up or down."""
MOST_NOISE = 0.25
"""Standard deviation of what int8 changes over that of the outputs, from which on nothing is written."""

Images = Sequence[Union[numpy.ndarray, Tensor]]


@torch.no_grad()
def calibrated(model: nn.Module, images: Images) -> nn.Module:
    """Return the condensed model with ``input_limits`` on the layers that may compute in bytes.

    Limits are the ones with the least squared error among shares of the largest values seen.

    Args:
        model: finished, in float32 on the CPU; left as it is.
        images: batches ``(N, C, H, W)`` as the network takes them.

    Raises:
        ValueError: there are no images, or they give NaN or infinite values.
    """
    if not len(images):
        raise ValueError('int8 holds no images; give some that look like those the network will see.')
    made = in_eval(condense(model))
    seen: dict[str, list[Tensor]] = {}
    of_one_pixel: set[str] = set()
    generator = torch.Generator().manual_seed(0)

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            conv = module if isinstance(module, nn.Conv2d) else None
            one_pixel = inputs[0].ndim == (4 if conv else 2) and inputs[0].shape[2:].numel() == 1
            if one_pixel and (conv is None or conv.kernel_size == (1, 1)):
                of_one_pixel.add(name)
            elif conv is not None and _is_wide(conv) and len(inputs[0]):
                values = inputs[0].flatten()
                some = values[torch.randint(len(values), (min(SAMPLES, len(values)),), generator=generator)]
                seen.setdefault(name, []).append(torch.cat((some, torch.stack(values.aminmax()))))

        return hook

    handles = [m.register_forward_pre_hook(look(name)) for name, m in made.named_modules() if _is_candidate(m)]
    for batch in images:
        made(torch.as_tensor(batch, dtype=torch.float32))
    for handle in handles:
        handle.remove()
    limits: dict[str, tuple[float, ...]] = dict.fromkeys(of_one_pixel, ())
    limits.update((name, _limits(name, torch.cat(values))) for name, values in seen.items())
    for name, pair in limits.items():
        layer: Any = made.get_submodule(name)
        layer.input_limits = pair
    return made


def _is_candidate(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return isinstance(module, nn.Linear) and is_exactly(module, nn.Linear)
    grouped = module.groups > 1 or module.kernel_size == (1, 1)  # a stem has no groups, and stays in float32
    return is_exactly(module, nn.Conv2d) and module.kernel_size in LEAST_INPUTS and grouped


def _is_wide(conv: nn.Conv2d) -> bool:
    height, width = conv.kernel_size
    return LEAST_INPUTS[height, width] <= conv.in_channels // conv.groups <= MOST_BYTE_INPUTS


def _limits(name: str, values: Tensor) -> tuple[float, float]:
    if not values.isfinite().all():
        raise ValueError(f'the input of {name} has NaN or infinite values on these images, so int8 finds no limits for '
                         f'it; give other images.')  # fmt: skip
    low, high = values.min().item(), values.max().item()
    pairs = [(share * low, share * high) for share in SHARES]
    return min(pairs, key=lambda pair: (rounded_inputs(values, pair) - values).square().sum().item())


def rounded(model: nn.Module, lowered: nn.Module) -> nn.Module:
    """Return in PyTorch what a calibrated model computes in int8, which is what of ``lowered`` is in the kernels.

    Raises:
        ValueError: no convolution is.
    """
    standard = [
        f'{name}.'
        for name, module in lowered.named_modules()
        if isinstance(module, LoweredGraph) or isinstance(getattr(module, 'weight', None), nn.Parameter)
    ]
    made, changed = deepcopy(model), 0
    for name, module in made.named_modules():
        if hasattr(module, 'input_limits') and not f'{name}.'.startswith(tuple(standard)):
            alone = module.input_limits == ()
            module.weight = nn.Parameter(rounded_weight(module.weight, alone), requires_grad=False)
            if not alone:
                changed += 1
                module.register_forward_pre_hook(lambda module, inputs: rounded_inputs(inputs[0], module.input_limits))
    if not changed:
        raise ValueError(
            f'the native kernels compute no convolution of this model that has {LEAST_INPUTS[1, 1]} inputs in a group '
            f'({LEAST_INPUTS[3, 3]} of 3x3), from which on int8 is faster; leave out int8.'
        )
    return made


@torch.no_grad()
def check_noise(model: nn.Module, reference: nn.Module, images: Images) -> None:
    """Raise unless int8 changes outputs by less than ``MOST_NOISE`` of what they vary.

    Raises:
        VerificationError: it changes them by more, or both give no tensor.
    """
    batches = [torch.as_tensor(batch, dtype=torch.float32) for batch in images]
    expected, actual = ([form(batch) for batch in batches] for form in (model, reference))
    if not all(isinstance(output, Tensor) for output in expected):
        raise VerificationError('int8 is checked for networks with one output; this one gives several.')
    before, after = torch.cat(expected), torch.cat(actual)
    variation = (before - before.mean(0) if len(before) > 1 else before).std().clamp(min=1e-12)
    noise = ((after - before).std() / variation).item()
    if not noise <= MOST_NOISE:
        raise VerificationError(
            f'int8 changes the outputs on the images for calibration by {noise:.1%} of what they vary, above '
            f'{MOST_NOISE:.0%}; give more images like those the network will see, or stay with float32.'
        )
