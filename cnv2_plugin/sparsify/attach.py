"""A sparsifier that an optimiser drives: attached once, it follows every ``optimizer.step()`` by itself."""

from collections.abc import Callable, Iterable
from typing import Any, Optional, Union

import torch
from torch import nn

from .averaging import averaged_copy, check_copies, copy_pruning
from .sparsifier import StagedSparsifier

STATE_KEY = 'staged_sparsifier'
"""Entry of the optimiser's first parameter group that carries the sparsifier's state through checkpoints."""

Averages = Union[nn.Module, Iterable[nn.Module], None]


class AttachedSparsifier:
    """Hooks of a sparsifier in an optimiser.

    After each ``optimizer.step()`` the sparsifier counts one step and does the stages that are due. A step that AMP's
    ``GradScaler`` skips because of infinite gradients is not counted (fused optimisers skip inside, so theirs are);
    with gradient accumulation the steps are counted, not the batches.

    The sparsifier's state is an entry of ``optimizer.param_groups[0]``, so it is saved and restored with
    ``optimizer.state_dict()``, before or after attaching; masks and stages are in the model's own state dict.

    With ``group_lasso`` the gradient of the group lasso is added to the weights' gradients before each step. Do not
    add ``sparsifier.regularization()`` to the loss then, and do not call ``sparsifier.step()``.

    Args:
        sparsifier: of the model that the optimiser trains.
        optimizer: any ``torch.optim.Optimizer``, or a wrapper with ``optimizer`` or ``_base_optimizer`` inside.
        ema: averaged copies of the model (``AveragedModel``, ``ModelEmaV3``, modules); they get the masks too.
        on_change: called with the sparsifier after masks have changed.

    Raises:
        TypeError: the optimiser has no step hooks.
        ValueError: the optimiser trains no sparse layer of the model, an average is not of the model, or the optimiser
            carries the state of a sparsifier with other settings.
        RuntimeError: the weights are sharded over processes.
    """

    def __init__(
        self,
        sparsifier: StagedSparsifier,
        optimizer: torch.optim.Optimizer,
        ema: Averages = None,
        on_change: Optional[Callable[[StagedSparsifier], None]] = None,
    ) -> None:
        self.sparsifier = sparsifier
        self.optimizer = _with_hooks(optimizer)
        self.averages = [averaged_copy(a) for a in ([ema] if isinstance(ema, nn.Module) else ema or [])]
        self.on_change = on_change
        self._written: Optional[dict[str, Any]] = None
        _check_weights(sparsifier, self.optimizer)
        check_copies(sparsifier.model, self.averages)
        self._restore()
        self._copy_to_averages()
        self._hooks = [self.optimizer.register_step_post_hook(lambda *_: self.after_step())]
        if sparsifier.group_lasso:
            self._hooks.append(self.optimizer.register_step_pre_hook(self._before_step))

    def after_step(self) -> None:
        """Count a step of the optimiser; its hook calls this."""
        self._restore()
        changed = self.sparsifier.step()
        self._written = self.sparsifier.state_dict()
        self.optimizer.param_groups[0][STATE_KEY] = self._written
        if changed:
            self._copy_to_averages()
            if self.on_change:
                self.on_change(self.sparsifier)

    def detach(self) -> None:
        """Remove the hooks; masks, stages and the state in the optimiser stay."""
        for hook in self._hooks:
            hook.remove()

    def _restore(self) -> None:
        """Take over a state that a loaded checkpoint has put into the optimiser."""
        saved = self.optimizer.param_groups[0].get(STATE_KEY)
        if saved is not None and saved is not self._written:
            self.sparsifier.load_state_dict(saved)

    def _copy_to_averages(self) -> None:
        for average in self.averages:
            copy_pruning(self.sparsifier.model, average)

    def _before_step(self, _: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> Optional[tuple]:
        """Add the lasso now, or behind the backward pass of the closure (Lightning, L-BFGS)."""
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
    on_change: Optional[Callable[[StagedSparsifier], None]] = None,
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
        RuntimeError: see :class:`AttachedSparsifier`.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        >>> sparsifier = attach_sparsifier(model, optimizer, total_steps=len(loader) * epochs)
    """
    sparsifier = StagedSparsifier(model, total_steps, **options)
    AttachedSparsifier(sparsifier, optimizer, ema, on_change)
    return sparsifier


def _with_hooks(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser itself, inside the wrappers of timm (Lookahead), accelerate and mmengine."""
    given = type(optimizer).__name__
    while True:
        inside = getattr(optimizer, '_base_optimizer', None) or getattr(optimizer, 'optimizer', None)
        if inside is None:
            break
        optimizer = inside
    if not hasattr(optimizer, 'register_step_post_hook') or not getattr(optimizer, 'param_groups', None):
        raise TypeError(f'{given} has no step hooks; give the torch.optim.Optimizer that trains the model.')
    return optimizer


def _check_weights(sparsifier: StagedSparsifier, optimizer: torch.optim.Optimizer) -> None:
    weights = [layer.conv.weight for layer in sparsifier.layers.values()]
    if any(hasattr(weight, 'placements') or hasattr(weight, 'ds_id') for weight in weights):
        raise RuntimeError(
            'The weights are sharded over processes, but pruning compares whole weights; train with '
            'DistributedDataParallel instead.'
        )
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    if not any(id(weight) in trained for weight in weights):
        raise ValueError(
            f'{type(optimizer).__name__} trains no sparse layer of {type(sparsifier.model).__name__}; give the '
            f'optimiser that was made with the parameters of this model.'
        )
