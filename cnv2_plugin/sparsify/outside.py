"""Staged sparsification of whatever a script trains, switched on from outside of the script."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from .attach import STATE_KEY, AttachedSparsifier
from .averaging import copy_pruning
from .live import averages_of, sparse_model_of
from .sparsifier import StagedSparsifier


class SparsificationError(RuntimeError):
    """A script cannot be sparsified from outside as it was told to be."""


@contextmanager
def sparsified_from_outside(
    total_steps: Optional[int] = None,
    epochs: Optional[int] = None,
    on_change: Optional[Callable[['OutsideSparsifier'], None]] = None,
    **options: Any,
) -> Iterator['OutsideSparsifier']:
    """Sparsify the first model with group-sparse layers that an optimiser trains inside the ``with`` block.

    Args:
        total_steps: optimiser steps of the whole training, also where the block resumes it.
        epochs: epochs of the whole training, where ``total_steps`` is not given; the steps of an epoch are the length
            of the ``DataLoader`` iterated last before the first step, divided by the backward passes of one step. A
            resumed training keeps the length that its optimiser's state tells.
        on_change: called when training begins, and after masks have changed.
        **options: further options of :class:`StagedSparsifier`.

    Raises:
        ValueError: neither ``total_steps`` nor ``epochs`` is given.
    """
    if total_steps is None and epochs is None:
        raise ValueError('the length of the training is unknown; give total_steps or epochs.')
    outside = OutsideSparsifier(total_steps, epochs, on_change, options)
    hook = register_optimizer_step_pre_hook(outside.before_step)
    iterate = DataLoader.__iter__

    def noted(loader: DataLoader) -> Any:
        outside.saw(loader)
        return iterate(loader)

    DataLoader.__iter__ = noted  # type: ignore[method-assign]  # loaders have no hook of their own
    try:
        yield outside
    finally:
        DataLoader.__iter__ = iterate  # type: ignore[method-assign]  # as it was
        hook.remove()
        outside.detach()


class OutsideSparsifier:
    """What :func:`sparsified_from_outside` found out.

    Attributes:
        sparsifier: of the model; None before the first step of its optimiser, or the second one where the length of
            the training is measured (the group lasso begins with that one then).
    """

    def __init__(
        self,
        total_steps: Optional[int],
        epochs: Optional[int],
        on_change: Optional[Callable[['OutsideSparsifier'], None]],
        options: dict[str, Any],
    ) -> None:
        self.total_steps, self.epochs, self.on_change, self.options = total_steps, epochs or 0, on_change, options
        self.sparsifier: Optional[StagedSparsifier] = None
        self._attached: Optional[AttachedSparsifier] = None
        self._others: weakref.WeakSet = weakref.WeakSet()
        self._loader: Callable[[], Optional[DataLoader]] = lambda: None
        self._found: Optional[tuple[torch.optim.Optimizer, nn.Module]] = None
        self._backwards = 0
        self._counter: Any = None

    def saw(self, loader: DataLoader) -> None:
        """Note a loader whose iteration begins; the last one before the first step is that of the training."""
        if self._found is None:
            self._loader = weakref.ref(loader)

    def before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Look at a step of any optimiser; the one that trains sparse layers gets the sparsifier.

        Raises:
            SparsificationError: there is nothing to sparsify, or the options do not fit the training.
        """
        if self._attached or optimizer in self._others:
            return
        if self._found is None:
            model = sparse_model_of(optimizer)
            if model is None:
                self._others.add(optimizer)
                return
            self._found = optimizer, model
            saved = optimizer.param_groups[0].get(STATE_KEY, {})
            self.total_steps = self.total_steps or saved.get('total_steps')
            if self.total_steps is None:
                self._count_backwards(optimizer)
            else:
                self._attach(optimizer, model, self.total_steps)
        elif self._found[0] is optimizer:
            self._counter.remove()
            self.total_steps = self.epochs * -(-self._epoch_length() // max(self._backwards, 1))
            self._attach(optimizer, self._found[1], self.total_steps).after_step()

    def detach(self) -> None:
        """Leave the optimiser without our hooks."""
        if self._counter:
            self._counter.remove()
        if self._attached:
            self._attached.detach()

    def _attach(self, optimizer: torch.optim.Optimizer, model: nn.Module, total_steps: int) -> AttachedSparsifier:
        try:
            sparsifier = StagedSparsifier(model, total_steps, **self.options)
            attached = AttachedSparsifier(sparsifier, optimizer, averages_of(model), self._changed)
        except (ValueError, TypeError) as error:
            raise SparsificationError(str(error)) from error
        self.sparsifier, self._attached = sparsifier, attached
        self._tell()
        return attached

    def _changed(self, sparsifier: StagedSparsifier) -> None:
        """Averages may have been made after the first step, so they are looked for at each stage."""
        for average in averages_of(sparsifier.model):
            copy_pruning(sparsifier.model, average)
        self._tell()

    def _tell(self) -> None:
        if self.on_change:
            self.on_change(self)

    def _count_backwards(self, optimizer: torch.optim.Optimizer) -> None:
        """Backward passes between two steps: batches that are accumulated."""
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.requires_grad]
        used = next((p for p in parameters if p.grad is not None), parameters[0])

        def count(_: torch.Tensor) -> None:
            self._backwards += 1

        self._counter = used.register_post_accumulate_grad_hook(count)

    def _epoch_length(self) -> int:
        loader = self._loader()
        what = 'no DataLoader was iterated'
        if loader is not None:
            try:
                return len(loader)
            except TypeError:
                what = f'its {type(loader).__name__} has no length'
        raise SparsificationError(
            f'the steps of an epoch are unknown ({what}); give the optimiser steps of the whole training as '
            f'--total-steps (total_steps).'
        )
