"""One forward pass that tells how every layer of an unknown network is used."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...layers import GroupSparseConv2d
from ...models.modes import evaluating
from ...models.multiply_adds import counted

Call = tuple[tuple[int, ...], int]
"""Shape of a module's input, and number of its calls."""


@dataclass
class Probe:
    """Observations of one forward pass; sizes are those of convolutions, positions of linear layers too, by name."""

    positions: dict[str, int] = field(default_factory=dict)  # of the output, summed over the calls
    input_sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # height and width of the largest input
    outputs: set[str] = field(default_factory=set)  # names of those whose result the network returns as it is
    calls: dict[str, Call] = field(default_factory=dict)  # with one tensor (N, C, H, W), always of one shape
    mult_adds: int = 0  # of the whole pass
    prunable: int = 0  # of which masked layers will save so many once pruned


def probe(model: nn.Module, input_size: tuple[int, int, int]) -> Probe:
    """Run a model on one image ``(C, H, W)`` of zeros, in eval mode, on its own device, and leave it as it is."""
    found = Probe()
    produced: list[tuple[str, Tensor]] = []
    inputs: dict[str, list[Optional[tuple[int, ...]]]] = {}

    def visit(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].dim() == 4
        inputs.setdefault(name, []).append(tuple(args[0].shape) if single else None)
        if isinstance(module, GroupSparseConv2d) and not module.deploy:
            share = 1 - module.kept_per_group() / module.num_units
            positions = output.numel() // module.out_channels
            found.prunable += round(module.in_channels * module.out_channels * share) * positions
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and isinstance(output, Tensor):
            channels = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
            found.positions[name] = found.positions.get(name, 0) + output.numel() // channels
            if isinstance(module, nn.Conv2d):
                found.input_sizes[name] = max(found.input_sizes.get(name, (0, 0)), tuple(args[0].shape[2:]))
            produced.append((name, output))

    with ExitStack() as hooks, evaluating(model):
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(visit, name), with_kwargs=True))
        outputs, found.mult_adds = counted(model, lambda: run(model, input_size))
    results = {id(t) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) for t in (leaf, leaf._base)}
    found.outputs = {name for name, output in produced if id(output) in results}
    found.calls = {n: (shapes[0], len(shapes)) for n, shapes in inputs.items() if shapes[0] and len({*shapes}) == 1}
    return found


def run(model: nn.Module, input_size: tuple[int, int, int]) -> Any:
    """Return the model's outputs for one image of zeros; raise ValueError where it does not take such an image."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, *input_size, device=reference.device, dtype=reference.dtype)
    try:
        return model(image)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f'{type(model).__name__} does not run on one image of size {tuple(input_size)} ({error}); give the '
            f'input_size (C, H, W) that it takes.'
        ) from error
