"""Staged sparsification inside mmengine's training loops."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Optional

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...layers import GroupSparseConv2d
from ...sparsify import SparsificationSchedule, StagedSparsifier, check_importance_kind
from ...sparsify.averaging import copy_pruning
from .recalibration import check_recalibration, recalibrate_runner
from .runner_models import ema_models, plain_model

_SHARDING_WRAPPERS = ('FullyShardedDataParallel', 'DeepSpeedEngine')


@HOOKS.register_module()
class StagedSparsificationHook(Hook):
    """Prunes the model's learned group convolutions and reactivations stage by stage while it trains.

    A thin caller of :class:`~cnv2_plugin.sparsify.StagedSparsifier`. Progress is that of the whole run, ``iterations
    done / iterations of the run``, whatever the loop (by epoch or by iteration) and the gradient accumulation. Masks
    are part of the checkpoints; on resume the stages due so far are replayed. Layers that are already finished
    (fine-tuning from pruned weights) stay as they are. The copies of EMA hooks get the masks too.

    The group lasso is one more entry ``loss_group_lasso`` in the model's dict of losses, so that mixed precision,
    gradient accumulation and clipping treat it as any other loss.

    Scalars ``sparsification/kept_fraction`` (share of the prunable weights that is left), ``sparsification/stage`` and,
    with group lasso, ``sparsification/group_lasso`` go to the visualizer.

    Args:
        sparse_fraction: share of the run in which the stages happen.
        group_lasso: weight of the group lasso (CondenseNet: 1e-5 on ImageNet; CondenseNetV2: none).
        log_interval: iterations between two records of the scalars; each stage is recorded besides.
        start: share of the run before the first stages.
        spacing: of the stages, ``'even'`` as in the papers, or ``'cubic'``: early ones close together.
        importance: what a stage ranks connections by, ``'l1'`` as in the papers, ``'norm'``, ``'activation'`` or
            ``'taylor'``; see :class:`~cnv2_plugin.sparsify.StagedSparsifier`. What ``'taylor'`` has seen is part of the
            checkpoints.
        recalibrate: training batches on which batch normalisation is measured anew after each stage, see
            :func:`~cnv2_plugin.sparsify.recalibrate_norms`; 0 measures nothing. Training itself goes on as without;
            what changes is a validation soon after a stage.

    Raises:
        ValueError: an argument is out of range; at the start of training also: the model has no sparse layer, or the
            optimiser steps in the pruning part are fewer than the stages.
        RuntimeError: the parameters are sharded, or ranks disagree on the masks.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        sparse_fraction: float = 0.5,
        group_lasso: float = 0.0,
        log_interval: int = 50,
        start: float = 0.0,
        spacing: str = 'even',
        importance: str = 'l1',
        recalibrate: int = 0,
    ) -> None:
        SparsificationSchedule(sparse_fraction, start, spacing)
        check_importance_kind(importance)
        if recalibrate < 0:
            raise ValueError(f'recalibrate is {recalibrate}; it takes a number of training batches, or 0.')
        if group_lasso < 0:
            raise ValueError(f'group_lasso is {group_lasso}; it takes a weight of at least 0.')
        if log_interval < 1:
            raise ValueError(f'log_interval is {log_interval}; it takes a number of iterations of at least 1.')
        self.sparse_fraction = sparse_fraction
        self.group_lasso = group_lasso
        self.log_interval = log_interval
        self.recalibrate = recalibrate
        self.options = dict(start=start, spacing=spacing, importance=importance)
        self.sparsifier: Optional[StagedSparsifier] = None
        self._lasso: Optional[Tensor] = None
        self._saved_seen: dict[str, Tensor] = {}

    def first_stage(self, model: nn.Module) -> float:
        """Progress of the run at which the first stage of a model's layers is due; 1 where it has none."""
        factors = [m.factor for m in model.modules() if isinstance(m, GroupSparseConv2d) and m.factor > 1]
        schedule = SparsificationSchedule(self.sparse_fraction, self.options['start'], self.options['spacing'])
        return schedule.due(1, max(factors)) if factors else 1.0

    def before_train(self, runner: Runner) -> None:
        """Check the model, and replay what a resumed run has behind it."""
        refuse_sharded(runner.model)
        if self.recalibrate:
            check_recalibration(runner, self.recalibrate)
        accumulation = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        self.sparsifier = StagedSparsifier(
            plain_model(runner),
            -(-runner.max_iters // accumulation),
            self.sparse_fraction,
            self.group_lasso,
            **self.options,
        )
        if runner.iter:
            self.sparsifier.importance.load_seen(self._saved_seen, self.sparsifier.layers)
        progress = runner.iter / runner.max_iters
        self.sparsifier.set_progress(progress)
        self._due = self._stages_due(progress)
        self._masks_changed(runner, runner.iter)
        self._gradient_hooks = self._watch_gradients(runner)
        self._lasso_hook = None
        if self.group_lasso and not self._finished:
            self._lasso_hook = plain_model(runner).register_forward_hook(self._lasso_adder(), with_kwargs=True)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Do the stages that are due after this iteration."""
        if self._lasso_hook and self._lasso is None:
            raise RuntimeError(
                f'{type(plain_model(runner)).__name__} trains without returning a dict of losses from '
                f"forward(mode='loss'), so group_lasso={self.group_lasso} cannot enter its loss; use group_lasso=0."
            )
        done = runner.iter + 1
        due = self._stages_due(done / runner.max_iters)
        changed = due != self._due and self.sparsifier.set_progress(done / runner.max_iters)
        self._due = due
        if changed:
            self._masks_changed(runner, done)
            if self.recalibrate:
                recalibrate_runner(runner, self.recalibrate, done)
        if changed or done % self.log_interval == 0:
            self._record(runner, done)
        self._lasso = None

    def after_train(self, runner: Runner) -> None:
        """Leave the model and the optimisers without our hooks."""
        for handle in (self._lasso_hook, *self._gradient_hooks):
            if handle:
                handle.remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what ``importance='taylor'`` has seen since the last stages."""
        if self.sparsifier is not None and self.sparsifier.importance.seen:
            checkpoint['sparsification'] = dict(seen=dict(self.sparsifier.importance.seen))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what was saved so, for a run that is resumed."""
        self._saved_seen = checkpoint.get('sparsification', {}).get('seen', {})

    def _watch_gradients(self, runner: Runner) -> list:
        """Let ``importance='taylor'`` see the gradients that each optimiser step is made of: averaged and unscaled."""
        if self.options['importance'] != 'taylor':
            return []
        wrappers = getattr(runner.optim_wrapper, 'optim_wrappers', {'': runner.optim_wrapper}).values()
        return [wrapper.optimizer.register_step_pre_hook(self._observe) for wrapper in wrappers]

    def _observe(self, optimizer, args, kwargs) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group['params']}
        layers = {name: layer for name, layer in self._unfinished.items() if id(layer.conv.weight) in own}
        self.sparsifier.importance.observe(layers)

    def _stages_due(self, progress: float) -> tuple[int, ...]:
        """Stage of each factor; looking at layers only when one changes spares a GPU their synchronisation."""
        factors = {layer.factor for layer in self.sparsifier.layers.values()}
        return tuple(self.sparsifier.schedule.stage(progress, factor) for factor in sorted(factors))

    def _masks_changed(self, runner: Runner, done: int) -> None:
        sparsifier = self.sparsifier
        for ema_model in ema_models(runner):
            copy_pruning(sparsifier.model, ema_model.module)
        check_masks_agree(sparsifier.layers.values())
        self._unfinished = {name: m for name, m in sparsifier.layers.items() if not m.is_finished()}
        self._finished = not self._unfinished
        self._stage = sparsifier.stage
        self._kept = sparsifier.sparsity()['total']
        stages = max(layer.num_stages for layer in sparsifier.layers.values())
        runner.logger.info(
            f'Sparsification after {done} of {runner.max_iters} iterations: stage {self._stage} of {stages}, '
            f'{self._kept:.1%} of the prunable weights kept.'
        )

    def _record(self, runner: Runner, step: int) -> None:
        scalars = dict(kept_fraction=self._kept, stage=self._stage)
        if self.group_lasso:
            scalars['group_lasso'] = 0.0 if self._lasso is None else self._lasso.item()
        runner.visualizer.add_scalars({f'sparsification/{k}': v for k, v in scalars.items()}, step=step)

    def _lasso_adder(self) -> Callable:
        def add_lasso(module: nn.Module, args, kwargs, losses):
            if kwargs.get('mode') != 'loss' or not isinstance(losses, dict) or not torch.is_grad_enabled():
                return None
            lasso = next(module.parameters()).new_zeros(()) if self._finished else self.sparsifier.regularization()
            self._lasso = lasso.detach()
            return {**losses, 'loss_group_lasso': lasso}

        return add_lasso


def refuse_sharded(model: nn.Module) -> None:
    """Raise when no process holds whole weights, so that least important ones could not be told.

    Raises:
        RuntimeError: the model is wrapped by FSDP or DeepSpeed, or a parameter is a shard.
    """
    for module in model.modules():
        if any(base.__name__ in _SHARDING_WRAPPERS for base in type(module).__mro__):
            raise RuntimeError(_sharded_message(type(module).__name__))
    for name, parameter in model.named_parameters():
        if hasattr(parameter, 'placements') or hasattr(parameter, 'ds_id'):
            raise RuntimeError(_sharded_message(name))


def _sharded_message(what: str) -> str:
    return (
        f'The parameters are sharded over processes ({what}), but pruning compares whole weights; train with '
        f'MMDistributedDataParallel instead.'
    )


def check_masks_agree(layers: Iterable[GroupSparseConv2d]) -> None:
    """Raise, on every rank, when ranks have different masks.

    Raises:
        RuntimeError: the masks differ; says which ranks differ from rank 0.
    """
    digest = hashlib.sha256()
    for layer in layers:
        if not layer.deploy:
            digest.update(layer.mask.cpu().numpy().tobytes())
    digests = all_gather_object(digest.hexdigest())
    different = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if different:
        raise RuntimeError(
            f'The masks of ranks {", ".join(map(str, different))} differ from those of rank 0, so their weights have '
            f'diverged; start all ranks from the same weights and let DDP average the gradients of all parameters.'
        )
