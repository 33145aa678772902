"""The driver of sparsification: attached once, it follows a training by itself, also that of an unchanged script."""

import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .find_models import as_list, averaged_copy, averages_of, copy_pruning, model_of, optimizers_in, same_sparse_layers
from .sparsifier import StagedSparsifier

STATE_KEY = 'staged_sparsifier'
"""Entry of the optimiser's first parameter group that carries the sparsifier's state through checkpoints."""

UNCOUNTED = 4
"""Changes of the weights without a step of the optimiser that are taken for something else."""

_MARK = '_drives_staged_sparsifier'

Optimizers = Union[torch.optim.Optimizer, Iterable[torch.optim.Optimizer], None]
Averages = Union[nn.Module, Iterable[nn.Module], None]
OnChange = Optional[Callable[[StagedSparsifier], None]]


class AttachedSparsifier:
    """Drives a sparsifier by the hooks of an optimiser, and keeps averaged copies of the model in step.

    After each ``optimizer.step()`` the sparsifier counts one step and does the stages that are due. A step that AMP's
    ``GradScaler`` skips because of infinite gradients is not counted (fused optimisers skip inside, so theirs are);
    with gradient accumulation the steps are counted, not the batches.

    The sparsifier's state is an entry of ``param_groups[0]`` in ``optimizer.state_dict()``, so it is saved and
    restored with the optimiser, before or after attaching; masks and stages are in the model's own state dict.

    With ``group_lasso`` the gradient of the group lasso is added to the weights' gradients before each step. Do not
    add ``sparsifier.regularization()`` to the loss then. ``sparsifier.step()`` raises while it is attached.

    Args:
        sparsifier: of the model that the optimiser trains.
        optimizer: any ``torch.optim.Optimizer``, a wrapper of one, or several, of which one trains the sparse layers.
            Without one, a trainer that knows its own progress calls :meth:`set_progress` (and adds the group lasso).
        ema: averaged copies of the model; they get the masks too. Those inside ``AveragedModel``, ``ModelEmaV3`` and
            the like are found without being given.
        on_change: called with the sparsifier after masks have changed.

    Raises:
        TypeError: if the optimiser has no step hooks.
        ValueError: if the optimiser trains no sparse layer of the model, an average is not of the model, or the
            optimiser carries the state of a sparsifier with other settings, or is attached already.
        RuntimeError: in a backward pass, if the weights change by other means than the optimiser's steps.
    """

    def __init__(
        self,
        sparsifier: StagedSparsifier,
        optimizer: Optimizers = None,
        ema: Averages = None,
        on_change: OnChange = None,
    ) -> None:
        self.sparsifier = sparsifier
        self.averages = [averaged_copy(average) for average in as_list(ema)]
        self.on_change = on_change
        for copy in self.averages:
            if not same_sparse_layers(sparsifier.model, copy):
                raise ValueError(
                    f'the averaged {type(copy).__name__} has other sparse layers than the model; give the average of '
                    f'this model.'
                )
        self._hooks: list[Any] = []
        self._begun = False
        self._levels = [] if optimizer is None else _levels_that_train(sparsifier, optimizer)
        self.optimizer = self._levels[-1] if self._levels else None
        if self.optimizer is not None:
            if sparsifier.driver is not None or hasattr(self.optimizer, _MARK):
                raise ValueError(
                    f'{type(self.optimizer).__name__} or the sparsifier is attached already, and a second time would '
                    f'count every step twice; go on with the sparsifier that is attached, or call its driver.detach().'
                )
            saved = self.optimizer.param_groups[0].pop(STATE_KEY, None)
            if saved is not None:
                sparsifier.load_state_dict(saved)
            self._register(self.optimizer)
            self._refuse_uncounted()
            sparsifier.driver = self
        self.update_averages()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_hooks': bool(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _hooks=[])
        if state['_hooks']:
            self._register(state['optimizer'])

    def set_progress(self, progress: float) -> bool:
        """Do the stages that are due at a progress between 0 and 1, in the averaged copies too.

        Returns:
            Whether any mask changed.
        """
        return self._follow(self.sparsifier.set_progress(progress))

    def update_averages(self) -> None:
        """Give the averaged copies the masks and stages of the model, those that PyTorch and timm make too."""
        for average in (*self.averages, *averages_of(self.sparsifier.model)):
            copy_pruning(self.sparsifier.model, average)

    def detach(self) -> None:
        """Remove the hooks; masks and stages stay, and the optimiser keeps the state for a later sparsifier."""
        for hook in self._hooks:
            hook.remove()
        if self._hooks and self.optimizer is not None:
            self.optimizer.param_groups[0][STATE_KEY] = self.sparsifier.state_dict()
            delattr(self.optimizer, _MARK)
            self.sparsifier.driver = None
        self._hooks = []

    def _register(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow an optimiser; copies and unpickled ones are followed anew, as they leave their hooks behind."""
        setattr(optimizer, _MARK, True)
        self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
        for level in self._levels:
            with suppress(AttributeError):  # wrappers without hooks of their own hand on the state of what is inside
                self._hooks.append(level.register_state_dict_post_hook(self._save))
                self._hooks.append(level.register_load_state_dict_pre_hook(self._load))

    def _refuse_uncounted(self) -> None:
        """Raise in a backward pass where weights have changed some times, but no step of the optimiser has begun."""
        trained = (layer.conv.weight for layer in self.sparsifier.layers.values())
        weight = next((weight for weight in trained if weight.requires_grad), None)
        if weight is None:
            return
        versions = set()

        def check(_: Tensor) -> None:
            versions.add(weight._version)
            if len(versions) > UNCOUNTED and self._hooks and not self._begun:
                raise RuntimeError(
                    f'the weights have changed {UNCOUNTED} times, but no step of {type(self.optimizer).__name__} was '
                    f'seen, so nothing would ever be pruned; attach to the optimiser whose step() is called, such as '
                    f'the one inside, or when its training begins.'
                )

        self._hooks.append(weight.register_hook(check))

    def _follow(self, changed: bool) -> bool:
        if changed:
            self.update_averages()
            if self.on_change:
                self.on_change(self.sparsifier)
        return changed

    def _save(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state['param_groups'][0][STATE_KEY] = self.sparsifier.state_dict()

    def _load(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> Optional[dict[str, Any]]:
        first, *others = state['param_groups']
        if STATE_KEY not in first:
            return None
        self.sparsifier.load_state_dict(first[STATE_KEY])
        first = {name: value for name, value in first.items() if name != STATE_KEY}
        return {**state, 'param_groups': [first, *others]}

    def _after_step(self, *_: Any) -> None:
        self._follow(self.sparsifier.count_step())

    def _before_step(self, _: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> Optional[tuple]:
        """Add the lasso now, or behind the backward pass of the closure (Lightning, L-BFGS)."""
        self._begun = True
        if not self.sparsifier.group_lasso:
            return None
        closure = kwargs.get('closure', args[1] if len(args) > 1 else None)
        if closure is None:
            self._add_group_lasso()
            return None

        def with_lasso() -> Any:
            loss = closure()
            self._add_group_lasso()
            return loss

        return args[:1], {**kwargs, 'closure': with_lasso}

    def _add_group_lasso(self) -> None:
        with torch.enable_grad():
            lasso = self.sparsifier.regularization()
        if not lasso.requires_grad:
            return
        scale = getattr(self.optimizer, 'grad_scale', None)
        weights = [layer.conv.weight for layer in self.sparsifier.layers.values() if not layer.is_finished()]
        weights = [weight for weight in weights if weight.requires_grad and weight.grad is not None]
        gradients = torch.autograd.grad(lasso, weights) if weights else ()
        for weight, gradient in zip(weights, gradients):
            if weight.grad is not None:
                weight.grad.add_(gradient if scale is None else gradient * scale)


def attach_sparsifier(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    ema: Averages = None,
    on_change: OnChange = None,
    **options: Any,
) -> StagedSparsifier:
    """Sparsify a model while an optimiser trains it, without another line in the training loop.

    Args:
        model: plain, compiled, or wrapped by DDP.
        optimizer: of the model's parameters.
        total_steps: optimiser steps of the whole training, also where it is resumed.
        ema: averaged copies of the model, see :class:`AttachedSparsifier`.
        on_change: called with the sparsifier after masks have changed.
        **options: further options of :class:`StagedSparsifier`.

    Raises:
        TypeError: see :class:`AttachedSparsifier`.
        ValueError: see :class:`AttachedSparsifier` and :class:`StagedSparsifier`.
        RuntimeError: see :class:`StagedSparsifier`.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        >>> sparsifier = attach_sparsifier(model, optimizer, total_steps=len(loader) * epochs)
    """
    sparsifier = StagedSparsifier(model, total_steps, **options)
    AttachedSparsifier(sparsifier, optimizer, ema, on_change)
    return sparsifier


def _levels_that_train(sparsifier: StagedSparsifier, given: Optimizers) -> list[torch.optim.Optimizer]:
    """The first optimiser that trains sparse layers, and those that it wraps, the innermost last.

    One inside that trains only some of these layers, such as the share of a process in ``ZeroRedundancyOptimizer``, is
    left out: its steps end before all weights are there. Where all sparse layers are frozen, their parameters may join
    later (Lightning's ``BackboneFinetuning``), and the steps of the first optimiser count.
    """
    weights = {id(layer.conv.weight) for layer in sparsifier.layers.values()}
    names = ' and '.join(type(optimizer).__name__ for optimizer in as_list(given))
    chains = [[o for o in optimizers_in(one) if hasattr(o, 'register_step_post_hook')] for one in as_list(given)]
    if not any(chains):
        raise TypeError(f'{names} has no step hooks; give the torch.optim.Optimizer that trains the model.')
    for chain in chains:
        trained = [len({id(p) for group in o.param_groups for p in group['params']} & weights) for o in chain]
        if any(trained):
            return [optimizer for optimizer, count in zip(chain, trained) if count == max(trained)]
    if not any(layer.conv.weight.requires_grad for layer in sparsifier.layers.values()):
        return next(chain for chain in chains if chain)
    raise ValueError(
        f'{names} trains no sparse layer of {type(sparsifier.model).__name__}; give the optimiser that was made with '
        f'the parameters of this model.'
    )


class SparsificationError(RuntimeError):
    """A script cannot be sparsified as it was told to be."""


class SparsifiedScript:
    """Sparsifies the first model with group-sparse layers that an optimiser trains inside a ``with`` block.

    Options are those of :class:`StagedSparsifier`; ``on_change`` is called when training begins, too.
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
