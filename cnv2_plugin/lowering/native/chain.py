"""Whether modules do all that a model does, one after the other."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn


def is_chain(model: nn.Module, modules: Sequence[nn.Module], example: Tensor) -> bool:
    """Run a model and see whether it hands each module just what the one before returned.

    Args:
        model: in evaluation mode.
        modules: of the model; the first has to be given the images, and the last returns the result.
        example: images ``(N, C, H, W)``.

    Returns:
        False too where a module within them has hooks, which would be passed by if another computed the same.
    """
    if any(part._forward_hooks or part._forward_pre_hooks for module in modules for part in module.modules()):
        return False
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls.append((module, inputs[0], output))

    with ExitStack() as hooks, torch.no_grad():
        for module in modules:
            hooks.enter_context(module.register_forward_hook(note))
        result = model(example)
    handed = [example, *(output for _, _, output in calls)]
    given = [*(images for _, images, _ in calls), result]
    return [module for module, _, _ in calls] == [*modules] and all(map(_is_same, handed, given))


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same values in memory, whatever their shape."""
    return first.data_ptr() == second.data_ptr() and first.numel() == second.numel()
