"""The parts of a model that can be lowered: finding them, naming their layers, putting others in their place."""

from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Optional

import torch
from torch import Tensor, nn

from .builder import builder_of, is_chain_of_stages
from .ops import dtype_device


@dataclass(frozen=True)
class Part:
    """A part of a condensed model that can be lowered, and the shape ``(N, C, H, W)`` that it was given."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]


def parts(condensed: nn.Module, input_size: tuple[int, int, int], example: Optional[Tensor] = None) -> list[Part]:
    """The parts of a condensed model that can be lowered, with the shapes they are given.

    Parts that take no part in ``forward`` are left out; where one is used several times, the largest input counts.
    Images are zeros of ``input_size``, or ``example``. All stages are one part where nothing reads what is
    between them.
    """
    calls: dict[nn.Module, list[tuple[int, ...]]] = {}
    names = {module: name for name, module in condensed.named_modules()}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        calls.setdefault(module, []).append(tuple(inputs[0].shape))

    if example is None:
        dtype, device = dtype_device(condensed)
        example = torch.zeros(1, *input_size, dtype=dtype, device=device)
    with ExitStack() as hooks, torch.no_grad():
        for wanted in [m for m in names if builder_of(m) is not None or is_chain_of_stages(m)]:
            hooks.enter_context(wanted.register_forward_hook(note))
        condensed(example)
    found: list[Part] = []
    inside: set[nn.Module] = set()
    for module, shapes in sorted(calls.items(), key=lambda item: len(names[item[0]])):
        chain = is_chain_of_stages(module)
        if module in inside or chain and any(len(calls[m]) != len(shapes) for m in module.children()):
            continue
        inside.update(module.modules())
        found.append(Part(names[module], module, max(shapes, key=prod)))
    return sorted(found, key=lambda part: list(names.values()).index(part.name))


def layer_name(part: str, layer: str) -> str:
    """The name in the model of a layer in one of its parts."""
    return f'{part}.{layer}'.strip('.')


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of that name; returns the model, or the module where the name is ''."""
    if not name:
        return module
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
    return model
