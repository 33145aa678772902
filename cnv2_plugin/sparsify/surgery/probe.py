"""One forward pass that tells how every layer of an unknown network is used."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...models.modes import evaluating
from ...models.multiply_adds import counted


@dataclass
class Probe:
    """Observations of one forward pass.

    Attributes:
        positions: output positions of each convolution and linear layer, summed over its calls, by name.
        input_sizes: height and width of the largest input of each convolution, by name.
        order: names of convolutions and linear layers in the order of their first call.
        outputs: names of those whose result is an output of the network as it is.
        mult_adds: multiply-adds of the whole pass.
    """

    positions: dict[str, int] = field(default_factory=dict)
    input_sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    outputs: set[str] = field(default_factory=set)
    mult_adds: int = 0


def probe(model: nn.Module, input_size: tuple[int, int, int]) -> Probe:
    """Run a model on one image of zeros, in eval mode, on its own device.

    Args:
        model: left as it is.
        input_size: ``(C, H, W)``.

    Raises:
        ValueError: if the model does not take such an image.
    """
    found = Probe()
    produced: list[tuple[str, Tensor]] = []

    def visitor(name: str, layer: Union[nn.Conv2d, nn.Linear]) -> Callable[[nn.Module, Any, Any], None]:
        def visit(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            if name not in found.positions:
                found.order.append(name)
            channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
            found.positions[name] = found.positions.get(name, 0) + output.numel() // channels
            if isinstance(module, nn.Conv2d):
                found.input_sizes[name] = max(found.input_sizes.get(name, (0, 0)), tuple(inputs[0].shape[2:]))
            produced.append((name, output))

        return visit

    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    handles = [layer.register_forward_hook(visitor(name, layer)) for name, layer in layers.items()]
    try:
        with evaluating(model):
            outputs, found.mult_adds = counted(model, lambda: run(model, input_size))
    finally:
        for handle in handles:
            handle.remove()
    results = {id(t) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) for t in (leaf, leaf._base)}
    found.outputs = {name for name, output in produced if id(output) in results}
    return found


def run(model: nn.Module, input_size: tuple[int, int, int]) -> Any:
    """Return the model's outputs for one image of zeros.

    Raises:
        ValueError: if the model does not take such an image.
    """
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, *input_size, device=reference.device, dtype=reference.dtype)
    try:
        return model(image)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f'{type(model).__name__} does not run on one image of size {tuple(input_size)} ({error}); give the '
            f'input_size (C, H, W) that it takes.'
        ) from error
