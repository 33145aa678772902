"""Staged sparsification of whatever a script trains, switched on from outside of the script."""

import weakref
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .attach import AttachedSparsifier
from .find_models import model_of
from .sparsifier import StagedSparsifier


class SparsificationError(RuntimeError):
    """A script cannot be sparsified as it was told to be."""


class SparsifiedScript:
    """Sparsifies the first model with group-sparse layers that an optimiser trains inside a ``with`` block.

    Args:
        total_steps: optimiser steps of the whole training, also where the block resumes it.
        on_change: called with the sparsifier when training begins, and after masks have changed.
        **options: further options of :class:`StagedSparsifier`.
    """

    def __init__(
        self, total_steps: int, on_change: Optional[Callable[[StagedSparsifier], None]] = None, **options: Any
    ) -> None:
        self.total_steps, self.on_change, self.options = total_steps, on_change, options
        self.sparsifier: Optional[StagedSparsifier] = None  # before the first step of its optimiser
        self._attached: Optional[AttachedSparsifier] = None
        self._others: weakref.WeakSet = weakref.WeakSet()

    def __enter__(self) -> 'SparsifiedScript':
        self._hook = register_optimizer_step_pre_hook(self._before_step)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()
        if self._attached:
            self._attached.detach()

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Look at a step of any optimiser; the one that trains sparse layers gets the sparsifier."""
        if self._attached or optimizer in self._others:
            return
        model = model_of(optimizer)
        if model is None:
            self._others.add(optimizer)
            return
        try:
            sparsifier = StagedSparsifier(model, self.total_steps, **self.options)
            self._attached = AttachedSparsifier(sparsifier, optimizer, on_change=self.on_change)
        except (ValueError, TypeError, RuntimeError) as error:
            raise SparsificationError(str(error)) from error
        self.sparsifier = sparsifier
        if self.on_change:
            self.on_change(sparsifier)
