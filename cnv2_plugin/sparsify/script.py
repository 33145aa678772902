"""Staged sparsification of whatever a script trains, switched on from outside of the script."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .attach import AttachedSparsifier
from .find_models import ModelFinder
from .sparsifier import StagedSparsifier


class SparsificationError(RuntimeError):
    """A script cannot be sparsified as it was told to be."""


@contextmanager
def sparsified_script(
    total_steps: int, on_change: Optional[Callable[[StagedSparsifier], None]] = None, **options: Any
) -> Iterator['ScriptSparsifier']:
    """Sparsify the first model with group-sparse layers that an optimiser trains inside the ``with`` block.

    The model has to be built inside the block too.

    Args:
        total_steps: optimiser steps of the whole training, also where the block resumes it.
        on_change: called with the sparsifier when training begins, and after masks have changed.
        **options: further options of :class:`StagedSparsifier`.
    """
    found = ScriptSparsifier(total_steps, on_change, options)
    hook = register_optimizer_step_pre_hook(found.before_step)
    try:
        yield found
    finally:
        hook.remove()
        found.detach()


class ScriptSparsifier:
    """What :func:`sparsified_script` found.

    Attributes:
        sparsifier: of the model; None before the first step of its optimiser.
    """

    def __init__(
        self, total_steps: int, on_change: Optional[Callable[[StagedSparsifier], None]], options: dict[str, Any]
    ) -> None:
        self.total_steps, self.on_change, self.options = total_steps, on_change, options
        self.sparsifier: Optional[StagedSparsifier] = None
        self._finder = ModelFinder()
        self._attached: Optional[AttachedSparsifier] = None
        self._others: weakref.WeakSet = weakref.WeakSet()

    def before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Look at a step of any optimiser; the one that trains sparse layers gets the sparsifier.

        Raises:
            SparsificationError: if the options do not fit the training.
        """
        if self._attached or optimizer in self._others:
            return
        model = self._finder.model_of(optimizer)
        if model is None:
            self._others.add(optimizer)
            return
        try:
            self.sparsifier = StagedSparsifier(model, self.total_steps, **self.options)
            self._attached = AttachedSparsifier(self.sparsifier, optimizer, on_change=self._changed)
        except (ValueError, TypeError) as error:
            raise SparsificationError(str(error)) from error
        self._changed(self.sparsifier)

    def detach(self) -> None:
        """Leave the optimiser and PyTorch without our hooks."""
        self._finder.close()
        if self._attached:
            self._attached.detach()

    def _changed(self, sparsifier: StagedSparsifier) -> None:
        """Look for averages each time, as the script may make them at any step."""
        self._attached.averages = self._finder.averages_of(sparsifier.model)
        self._attached.update_averages()
        if self.on_change:
            self.on_change(sparsifier)
