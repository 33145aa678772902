"""Evaluation mode, for good or for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def in_eval(model: nn.Module) -> nn.Module:
    """Put a model in evaluation mode and return it, whatever its own ``eval`` and ``train`` return."""
    model.eval()
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while; every module gets its own mode back, frozen ones too."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
